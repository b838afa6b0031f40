"""Policies of systems without equal layers in blocks: what they draw is what training's whole sequence says."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.flops.steps import vary
from tests.sampling.acting import load_twin, make_policy, roll_out
from tests.tiny import tiny_batch
from wamjax.layout import Role, build_layout
from wamjax.layout.inference import acting_stages, context_segments
from wamjax.models.gpt_policy import GptPolicy
from wamjax.models.vision_language_action import VisionLanguageActionModel
from wamjax.sampling import stages
from wamjax.sampling.action_policy import ActionPolicy
from wamjax.sampling.latent_policy import LatentPolicy
from wamjax.sampling.queries_policy import QueriesPolicy


def merged(policy: Any) -> Any:
    return nnx.merge(policy._graphdef, policy.params)


def test_cached_prefix_gives_the_actions_of_whole_passes() -> None:
    config = load_twin("pi05_droid")
    policy = make_policy(config)
    assert isinstance(policy, ActionPolicy)
    assert config.vla is not None
    rng, size = np.random.default_rng(3), config.vla.vision.image_size
    images = rng.integers(0, 256, (2, config.vla.num_images, size, size, 3), dtype=np.uint8)
    state = rng.uniform(-1, 1, (2, config.data.state_dim)).astype(np.float32)
    present = config.vla.num_images - 1  # the last camera is absent, and a prompt's last token is padding
    prompt = np.array([0, 1])
    policy.reset(prompt)
    policy.observe(images[:, :present], state)
    actions = policy.act(jax.random.key(4)).actions

    model: VisionLanguageActionModel = merged(policy)
    mask = np.broadcast_to(np.arange(config.vla.num_images) < present, images.shape[:2])
    shown = jnp.asarray(images), jnp.asarray(mask), jnp.asarray(policy._prompts(prompt, state))
    whole = build_layout(config).full_pass()
    x = jax.random.normal(jax.random.key(4), actions.shape)
    times = np.linspace(1.0, 0.0, config.sampling.steps + 1)
    for now, after in itertools.pairwise(times):
        velocity = model.predict(x, jnp.full(2, now, jnp.float32), *shown, whole)
        x = x + (after - now) * velocity
    np.testing.assert_allclose(actions, x, atol=1e-4, rtol=1e-4)
    other = roll_out(policy, config)
    assert not np.allclose(other[0].actions, other[1].actions)


def test_answers_are_those_of_training_at_the_newest_step_of_a_window_that_moves_on() -> None:
    config = load_twin("gr1")
    policy = make_policy(config)
    assert isinstance(policy, QueriesPolicy)
    steps, rng = config.layout.num_blocks, np.random.default_rng(5)
    assert config.gpt is not None
    shape = (2, steps + 2, config.gpt.num_views, config.gpt.image_size, config.gpt.image_size, 3)
    pictures = rng.integers(0, 256, shape, dtype=np.uint8)
    state = rng.uniform(-1, 1, (2, steps + 2, config.data.state_dim)).astype(np.float32)
    policy.reset(np.array([1, 0]))
    model, layout = merged(policy), build_layout(config)
    assert isinstance(model, GptPolicy)
    for now in range(steps + 2):
        policy.observe(pictures[:, now], state[:, now])
        (action,) = np.moveaxis(np.asarray(policy.act(jax.random.key(0)).actions), 1, 0)
        first = max(0, now - steps + 1)
        # What lies beyond the present is noise here, which must change nothing.
        shown = np.concatenate([pictures[:, first : now + 1], pictures[:, : steps - (now + 1 - first)]], axis=1)
        held = np.concatenate([state[:, first : now + 1], state[:, : steps - (now + 1 - first)]], axis=1)
        features = policy._codec.encode_pictures(shown.reshape(2 * steps, *shown.shape[2:]))
        image = jnp.asarray(features.reshape(2, -1, features.shape[-1]), jnp.bfloat16)
        assert policy._text is not None
        answered, _ = model.predict(image, policy._text.astype(jnp.bfloat16), jnp.asarray(held), layout.full_pass())
        own = np.asarray(answered[:, now - first])
        np.testing.assert_allclose(action[:, :-1], own[:, :-1], atol=1e-4, rtol=1e-4)
        np.testing.assert_array_equal(action[:, -1], np.where(own[:, -1] > 0, 1.0, -1.0))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["representation", "joint"])
def test_layers_by_a_pattern_see_what_they_see_in_training(family: str) -> None:
    config = vary(load_twin("kairos_4b"), layout={"family": family})
    policy, batch = make_policy(config), tiny_batch(config, 2)
    assert isinstance(policy, LatentPolicy)
    model, layout = merged(policy), policy.layout
    (stage, *_) = acting_stages(config, layout, 0)
    past = context_segments(config, layout, 0)
    rng = np.random.default_rng(7)

    def tokens(role: Role) -> jax.Array:
        count = sum(s.num_tokens for s in layout.stream(role))
        width = config.data.action_dim if role is Role.ACTION else model.config.video.patch_channels
        return jnp.asarray(rng.normal(size=(2, count, width)), jnp.float32)

    streams = {role: tokens(role) for role in layout.roles if role not in (Role.STATE, Role.PADDING)}
    ids = jnp.zeros((2, layout.num_slots)).at[:, 1:].set(400.0)
    told = stages.Told(text=batch.text, category=batch.embodiment_id, state=batch.state)
    whole, _ = stages._predict(model, told, streams, ids, layout.full_pass(), None, config)
    known = stages.KeptTokens({Role.CLEAN_VIDEO: streams[Role.CLEAN_VIDEO][None]})
    shown, layout_pass, before = stages._split_past(known, stage.denoise, layout)
    own = {role: streams[role] for role in stage.denoised}
    assert {s.role for s in past} == {Role.CLEAN_VIDEO}
    alone, _ = stages._predict(model, told, shown | own, ids, layout_pass, before, config)
    for role in stage.denoised:
        np.testing.assert_allclose(alone[role], whole[role], atol=1e-4, rtol=1e-4)
