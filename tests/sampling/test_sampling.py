"""Cached and uncached sampling agree; a policy forgets nothing it should know."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.test_world_action import _model
from tests.tiny import TINY, tiny_batch
from wamjax.layout import Role, build_layout
from wamjax.models.world_action import Streams
from wamjax.objectives.noising import select_frames
from wamjax.sampling.chunk import fill_context
from wamjax.sampling.pixel_policy import PixelPolicy
from wamjax.sampling.rollout import ChunkSampler


def _params():
    return nnx.to_pure_dict(nnx.state(_model()))


@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_cached_pass_equals_the_pass_without_a_cache_and_the_training_pass(order):
    layout, model, batch = build_layout(TINY), _model(), tiny_batch(TINY, 2)
    latents = model.codec.encode(batch.video)
    rng = np.random.default_rng(0)
    shape = lambda role: sum(s.num_tokens for s in layout.stream(role))  # noqa: E731
    noisy = jnp.asarray(rng.normal(size=(2, shape(Role.NOISY_VIDEO), latents.shape[-1])), jnp.float32)
    actions, state = jnp.asarray(batch.actions), jnp.asarray(batch.state)
    times = jnp.full((2, layout.num_slots), 0.6).at[:, 0].set(0.0)
    prompt = jnp.asarray(batch.prompt_id)

    def rows(x, role):
        start = next(s.start for s in layout.stream(role) if s.order == order)
        first = layout.stream(role)[0].start
        count = next(s.num_tokens for s in layout.stream(role) if s.order == order)
        return x[:, start - first : start - first + count]

    own = Streams(
        times=times,
        prompt_id=prompt,
        noisy_video=rows(noisy, Role.NOISY_VIDEO),
        actions=rows(actions, Role.ACTION),
        state=rows(state, Role.STATE),
    )
    cache = None
    for earlier in range(order):
        cache = fill_context(model, latents, prompt, layout, (earlier, earlier), cache)
    block = layout.denoise_pass(order)
    cached, _ = model(own, block, cache)
    whole = layout.make_pass(block.past + block.segments, ())
    uncached, _ = model(dataclasses.replace(own, clean_video=select_frames(latents, block.past)), whole)
    training = Streams(
        times=times,
        prompt_id=prompt,
        clean_video=select_frames(latents, layout.stream(Role.CLEAN_VIDEO)),
        noisy_video=noisy,
        actions=actions,
        state=state,
    )
    taught, _ = model(training, layout.full_pass())
    for role in (Role.NOISY_VIDEO, Role.ACTION):
        np.testing.assert_allclose(cached[role], uncached[role], atol=2e-5)
        np.testing.assert_allclose(cached[role], rows(taught[role], role), atol=2e-5)


def test_policy_given_the_recorded_frames_acts_as_the_sampler_predicts():
    config, params, batch, key = TINY, _params(), tiny_batch(TINY, 2), jax.random.key(5)
    batch = dataclasses.replace(batch, state_mask=jnp.ones_like(batch.state_mask))
    predicted = ChunkSampler(config, params).predict(batch, key)
    policy = PixelPolicy(config, params)
    batch = jax.device_get(batch)
    policy.reset(batch.prompt_id)
    policy.observe(batch.video[:, :1], batch.state[:, 0])
    first = policy.act(jax.random.fold_in(key, 1))
    policy.observe(batch.video[:, 1:3], batch.state[:, 1])
    second = policy.act(jax.random.fold_in(key, 2))
    np.testing.assert_allclose(np.concatenate([first.actions, second.actions], 1), predicted.actions, atol=2e-5)


@pytest.mark.slow
def test_policy_past_its_window_acts_as_one_that_saw_only_the_last_frames():
    config, params, key = TINY, _params(), jax.random.key(5)
    frames = np.random.default_rng(0).integers(0, 256, (1, 7, 16, 24, 3), dtype=np.uint8)
    state = np.zeros((1, config.data.state_dim), np.float32)

    def play(seen):
        policy = PixelPolicy(config, params)
        policy.reset(np.zeros(1, np.int32))
        policy.observe(seen[:, :1], state)
        for start in range(1, seen.shape[1], 2):
            policy.observe(seen[:, start : start + 2], state)
        return policy.act(key)

    np.testing.assert_allclose(play(frames).actions, play(frames[:, -3:]).actions, atol=2e-5)


def test_policy_asked_to_act_before_observing_says_so():
    policy = PixelPolicy(TINY, _params())
    with pytest.raises(ValueError, match=r"before Policy\.observe"):
        policy.act(jax.random.key(0))
