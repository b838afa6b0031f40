"""Actions denoised given pictures and a prompt: the loss of a vision-language-action model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from wamjax.batch import WamBatch
from wamjax.config.finetune import lora_config
from wamjax.config.schema import RunConfig
from wamjax.config.vla import VlaConfig
from wamjax.errors import ConfigError
from wamjax.layout import Layout, build_layout
from wamjax.models.vision_language_action import VisionLanguageActionModel
from wamjax.nn.lora import attach_lora
from wamjax.objectives.flow_matching import add_noise, draw_action_times
from wamjax.objectives.noising import action_mask
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.types import PRNGKey


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionNoise:
    """The randomness of one loss.

    Attributes:
      times: fp32 ``[b]``, one per sample.
      actions: ``[b a u]`` standard normal.
    """

    times: jax.Array
    actions: jax.Array


@dataclasses.dataclass(frozen=True)
class PolicyObjective:
    """Flow matching of a chunk of actions, at one time per sample.

    loss = |prediction - (noise - x_0)|^2, mean over the actions of the batch.

    Source: openpi, src/openpi/models/pi0.py, ``compute_loss``. What differs: dims that a robot does not have, and
    actions beyond the end of an episode, are left out of the mean.
    """

    config: RunConfig
    layout: Layout = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        objective = self.config.objective
        if self.config.backbone is not None:
            raise ConfigError("config.vla and config.backbone are two models of one run: set one of them")
        if self.config.actions.modules != "none" or self.config.prefix.width:
            raise ConfigError(
                f"config.actions.modules={self.config.actions.modules}, config.prefix.width={self.config.prefix.width} "
                "belong to a backbone; config.vla has an action expert and a language tower of its own: set them to "
                "none and 0"
            )
        if objective.action_prediction != "velocity" or objective.video_beta:
            raise ConfigError(
                f"config.objective.action_prediction={objective.action_prediction}, video_beta={objective.video_beta}; "
                "formulation policy predicts velocity and has no video: set them to velocity and ()"
            )
        if self.config.parallel.attention_kernel != "rectangles":
            raise ConfigError(
                f"config.parallel.attention_kernel={self.config.parallel.attention_kernel}; config.vla hides padding "
                "and absent images, which rectangles alone can: set it to rectangles"
            )
        object.__setattr__(self, "layout", build_layout(self.config))

    @property
    def vla(self) -> VlaConfig:
        """The model's configuration."""
        assert self.config.vla is not None, "this objective is for vision-language-action models"
        return self.config.vla

    def make_model(self, key: PRNGKey) -> VisionLanguageActionModel:
        """Makes the model, its low-rank updates included."""
        model = VisionLanguageActionModel(key, self.vla, self.config.data.action_dim)
        lora = lora_config(self.config.finetune)
        if lora is not None:
            attach_lora(model, key, lora)
        return model

    def draw_noise(self, key: PRNGKey, batch_size: int) -> ActionNoise:
        """Draws one time and the noise of each sample."""
        time_key, noise_key = jax.random.split(key)
        shape = (self.config.layout.actions_per_block, self.config.data.action_dim)
        return ActionNoise(
            times=draw_action_times(time_key, (batch_size,), self.config.objective),
            actions=jax.random.normal(noise_key, (batch_size, *shape)),
        )

    def losses(
        self, model: VisionLanguageActionModel, batch: WamBatch, noise: ActionNoise, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        """Returns the ``action`` loss; of ``observed`` the images and the prompt."""
        shown = batch if observed is None else observed
        noised = add_noise(batch.actions, noise.actions, noise.times[:, None, None])
        predicted = model.predict(
            noised, noise.times, shown.images, shown.view_mask, shown.text_ids, self.layout.full_pass()
        )
        mask = action_mask(batch)
        squared = jnp.square(predicted - (noise.actions - batch.actions)) * mask
        count = jnp.sum(mask, axis=(1, 2), dtype=jnp.float32)
        return {"action": StreamLoss(total=jnp.sum(squared, axis=(1, 2)), count=count)}

    def counts(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns the number of values of all actions that carry a loss."""
        return {"action": jnp.sum(action_mask(batch), dtype=jnp.float32)}

    def total(self, losses: dict[str, StreamLoss]) -> jax.Array:
        """Returns the weighted mean."""
        return self.config.objective.action_weight * losses["action"].mean()
