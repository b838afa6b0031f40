from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.filters import is_moving
from data_pipelines.index import build_index
from tests.data_pipelines.test_index import make_source
from wamjax.config.schema import RunConfig
from wamjax.config.sources import FilterConfig
from wamjax.errors import ConfigError, DataError

MakeConfig = Callable[..., RunConfig]


def with_filters(make_config: MakeConfig, **filters: Any) -> RunConfig:
    return make_config(Path("x"), filters=FilterConfig(**filters))


@pytest.mark.parametrize("max_idle", [0.0, 0.3, 0.5])
def test_windows_kept_are_those_with_few_idle_steps(max_idle: float) -> None:
    rng = np.random.default_rng(0)
    is_idle = rng.random(60) < 0.4
    starts = np.arange(0, 56, dtype=np.int32)
    expected = [int(s) for s in starts if is_idle[s : min(s + 9, 60)].mean() <= max_idle]
    kept = starts[is_moving(starts, is_idle, window_steps=8, max_idle=max_idle)]
    assert kept.tolist() == expected
    assert 0 < len(kept) < len(starts) or max_idle == 0.0


def test_pause_of_the_robot_takes_its_windows_and_no_other(make_config: MakeConfig) -> None:
    source = make_source([40, 40])
    for episode in (0, 1):
        source.values[episode][:, 0] = np.arange(40)
    source.values[0][10:30, 0] = 10.0  # stands still for twenty steps
    index = build_index(source, with_filters(make_config, max_idle=0.5, idle_motion=0.01))
    all_windows = build_index(source, make_config(Path("x")))
    of_first = index.train if 0 in index.train_episodes else index.validation
    of_first_before = all_windows.train if 0 in all_windows.train_episodes else all_windows.validation
    lost = set(of_first_before.starts.tolist()) - set(of_first.starts.tolist())
    # Windows span 9 steps; with more than half of them in 11..29 a window is left out.
    assert lost == {s for s in range(36) if sum(11 <= t < 30 for t in range(s, min(s + 9, 40))) > 0.5 * min(9, 40 - s)}
    assert len(index.train) + len(index.validation) + len(lost) == len(all_windows.train) + len(all_windows.validation)


def test_short_failed_and_nameless_episodes_are_left_out_each_with_its_reason(make_config: MakeConfig) -> None:
    source = make_source([20, 9, 20, 20, 20], ["a", "a", "", "a", "a"])
    for episode in range(5):
        source.values[episode][-1, 0] = float(episode != 3)
    filters = {"min_steps": 10, "needs_prompt": True, "success_key": "action"}
    index = build_index(source, with_filters(make_config, **filters))
    assert index.unwanted == {
        1: "shorter than config.data.filters.min_steps=10",
        2: "no instruction or caption (config.data.filters.needs_prompt)",
        3: "no success (config.data.filters.success_key=action)",
    }
    assert sorted((*index.train_episodes, *index.validation_episodes)) == [0, 4]


def test_filters_that_leave_nothing_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(DataError, match=r"no training window: 0 usable episodes.*2 left out by config\.data\.filters$"):
        build_index(make_source([20, 20]), with_filters(make_config, min_steps=50))


def test_idle_filter_without_a_state_is_refused(make_config: MakeConfig) -> None:
    config = make_config(Path("x"), filters=FilterConfig(max_idle=0.5), state_key="", action_key="")
    with pytest.raises(ConfigError, match=r"max_idle=0\.5 looks at the state, and memory is read without one"):
        build_index(make_source([20, 20]), config)
