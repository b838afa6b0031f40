"""Cosmos Policy's latent frames: vectors in and out of pictures, what is given, and what carries a loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.flops.test_systems import COSMOS_POLICY
from wamjax.batch import Question, WamBatch, fake_batch
from wamjax.config.schema import ObjectiveConfig, RunConfig
from wamjax.errors import ConfigError
from wamjax.objectives.flow_matching import draw_edm_times
from wamjax.objectives.image_frames import average_vector, tile_vector
from wamjax.objectives.latent_frames import LatentFramesObjective
from wamjax.objectives.objective import build_objective

CONFIG = dataclasses.replace(COSMOS_POLICY)
BLANK, STATE, ACTION, LATER_STATE, VALUE = 0, 1, 4, 5, 8


def batch_asking(question: int) -> WamBatch:
    batch = jax.tree.map(jnp.asarray, fake_batch(CONFIG, 2))
    masks = {name: jnp.ones_like(getattr(batch, name)) for name in ("action_mask", "action_dim_mask", "has_action")}
    return dataclasses.replace(batch, question=jnp.full((2,), question, jnp.int32), **masks)


@pytest.mark.parametrize("size", [1, 7, 48, 13])
def test_vector_comes_back_from_its_frame(size: int) -> None:
    vector = jnp.asarray(np.random.default_rng(0).normal(size=(2, size)), jnp.float32)
    frame = tile_vector(vector, (2, 4, 6))
    np.testing.assert_allclose(average_vector(frame, size), vector, rtol=1e-6)
    # The channel changes slowest.
    np.testing.assert_array_equal(frame[0, 0, :, 0], np.asarray(vector)[0, np.arange(4) % size])


def test_noise_on_a_frame_averages_out_of_its_vector() -> None:
    vector = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7)), jnp.float32)
    noise = jax.random.normal(jax.random.key(0), (1, 28, 28, 16))
    error = average_vector(tile_vector(vector, (28, 28, 16)) + noise, 7) - vector
    assert float(jnp.abs(error).max()) < 4 / np.sqrt(28 * 28 * 16 / 7)


def test_vector_larger_than_a_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match="vector of 49 values does not fit a latent frame of 48"):
        tile_vector(jnp.zeros((1, 49)), (2, 4, 6))


@pytest.mark.parametrize(
    ("question", "last_given", "asked"),
    [
        (Question.POLICY, ACTION - 1, {"video", "action", "state", "value"}),
        (Question.WORLD_MODEL, ACTION, {"video", "state", "value"}),
        (Question.VALUE, VALUE - 1, {"value"}),
    ],
)
def test_what_is_asked_is_what_is_not_given(question: Question, last_given: int, asked: set[str]) -> None:
    objective, batch = LatentFramesObjective(CONFIG), batch_asking(question)
    given = np.asarray(objective.given(batch))
    np.testing.assert_array_equal(given, np.broadcast_to(np.arange(9) <= last_given, (2, 9)))
    counts = {name: float(count) for name, count in objective.counts(batch).items()}
    assert {name for name, count in counts.items() if count} == asked
    frame = 4 * 6 * 5
    assert counts["value"] == 2 * frame
    assert counts["video"] in (0, 2 * 2 * frame)


def test_frames_hold_what_the_batch_says_in_the_order_of_the_paper() -> None:
    batch = batch_asking(Question.POLICY)
    frames = LatentFramesObjective(CONFIG).frames(batch)
    assert frames.shape == (2, 9, 4, 6, 5)
    assert not frames[:, BLANK].any()
    state = batch.state * batch.state_mask
    np.testing.assert_allclose(average_vector(frames[:, STATE], 17), state[:, 0], rtol=1e-6)
    np.testing.assert_allclose(average_vector(frames[:, LATER_STATE], 17), state[:, 1], rtol=1e-6)
    np.testing.assert_allclose(average_vector(frames[:, ACTION], 21), batch.actions.reshape(2, -1), rtol=1e-6)
    np.testing.assert_allclose(average_vector(frames[:, VALUE], 1)[:, 0], batch.value, rtol=1e-6)
    pictures = batch.latents.astype(jnp.float32)
    np.testing.assert_array_equal(frames[:, [2, 3, 6, 7]], pictures)


def test_masked_actions_carry_no_loss() -> None:
    batch = batch_asking(Question.POLICY)
    counts = LatentFramesObjective(CONFIG).counts
    half = dataclasses.replace(batch, action_dim_mask=batch.action_dim_mask.at[:, 0].set(False))
    assert 0 < counts(half)["action"] < counts(batch)["action"]


def test_noise_levels_are_log_normal_for_seventy_per_cent() -> None:
    times = np.asarray(draw_edm_times(jax.random.key(0), (20_000,), ObjectiveConfig()))
    sigma = times / (1 - times)
    # Above e^(1.386 + 3 x 1.2) = 146 next to nothing; of [60, 85] the uniform part has 30 % x 25 / 84 = 8.9 %.
    assert abs(np.mean((sigma > 60) & (sigma < 85)) - 0.094) < 0.01
    assert abs(np.median(np.log(sigma[sigma < 1])) - np.log(0.62)) < 0.1
    assert times.min() > 0


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"states_per_block": 1}, "states_per_block=1"),
        ({"frames_per_block": 3}, "3 views .* are 6"),
        ({"pad_multiple": 8}, "pad_multiple=8"),
    ],
)
def test_what_does_not_fit_is_refused(layout: dict, message: str) -> None:
    config: RunConfig = dataclasses.replace(CONFIG, layout=dataclasses.replace(CONFIG.layout, **layout))
    with pytest.raises(ConfigError, match=message):
        build_objective(config)
