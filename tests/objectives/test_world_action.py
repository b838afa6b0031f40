"""The loss against a loop over tokens, and the flow-matching grid against its definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_world_action import _model
from tests.tiny import TINY, tiny_batch
from wamjax.config.schema import ObjectiveConfig
from wamjax.layout import Role, build_layout
from wamjax.models.world_action import Streams
from wamjax.objectives.flow_matching import add_noise, time_grid, time_weights, velocity_from
from wamjax.objectives.world_action import draw_noise, world_action_losses


def test_time_grid_shift_five_is_diffusers_formula_and_weights_have_mean_one():
    config = ObjectiveConfig(shift=5.0, weighting="gaussian")
    sigmas = np.linspace(0.001, 1.0, 1000)
    np.testing.assert_allclose(time_grid(config), 5 * sigmas / (1 + 4 * sigmas), rtol=1e-6)
    weights = time_weights(config)
    assert weights.min() == 0.0
    np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-5)
    ids = time_grid(config) * 1000
    bell = np.exp(-2 * ((ids - 500) / 1000) ** 2)
    np.testing.assert_allclose(weights, (bell - bell.min()) / (bell - bell.min()).mean(), rtol=1e-3, atol=1e-5)


def test_velocity_from_a_perfect_x0_is_noise_minus_data():
    x0, noise, t = jnp.asarray([1.0, -2.0]), jnp.asarray([0.5, 0.25]), jnp.asarray(0.4)
    np.testing.assert_allclose(velocity_from(x0, "x0", add_noise(x0, noise, t), t, 0.05), noise - x0, rtol=1e-5)


@pytest.mark.parametrize("kind", ["velocity", "x0"])
def test_losses_equal_a_loop_over_blocks(kind):
    objective = dataclasses.replace(
        TINY.objective,
        video_prediction=kind,
        action_prediction=kind,
        video_residual="last_clean" if kind == "x0" else "none",
        min_time=0.05,
    )
    config = dataclasses.replace(TINY, objective=objective)
    layout, model, batch = build_layout(config), _model(), tiny_batch(config, 3)
    noise = draw_noise(jax.random.key(1), 3, config, layout)
    losses = jax.jit(lambda batch, noise: world_action_losses(model, batch, noise, config, layout))(batch, noise)
    batch = jax.device_get(batch)

    latents = np.asarray(model.codec.encode(jnp.asarray(batch.video)))
    times, weights = np.asarray(noise.times), np.asarray(noise.weights)
    frame_time = times[:, [2, 2, 3, 3]][:, :, None, None, None]
    clean, eps = latents[:, 1:], np.asarray(noise.video)[:, 1:]
    noised = (1 - frame_time) * clean + frame_time * eps
    action_time = np.repeat(times[:, [2, 3]], 4, axis=1)[..., None]
    noised_actions = (1 - action_time) * batch.actions + action_time * np.asarray(noise.actions)
    flat = lambda x: jnp.asarray(x.reshape(3, -1, x.shape[-1]))  # noqa: E731
    streams = Streams(
        times=noise.times,
        prompt_id=jnp.asarray(batch.prompt_id),
        clean_video=flat(latents),
        noisy_video=flat(noised),
        actions=jnp.asarray(noised_actions, jnp.float32),
        state=jnp.asarray(batch.state * batch.state_mask),
    )
    outputs, _ = model(streams, layout.full_pass())
    video = np.asarray(outputs[Role.NOISY_VIDEO]).reshape(clean.shape)
    actions = np.asarray(outputs[Role.ACTION])
    if kind == "x0":
        video = (noised - (video + latents[:, [0, 0, 2, 2]])) / np.maximum(frame_time, 0.05)
        actions = (noised_actions - actions) / np.maximum(action_time, 0.05)
    views = np.zeros((2, 16, 24, 3), bool)
    views[0, :, :8], views[1, :, 8:] = True, True
    total = count = action_total = action_count = 0.0
    for b in range(3):
        seen = (batch.view_mask[b][:, None, None, None] & views).any(0)
        cut = seen.reshape(2, 8, 3, 8, 3).transpose(0, 2, 1, 3, 4).reshape(2, 3, -1)
        for f in range(4):
            mask = cut & batch.frame_mask[b, f + 1]
            error = (video[b, f] - (eps[b, f] - clean[b, f])) ** 2 * weights[b, 2 + f // 2]
            total, count = total + error[mask].sum(), count + mask.sum()
        for a in range(8):
            if batch.action_mask[b, a] and batch.has_action[b]:
                dims = batch.action_dim_mask[b]
                error = (actions[b, a] - (np.asarray(noise.actions)[b, a] - batch.actions[b, a])) ** 2
                action_total += (error * weights[b, 2 + a // 4])[dims].sum()
                action_count += dims.sum()
    np.testing.assert_allclose(losses["video"].mean(), total / count, rtol=2e-4)
    np.testing.assert_allclose(losses["action"].mean(), action_total / action_count, rtol=2e-4)


def test_losses_of_a_split_batch_add_up_to_the_whole():
    layout, model, batch = build_layout(TINY), _model(), tiny_batch(TINY, 4)
    noise = draw_noise(jax.random.key(1), 4, TINY, layout)
    half = lambda tree, part: jax.tree.map(lambda x: x[part], tree)  # noqa: E731
    losses = jax.jit(lambda batch, noise: world_action_losses(model, batch, noise, TINY, layout))
    whole = losses(batch, noise)
    parts = [losses(half(batch, part), half(noise, part)) for part in (slice(0, 1), slice(1, 4))]
    for name, loss in whole.items():
        total, count = (sum(float(getattr(p[name], f).sum()) for p in parts) for f in ("total", "count"))
        np.testing.assert_allclose(loss.mean(), total / count, rtol=1e-5)
