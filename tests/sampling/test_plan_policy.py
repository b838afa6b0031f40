"""The policy of latent plans: it acts on what is seen now alone, by the prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.flops.steps import vary
from tests.sampling.acting import PooledCodec, load_twin, make_policy, random_params
from wamjax.errors import ConfigError
from wamjax.layout import Role
from wamjax.objectives.latent_tokens import patch_tokens
from wamjax.objectives.noising import select_frames
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.objectives.plan import PlanObjective
from wamjax.sampling.plan_policy import LatentPlanPolicy


@pytest.mark.slow
def test_policy_acts_as_training_would_with_the_prior_whatever_was_seen_before() -> None:
    config = load_twin("latent_plan")
    policy, rng = make_policy(config), np.random.default_rng(5)
    assert isinstance(policy, LatentPlanPolicy)
    shape = (config.clip.height, config.clip.width, 3)
    first, rest, other = (
        rng.integers(0, 256, (2, count, *shape), dtype=np.uint8) for count in (1, *[config.clip.num_frames - 1] * 2)
    )
    states = rng.uniform(-1, 1, (2, 2, config.data.state_dim)).astype(np.float32)
    text, key = policy._prompts.look_up(np.array([1, 0]), guided=False)[0], jax.random.key(3)
    other[:, -1] = rest[:, -1]  # the last frame is all that is read
    chunks = []
    for seen in (rest, other):
        policy.reset(np.array([1, 0]))
        policy.observe(first, states[:, 0])
        assert policy.act(jax.random.key(0)).video is None
        policy.observe(seen, states[:, 1])
        chunks.append(policy.act(key).actions)
    np.testing.assert_array_equal(*chunks)

    # Training's pass over a clip that begins with that frame, its plan drawn from the prior.
    objective, params = build_objective(config), random_params(config)
    assert isinstance(objective, PlanObjective)
    model = nnx.merge(abstract_model(objective)[0], params)
    clip = np.concatenate([rest[:, -1:], rest], axis=1)
    latents = patch_tokens(PooledCodec(config).encode(clip), objective.system.video.patch)
    frames = select_frames(latents, objective.layout.stream(Role.CLEAN_VIDEO))
    shown = (text != 0).any(axis=-1)
    inferred = model.infer(frames, jnp.asarray(states[:, 1:]), text, objective.layout.full_pass(), text_mask=shown)
    noise = jax.random.normal(key, (2, config.actions.plan_dim))
    expected = model.decode(inferred, inferred.plans[Role.PRIOR].at(noise), objective.decoding.full_pass())
    np.testing.assert_allclose(chunks[0], expected, atol=1e-4)
    policy.observe(rest, states[:, 1])
    assert np.abs(policy.act(jax.random.key(4)).actions - chunks[0]).max() > 1e-2  # another plan


def test_policy_of_plans_neither_guides_nor_imagines() -> None:
    config = load_twin("latent_plan")
    with pytest.raises(ConfigError, match="guidance=2"):
        make_policy(vary(config, sampling={"guidance": 2.0}))
    with pytest.raises(ConfigError, match="formulation=plan, which has no video to look at"):
        make_policy(config, imagine=True)
