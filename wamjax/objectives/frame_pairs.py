"""Actions regressed from the frames before and after them: what an inverse-dynamics model is trained on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange

from wamjax.batch import WamBatch
from wamjax.config.finetune import lora_config
from wamjax.config.inverse_dynamics import InverseDynamicsConfig
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Layout, build_layout
from wamjax.models.inverse_dynamics import InverseDynamicsModel
from wamjax.nn.lora import attach_lora
from wamjax.objectives.noising import action_mask
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class FramePairsObjective:
    """Mean squared error of normalised actions, over those that are there and have a frame on both sides.

    Source: UniPi (arXiv 2302.00111): mean squared error of controls.
    """

    config: RunConfig
    layout: Layout = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        for name in ("backbone", "vla", "gpt"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"config.inverse_dynamics and config.{name} are two models of one run: set one of them; the two "
                    "stages of a system are two runs"
                )
        if config.actions.modules != "none" or config.prefix.width:
            raise ConfigError(
                f"config.actions.modules={config.actions.modules}, config.prefix.width={config.prefix.width} belong to "
                "a backbone; set them to none and 0"
            )
        if config.parallel.context != 1 or config.parallel.tensor != 1:
            raise ConfigError(
                f"config.parallel.context={config.parallel.context}, tensor={config.parallel.tensor} would split "
                "sequences and layers, and config.inverse_dynamics has small convolutions; set both to 1: data and "
                "fsdp split the batch"
            )
        if config.data.video_statistics != "none":
            raise ConfigError(
                f"config.data.video_statistics={config.data.video_statistics}; config.inverse_dynamics reads pixels in "
                "[-1, 1]: set it to none"
            )
        object.__setattr__(self, "layout", build_layout(config))

    @property
    def settings(self) -> InverseDynamicsConfig:
        """The model's configuration."""
        assert self.config.inverse_dynamics is not None, "this objective is for inverse-dynamics models"
        return self.config.inverse_dynamics

    def make_model(self, key: PRNGKey) -> InverseDynamicsModel:
        """Makes the model, its low-rank updates included."""
        sizes = self.config.layout
        per_pair = sizes.actions_per_block // sizes.frames_per_block
        model = InverseDynamicsModel(key, self.settings, per_pair * self.config.data.action_dim)
        lora = lora_config(self.config.finetune)
        if lora is not None:
            attach_lora(model, key, lora)
        return model

    def draw_noise(self, key: PRNGKey, batch_size: int) -> jax.Array:
        """Returns nothing, one row per sample: this loss is not random."""
        return jnp.zeros((batch_size, 0))

    def losses(
        self, model: InverseDynamicsModel, batch: WamBatch, noise: jax.Array, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        """Returns the ``action`` loss; of ``observed`` the frames."""
        shown = batch if observed is None else observed
        squared = jnp.square(self.actions(model, shown.video) - batch.actions)
        mask = self._mask(batch)
        return {
            "action": StreamLoss(
                total=jnp.sum(jnp.where(mask, squared, 0.0), axis=(1, 2)),
                count=jnp.sum(mask, axis=(1, 2), dtype=jnp.float32),
            )
        }

    def actions(self, model: InverseDynamicsModel, video: jax.Array) -> jax.Array:
        """Returns fp32 actions ``[b a u]`` of frames uint8 ``[b f H W 3]``, in order."""
        return rearrange(model(video), "b p (k u) -> b (p k) u", u=self.config.data.action_dim)

    def counts(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns the number of values of all actions that carry a loss."""
        return {"action": jnp.sum(self._mask(batch), dtype=jnp.float32)}

    def total(self, losses: dict[str, StreamLoss]) -> jax.Array:
        """Returns the weighted mean."""
        return self.config.objective.action_weight * losses["action"].mean()

    def _mask(self, batch: WamBatch) -> jax.Array:
        """Returns which actions are there and lie between two real frames: bool ``[b a u]``."""
        pairs = batch.frame_mask[:, :-1] & batch.frame_mask[:, 1:]
        per_pair = batch.actions.shape[1] // pairs.shape[1]
        return action_mask(batch) & jnp.repeat(pairs, per_pair, axis=1)[..., None]
