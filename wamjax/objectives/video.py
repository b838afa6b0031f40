"""Video pretraining: a clip of cached latents and a prompt in, the flow-matching loss of the whole clip out."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from wamjax.batch import WamBatch
from wamjax.config.backbone import VideoTransformerConfig
from wamjax.config.clip import patch_grid
from wamjax.config.finetune import lora_config
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Layout, build_layout
from wamjax.models.video_transformer import VideoTransformer, patchify
from wamjax.nn.lora import attach_lora
from wamjax.nn.modulation import TIMESTEP_IDS
from wamjax.objectives.flow_matching import add_noise, draw_times
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.types import PRNGKey


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipNoise:
    """The randomness of one loss.

    Attributes:
      times: fp32 ``[b]``, one per clip.
      weights: fp32 ``[b]``, the loss weight of each time.
      latents: ``[b t h w c]`` standard normal.
    """

    times: jax.Array
    weights: jax.Array
    latents: jax.Array


@dataclasses.dataclass(frozen=True)
class VideoObjective:
    """Denoises clips as wholes, one timestep per clip.

    loss = weight(t) |prediction - (noise - x_0)|^2, mean over the latents of the batch.

    Source: Wan (arXiv 2503.20314), section 4.2 (rectified flow on latents).
    """

    config: RunConfig
    layout: Layout = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        backbone = self.backbone
        if backbone.in_channels != backbone.out_channels or backbone.image_width or backbone.padding_mask:
            raise ConfigError(
                "config.backbone takes condition channels, an image or a padding mask, which formulation video does "
                "not have; pretrain a text-to-video backbone (wan2.1-t2v-14b)"
            )
        object.__setattr__(self, "layout", build_layout(self.config))

    @property
    def backbone(self) -> VideoTransformerConfig:
        """The model's configuration."""
        assert self.config.backbone is not None, "this objective is for backbones"
        return self.config.backbone

    def make_model(self, key: PRNGKey) -> VideoTransformer:
        """Makes the backbone, its low-rank updates included."""
        model, lora = VideoTransformer(key, self.backbone), lora_config(self.config.finetune)
        if lora is not None:
            attach_lora(model, key, lora)
        return model

    def draw_noise(self, key: PRNGKey, batch_size: int) -> ClipNoise:
        """Draws one time and the noise of each clip."""
        time_key, noise_key = jax.random.split(key)
        times, weights = draw_times(time_key, (batch_size,), self.config.objective)
        grid, patch = patch_grid(self.config), self.backbone.patch
        shape = tuple(size * step for size, step in zip(grid, patch, strict=True))
        noise = jax.random.normal(noise_key, (batch_size, *shape, self.backbone.out_channels))
        return ClipNoise(times=times, weights=weights, latents=noise)

    def losses(
        self, model: VideoTransformer, batch: WamBatch, noise: ClipNoise, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        """Returns the ``video`` loss. ``observed`` has no meaning here: nothing but the prompt is shown clean."""
        shown = batch if observed is None else observed
        layout_pass, patch = self.layout.full_pass(), self.backbone.patch
        x0, sample = (
            _pad(patchify(part.astype(jnp.float32), patch), layout_pass.num_tokens)
            for part in (batch.latents, noise.latents)
        )
        noised = add_noise(x0, sample, noise.times[:, None, None])
        prediction = model.predict(noised, TIMESTEP_IDS * noise.times[:, None], shown.text, layout_pass)
        squared = jnp.square(prediction - (sample - x0))
        is_real = jnp.arange(layout_pass.num_tokens) < self.layout.tokens_by_stream()["noisy_video"]
        per_clip = jnp.sum(jnp.where(is_real[:, None], squared, 0.0), axis=(1, 2))
        count = jnp.full_like(per_clip, self._values_per_clip())
        return {"video": StreamLoss(total=noise.weights * per_clip, count=count)}

    def counts(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns the number of values of all clips."""
        return {"video": jnp.float32(batch.size * self._values_per_clip())}

    def total(self, losses: dict[str, StreamLoss]) -> jax.Array:
        """Returns the weighted mean."""
        return self.config.objective.video_weight * losses["video"].mean()

    def _values_per_clip(self) -> int:
        """Returns how many values of a clip's latents carry a loss: all of them."""
        values = math.prod(self.backbone.patch) * self.backbone.out_channels
        return self.layout.tokens_by_stream()["noisy_video"] * values


def _pad(tokens: jax.Array, length: int) -> jax.Array:
    """Returns ``[b n c]`` with zeros appended along the tokens up to ``length``."""
    return jnp.pad(tokens, ((0, 0), (0, length - tokens.shape[1]), (0, 0)))
