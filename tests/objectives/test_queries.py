"""Targets and losses of queries: patches normed as GR-1's code does, one frame ahead, and masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.flops.test_policies import GPT
from tests.tiny import tiny_batch
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.models.gpt_policy import GptPolicy
from wamjax.objectives.objective import build_objective
from wamjax.objectives.queries import QueriesObjective


def objective() -> QueriesObjective:
    made = build_objective(GPT)
    assert isinstance(made, QueriesObjective)
    return made


def test_targets_are_normed_patches_of_the_frames_ahead() -> None:
    video = np.asarray(tiny_batch(GPT, 1).video)
    found = np.asarray(objective().targets(jnp.asarray(video)))
    assert found.shape == (1, 3, 2, 9, 48)
    # GR-1: patch (row 1, column 2) of the second camera, two steps after the second.
    pixels = video[0, 3, 12 + 4 : 12 + 8, 8:12] / 255.0
    normed = ((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).reshape(-1)
    expected = (normed - normed.mean()) / (normed.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(found[0, 1, 1, 5], expected, atol=1e-4)


class Oracle(GptPolicy):
    """Answers with given arrays."""

    def __init__(self, actions: jax.Array, frames: jax.Array) -> None:
        self.answers = nnx.data((actions, frames))

    def predict(self, image: object, text: object, state: object, layout_pass: object) -> tuple[jax.Array, jax.Array]:
        del image, text, state, layout_pass
        return self.answers


def test_losses_are_zero_at_the_targets_and_count_what_is_there() -> None:
    made, batch = objective(), tiny_batch(GPT, 2)
    batch = dataclasses.replace(
        batch, has_action=jnp.array([True, False]), frame_mask=jnp.ones((2, 5), bool).at[1, 3:].set(False)
    )
    sure = jnp.where(batch.actions[..., -1:] > 0, 50.0, -50.0)
    answers = jnp.concatenate([batch.actions[..., :-1] + 2.0, sure], axis=-1)
    losses = made.losses(Oracle(answers, made.targets(batch.video)), batch, made.draw_noise(jax.random.key(0), 2))
    np.testing.assert_allclose(losses["video"].mean(), 0.0, atol=1e-6)
    np.testing.assert_allclose(losses["gripper"].mean(), 0.0, atol=1e-6)
    np.testing.assert_allclose(losses["action"].mean(), 1.5, rtol=1e-5)  # |2| - 1/2
    assert losses["action"].count[1] == losses["gripper"].count[1] == 0
    np.testing.assert_array_equal(losses["video"].count, [3 * 2 * 9 * 48, 1 * 2 * 9 * 48])
    for name, count in made.counts(batch).items():
        np.testing.assert_allclose(count, jnp.sum(losses[name].count))


def test_settings_that_do_not_fit_are_refused_with_what_would() -> None:
    with pytest.raises(ConfigError, match=r"config.parallel.context=2 .* set it to 1"):
        build_objective(dataclasses.replace(GPT, parallel=ParallelConfig(context=2)))
    with pytest.raises(ConfigError, match=r"formulation=joint.* needs formulation=queries"):
        build_objective(dataclasses.replace(GPT, layout=dataclasses.replace(GPT.layout, formulation="joint")))
    with pytest.raises(ConfigError, match=r"formulation=queries needs config.gpt"):
        build_objective(dataclasses.replace(GPT, gpt=None))
    with pytest.raises(ConfigError, match=r"num_blocks=2 steps hold no frame config.gpt.ahead=2"):
        build_objective(dataclasses.replace(GPT, layout=dataclasses.replace(GPT.layout, num_blocks=2)))
