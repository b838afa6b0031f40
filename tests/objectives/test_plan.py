"""Latent plans: their divergence, what each Gaussian and the actions read, and what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from tests.flops.steps import vary
from tests.flops.test_systems import FIRST_FRAME
from tests.tiny import QUICK_COMPILE, tiny_batch
from wamjax.batch import WamBatch
from wamjax.config.schema import PrefixConfig, RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Role, present_segments
from wamjax.models.latent_plan import Gaussian, LatentPlanTransformer
from wamjax.objectives.latent_tokens import patch_tokens
from wamjax.objectives.noising import select_frames
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.objectives.plan import PlanObjective, divergence

PLAN = vary(
    FIRST_FRAME,
    backbone={"num_layers": 1, "remat": "none", "block": {"compute_dtype": "float32"}},
    actions={"modules": "plan", "hidden_width": 14, "plan_dim": 6, "plan_layers": 1},
    layout={"formulation": "plan"},
    objective={"action_shift": 0.0},
)


def gaussian(seed: int, rows: int = 3, dims: int = 6) -> Gaussian:
    rng = np.random.default_rng(seed)
    return Gaussian(
        *(jnp.asarray(x, jnp.float32) for x in (rng.normal(size=(rows, dims)), rng.uniform(0.5, 2.0, (rows, dims))))
    )


@functools.cache
def make(config: RunConfig) -> tuple[PlanObjective, LatentPlanTransformer]:
    """The objective, and a model none of whose parameters is zero."""
    objective, rng = build_objective(config), np.random.default_rng(0)
    assert isinstance(objective, PlanObjective)
    graphdef, variables = abstract_model(objective)
    random = jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 0.2, x.shape), x.dtype), nnx.to_pure_dict(variables))
    return objective, nnx.merge(graphdef, random)


quick = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)


def infer(objective: PlanObjective, model: LatentPlanTransformer, batch: WamBatch, latents: jax.Array) -> Any:
    """What training infers of ``latents``."""
    frames = select_frames(patch_tokens(latents, (1, 2, 2)), objective.layout.stream(Role.CLEAN_VIDEO))
    return model.infer(frames, batch.state * batch.state_mask, batch.text, objective.layout.full_pass())


def test_divergence_is_that_of_the_densities() -> None:
    posterior, prior = gaussian(0), gaussian(1)
    draws = 200_000
    z = np.random.default_rng(2).normal(size=(draws, 1, 6)) * posterior.deviation + posterior.mean
    logs = [stats.norm.logpdf(z, *part).sum(-1) for part in (posterior, prior)]
    apart = logs[0] - logs[1]
    errors = apart.std(axis=0) / np.sqrt(draws)
    assert (np.abs(divergence(posterior, prior) - apart.mean(axis=0)) < 4 * errors).all()
    np.testing.assert_allclose(divergence(prior, prior), 0.0, atol=1e-6)


def test_divergence_equals_quadrature() -> None:
    posterior, prior = gaussian(3, rows=1, dims=1), gaussian(4, rows=1, dims=1)
    z, step = np.linspace(-20.0, 20.0, 200_001, retstep=True)
    q, p = (stats.norm.logpdf(z, *(x.item() for x in part)) for part in (posterior, prior))
    np.testing.assert_allclose(divergence(posterior, prior)[0], np.sum(np.exp(q) * (q - p)) * step, rtol=1e-5)


def gradients(objective: PlanObjective, model: LatentPlanTransformer, batch: WamBatch) -> dict[str, np.ndarray]:
    """Gradients with respect to the latents of what each part says, frame by frame."""

    @quick
    def of(latents: jax.Array) -> dict[str, jax.Array]:
        def says(x: jax.Array) -> dict[str, jax.Array]:
            inferred = infer(objective, model, batch, x)
            prior, posterior = inferred.plans[Role.PRIOR], inferred.plans[Role.POSTERIOR]
            told = model.decode(inferred, prior.at(jnp.ones_like(prior.mean)), objective.decoding.full_pass())
            known = model.decode(inferred, posterior.at(jnp.ones_like(prior.mean)), objective.decoding.full_pass())
            parts = {"prior": jnp.concatenate(prior, -1), "posterior": jnp.concatenate(posterior, -1), "acts": told}
            return {name: jnp.sum(jnp.sin(part)) for name, part in (parts | {"knows": known}).items()}

        return jax.jacrev(says)(latents)

    return {name: np.abs(np.asarray(g)).sum((0, 2, 3, 4)) for name, g in of(batch.latents.astype(jnp.float32)).items()}


@pytest.mark.slow
def test_prior_and_what_acts_on_it_read_nothing_of_the_future() -> None:
    objective, model = make(PLAN)
    read = gradients(objective, model, tiny_batch(PLAN, 2))
    for name in ("prior", "acts"):
        assert read[name][0] > 0
        np.testing.assert_array_equal(read[name][1:], 0.0)
    for name in ("posterior", "knows"):
        assert (read[name] > 0).all()


@pytest.mark.slow
def test_acting_infers_what_training_did_whatever_follows() -> None:
    objective, model = make(PLAN)
    batch = tiny_batch(PLAN, 2)
    latents = batch.latents.astype(jnp.float32)
    other = latents.at[:, 1:].set(jnp.flip(latents[:, 1:], axis=1) + 1.0)
    present = objective.layout.make_pass(present_segments(objective.layout), ())
    frames = select_frames(patch_tokens(latents, (1, 2, 2)), present.segments[:1])
    act = quick(functools.partial(model.infer, layout_pass=present))
    acting = act(frames, batch.state * batch.state_mask, batch.text)
    assert set(acting.plans) == {Role.PRIOR}
    for shown in (latents, other):
        training = quick(functools.partial(infer, objective, model))(batch, shown)
        for one, same in zip(
            jax.tree.leaves((acting.plans[Role.PRIOR], acting.present)),
            jax.tree.leaves((training.plans[Role.PRIOR], training.present)),
            strict=True,
        ):
            np.testing.assert_allclose(one, same, atol=2e-5)


@pytest.mark.slow
def test_plan_is_what_the_decoder_acts_on() -> None:
    objective, model = make(PLAN)
    batch = tiny_batch(PLAN, 2)
    inferred = quick(functools.partial(infer, objective, model))(batch, batch.latents)
    prior, decoding = inferred.plans[Role.PRIOR], objective.decoding.full_pass()
    act = quick(lambda inferred, plan: model.decode(inferred, plan, decoding))
    first, second = (act(inferred, prior.at(jnp.full_like(prior.mean, x))) for x in (-1.0, 1.0))
    assert first.shape == batch.actions.shape
    assert np.abs(first - second).max() > 1e-2
    assert np.abs(first[:, 0] - first[:, 1]).max() > 1e-2


@pytest.mark.slow
def test_samples_without_actions_carry_no_loss() -> None:
    objective, model = make(PLAN)
    batch = tiny_batch(PLAN, 2)
    batch = vary(batch, has_action=jnp.array([True, False]), action_mask=jnp.ones_like(batch.action_mask))
    losses = quick(functools.partial(objective.losses, model))(batch, objective.draw_noise(jax.random.key(0), 2))
    for name, loss in losses.items():
        assert loss.count[1] == loss.total[1] == 0, name
        assert loss.total[0] > 0
        assert jnp.sum(loss.count) == objective.counts(batch)[name]
    alone = vary(PLAN, objective={"plan_weight": 0.25, "action_weight": 2.0})
    found = make(alone)[0].total(losses)
    np.testing.assert_allclose(found, 2.0 * losses["action"].mean() + 0.25 * losses["plan"].mean(), rtol=1e-6)


@pytest.mark.slow
def test_balance_shares_the_gradient_and_leaves_the_divergence() -> None:
    batch, grads = tiny_batch(PLAN, 2), {}
    names = ("prior_head", "posterior_head")
    for share in (0.5, 0.8):
        objective, model = make(vary(PLAN, objective={"plan_balance": share}))
        graphdef, variables = nnx.split(model)

        @quick
        def of(params: Any, objective: PlanObjective = objective, graphdef: Any = graphdef) -> Any:
            def loss(params: Any) -> jax.Array:
                model = nnx.merge(graphdef, params)
                return objective.losses(model, batch, jnp.zeros((2, 6)))["plan"].mean()

            return jax.value_and_grad(loss)(params)

        value, found = of(nnx.to_pure_dict(variables))
        grads[share] = (value, *(found[name]["kernel"] for name in names))
    np.testing.assert_allclose(grads[0.8][0], grads[0.5][0], rtol=1e-6)
    np.testing.assert_allclose(grads[0.8][1], 1.6 * grads[0.5][1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads[0.8][2], 0.4 * grads[0.5][2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": {"family": "joint"}}, "family=joint with formulation=plan: actions of a plan are read from the"),
        ({"layout": {"formulation": "video"}}, "formulation=video: it has no actions"),
        ({"layout": {"formulation": "latent_frames"}}, "its actions are latent frames"),
        ({"layout": {"formulation": "joint"}}, "it denoises actions together with the video"),
        ({"layout": {"formulation": "alternating"}}, "from video that is denoised before"),
        ({"layout": {"formulation": "first_frame"}}, "it denoises actions beside the video"),
        ({"actions": {"modules": "expert"}}, "modules=expert and config.backbone set"),
        ({"backbone": None}, "config.backbone none"),
        ({"backbone": {"block": {"cross_attention": False}}}, "cross_attention=False"),
        ({"prefix": PrefixConfig(width=16)}, "prefix.width=16"),
        ({"layout": {"states_per_block": 2}}, "states_per_block=2"),
        ({"layout": {"num_blocks": 3, "frames_per_block": 1}}, "num_blocks=3"),
        ({"layout": {"frames_per_block": 2}}, "num_frames=13 is 4 latent frames"),
        ({"objective": {"history_noise": 0.5}}, "history_noise=0.5: formulation=plan noises nothing"),
        ({"layout": {"window": 2}}, "layout.window=2"),
        ({"parallel": {"context": 2}}, "parallel.context=2"),
    ],
)
def test_combination_that_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_objective(vary(PLAN, **changes))
