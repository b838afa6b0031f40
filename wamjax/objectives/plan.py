"""Latent plans: actions decoded from what a clip's posterior says, and a prior that learns to say it beforehand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from wamjax.batch import WamBatch
from wamjax.config.finetune import lora_config
from wamjax.config.plan import LatentPlanConfig, find_plan
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Layout, Role, build_decoder_layout, build_layout
from wamjax.models.latent_plan import Gaussian, LatentPlanTransformer
from wamjax.nn.lora import attach_lora
from wamjax.objectives.latent_tokens import join_condition, patch_tokens
from wamjax.objectives.noising import action_mask, select_frames
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class PlanObjective:
    """Regression of actions from a plan of the posterior, and the divergence of posterior and prior.

    loss = action_weight |a - decode(present, z)|^2 + plan_weight KL(q(z | clip) || p(z | present)), z drawn from q. The
    first is a mean over the actions of the batch, the second, in nats, over the samples that have actions. Squared
    error is a Gaussian likelihood of fixed width: several ways of doing a thing are several plans. A head that says
    them all by itself, as flow matching does, would leave the plan nothing to say.

    Source: Play-LMP (arXiv 1903.01973), beta = 0.01. What differs: it has a mixture of logistics for each action;
    ``plan_balance`` is of HULC (lukashermann/hulc, conf/loss/default.yaml), and 0.5 leaves the gradient as it is.
    """

    config: RunConfig
    layout: Layout = dataclasses.field(init=False)
    decoding: Layout = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        find_plan(self.config)
        if self.config.parallel.context != 1:
            raise ConfigError(
                f"config.parallel.context={self.config.parallel.context} would split the sequence of the decoder of "
                "formulation=plan, which is short; set it to 1 and use fsdp"
            )
        object.__setattr__(self, "layout", build_layout(self.config))
        object.__setattr__(self, "decoding", build_decoder_layout(self.config))

    @property
    def system(self) -> LatentPlanConfig:
        """The model's configuration."""
        return find_plan(self.config)

    def make_model(self, key: PRNGKey) -> LatentPlanTransformer:
        """Makes the model, its low-rank updates included."""
        model, lora = LatentPlanTransformer(key, self.system), lora_config(self.config.finetune)
        if lora is not None:
            attach_lora(model, key, lora)
        return model

    def draw_noise(self, key: PRNGKey, batch_size: int) -> jax.Array:
        """Draws what draws the plans: standard normal ``[b z]``."""
        return jax.random.normal(key, (batch_size, self.system.plan_dim))

    def losses(
        self, model: LatentPlanTransformer, batch: WamBatch, noise: jax.Array, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        """Returns ``action`` and ``plan`` losses; of ``observed`` the frames, condition, state and prompt."""
        shown = batch if observed is None else observed
        segments, patch = self.layout.stream(Role.CLEAN_VIDEO), self.system.video.patch
        frames = select_frames(patch_tokens(shown.latents, patch), segments)
        inferred = model.infer(
            join_condition(frames, shown.condition, segments, patch),
            shown.state * shown.state_mask if self.config.layout.states_per_block else None,
            shown.text,
            self.layout.full_pass(),
            image=shown.image,
            text_mask=jnp.any(shown.text != 0, axis=-1) if self.config.clip.masks_text else None,
        )
        prior, posterior = inferred.plans[Role.PRIOR], inferred.plans[Role.POSTERIOR]
        actions = model.decode(inferred, posterior.at(noise), self.decoding.full_pass())
        mask = action_mask(batch)
        squared = jnp.square(actions - batch.actions) * mask
        share, has_action = self.config.objective.plan_balance, batch.has_action.astype(jnp.float32)
        apart = divergence(_scaled(posterior, 2.0 * (1.0 - share)), _scaled(prior, 2.0 * share))
        return {
            "action": StreamLoss(
                total=jnp.sum(squared, axis=(1, 2)), count=jnp.sum(mask, axis=(1, 2), dtype=jnp.float32)
            ),
            "plan": StreamLoss(total=apart * has_action, count=has_action),
        }

    def counts(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns the number of values of all actions that carry a loss, and of samples with actions."""
        return {
            "action": jnp.sum(action_mask(batch), dtype=jnp.float32),
            "plan": jnp.sum(batch.has_action, dtype=jnp.float32),
        }

    def total(self, losses: dict[str, StreamLoss]) -> jax.Array:
        """Returns the weighted sum of the masked means."""
        factors = self.config.objective
        return factors.action_weight * losses["action"].mean() + factors.plan_weight * losses["plan"].mean()


def divergence(posterior: Gaussian, prior: Gaussian) -> jax.Array:
    """Returns KL(posterior || prior) in nats, fp32 ``[b]``.

    sum over dims of log(s_p / s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2
    """
    ratio = posterior.deviation / prior.deviation
    distance = (posterior.mean - prior.mean) / prior.deviation
    return jnp.sum(0.5 * (jnp.square(ratio) + jnp.square(distance) - 1.0) - jnp.log(ratio), axis=-1)


def _scaled(plan: Gaussian, factor: float) -> Gaussian:
    """Returns ``plan`` as it is, with its gradient times ``factor``."""
    if factor == 1.0:
        return plan
    return Gaussian(*(factor * x + jax.lax.stop_gradient((1.0 - factor) * x) for x in plan))
