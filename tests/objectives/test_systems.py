"""Objectives of LingBot-VA, Fast-WAM and DreamZero-Flash: which times are drawn, what is noised, what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.flops.steps import vary
from tests.flops.test_systems import ALTERNATING, FIRST_FRAME
from wamjax.batch import batch_spec
from wamjax.config.pixel_windows import pixel_windows
from wamjax.config.schema import RunConfig
from wamjax.config.systems import find_system
from wamjax.errors import ConfigError
from wamjax.layout import Role, build_layout
from wamjax.objectives.noising import Noise, draw_slot_times, history_slots, noise_history, select_frames
from wamjax.objectives.objective import build_objective
from wamjax.parallel.mesh import build_mesh
from wamjax.training.program import build_program

INVERSE = vary(FIRST_FRAME, layout={"family": "inverse_dynamics"}, objective={"history_noise": 0.5})


def draw(config: RunConfig, number: int = 4000) -> tuple[np.ndarray, Any]:
    layout = build_layout(config)
    return np.asarray(draw_slot_times(jax.random.key(0), number, config, layout)[0]), layout


def test_clean_tokens_have_time_zero_and_actions_a_shift_of_their_own() -> None:
    times, layout = draw(ALTERNATING)
    assert not times[:, 0].any()
    video, actions = (times[:, list(layout.slots_of((role,)))] for role in (Role.NOISY_VIDEO, Role.ACTION))
    # Uniform ids under a shift s: the median is s / (s + 1).
    np.testing.assert_allclose(np.median(video), 5 / 6, atol=0.02)
    np.testing.assert_allclose(np.median(actions), 1 / 2, atol=0.02)
    assert abs(np.corrcoef(video[:, 0], actions[:, 0])[0, 1]) < 0.1


@pytest.mark.parametrize("config", [ALTERNATING, INVERSE], ids=["alternating", "inverse dynamics"])
def test_half_of_the_histories_are_noised_and_only_so_far(config: RunConfig) -> None:
    times, layout = draw(config)
    history = times[:, history_slots(layout)]
    is_noised = (history > 0).any(axis=1)
    np.testing.assert_array_equal(is_noised, (history > 0).all(axis=1))  # a sample's frames together
    assert abs(is_noised.mean() - 0.5) < 0.03
    assert 0.45 < history.max() <= 0.5


def test_noise_of_the_history_is_not_that_of_the_target() -> None:
    layout = build_layout(INVERSE)
    noise = Noise.draw(jax.random.key(0), 64, INVERSE, layout, video=(4, 2, 3, 5), actions=(5, INVERSE.data.action_dim))
    copy = layout.stream(Role.CONDITION_VIDEO)
    frames = jnp.ones((64, 4, 2, 3, 5))
    noised = noise_history(select_frames(frames, copy), noise, copy)
    first, rest = noised[:, :6], np.asarray(noised[:, 6:])
    np.testing.assert_array_equal(first, 1.0)  # the first frame is always clean
    changed = (rest != 1).any(axis=(1, 2))
    assert 0.2 < changed.mean() < 0.8
    assert noise.history is not None
    assert abs(np.corrcoef(np.ravel(noise.history), np.ravel(noise.video))[0, 1]) < 0.05


def test_flash_draws_video_near_noise_and_actions_evenly() -> None:
    config = vary(
        FIRST_FRAME,
        actions={"modules": "category"},
        layout={
            "formulation": "joint",
            "family": "joint",
            "num_blocks": 3,
            "frames_per_block": 1,
            "action_times": "own",
        },
        objective={"shift": 1.0, "video_beta": (7.0, 1.0)},
    )
    times, layout = draw(config)
    video, actions = (times[:, list(layout.slots_of((role,)))] for role in (Role.NOISY_VIDEO, Role.ACTION))
    np.testing.assert_allclose(video.mean(), 7 / 8, atol=0.01)
    np.testing.assert_allclose(actions.mean(), 1 / 2, atol=0.01)
    assert find_system(config)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            ALTERNATING,
            {"layout": {"states_per_block": 1}},
            "states_per_block=1 with .*modules=linear: it has no module",
        ),
        (
            ALTERNATING,
            {"layout": {"actions_per_block": 5}},
            "actions_per_block=5 does not divide over .*frames_per_blo",
        ),
        (ALTERNATING, {"layout": {"num_blocks": 3}}, "num_frames=13 is 4 latent frames; config.layout.num_blocks=3"),
        (
            ALTERNATING,
            {"layout": {"family": "representation"}},
            "family=representation belongs to formulation first_fr",
        ),
        (FIRST_FRAME, {"layout": {"window": 4}}, "window=4 belongs to formulation alternating"),
        (FIRST_FRAME, {"layout": {"num_blocks": 3, "frames_per_block": 1}}, "num_blocks=3; .*first_frame has one clip"),
        (FIRST_FRAME, {"objective": {"history_noise": 0.5}}, "history_noise=0.5; only formulation alternating"),
        (FIRST_FRAME, {"actions": {"modules": "none"}}, "modules=none .*; to train it on video alone"),
        (FIRST_FRAME, {"layout": {"formulation": "joint", "family": "joint"}}, "num_blocks=1 blocks|state is a text"),
        (FIRST_FRAME, {"backbone": {"block": {"num_heads": 5}}}, "24 over 5 heads"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(config: RunConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_objective(vary(config, **changes))
    assert "\n" not in str(caught.value)


def test_mixture_refuses_a_split_sequence() -> None:
    config = vary(FIRST_FRAME, parallel={"context": 2}, layout={"pad_multiple": 2})
    program = build_program(config, build_mesh(config.parallel, jax.devices()))
    step: Any = program.step
    with pytest.raises(ConfigError, match=r"context=2 splits the sequence"):
        step.trace(program.abstract_state, batch_spec(config, 8))


def test_windows_of_first_frame_are_cut_from_pixels() -> None:
    pixels = pixel_windows(vary(FIRST_FRAME, data={"canvas": (32, 48)}))
    assert (pixels.layout.num_blocks, pixels.layout.frames_per_block) == (1, 12)
