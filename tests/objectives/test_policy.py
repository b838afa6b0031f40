"""Flow matching of a policy's actions: drawn times, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.flops.test_policies import VLA
from wamjax.config.schema import ObjectiveConfig, ParallelConfig, RunConfig
from wamjax.errors import ConfigError
from wamjax.objectives.flow_matching import draw_action_times
from wamjax.objectives.objective import build_objective


def test_times_follow_pi05s_beta_and_stay_off_zero() -> None:
    times = np.asarray(draw_action_times(jax.random.key(0), (20_000,), ObjectiveConfig(action_beta=(1.5, 1.0))))
    assert times.min() >= 0.001
    assert times.max() <= 1.0
    # Beta(1.5, 1) has the distribution function x^1.5.
    for place in (0.25, 0.5, 0.75):
        assert np.mean(times < 0.001 + 0.999 * place) == pytest.approx(place**1.5, abs=0.015)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": ParallelConfig()}, r"attention_kernel=auto; .* set it to rectangles"),
        ({"layout": dataclasses.replace(VLA.layout, states_per_block=1)}, r"states_per_block=1; .* policy, 1 and 0"),
        ({"layout": dataclasses.replace(VLA.layout, pad_multiple=8)}, r"pad_multiple=8.* set both to 1"),
        ({"objective": ObjectiveConfig(video_beta=(7.0, 1.0))}, r"video_beta=.* has no video"),
        ({"vla": None}, r"formulation=policy needs config.vla"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_what_would(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_objective(dataclasses.replace(VLA, **changes))


def test_times_of_a_policy_are_refused_elsewhere() -> None:
    with pytest.raises(ConfigError, match=r"action_beta=\(1.5, 1.0\) belongs to .*policy"):
        build_objective(RunConfig(objective=ObjectiveConfig(action_beta=(1.5, 1.0))))
