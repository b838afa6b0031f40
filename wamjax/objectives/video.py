"""Video pretraining: a clip of cached latents and a prompt in, the flow-matching loss of the whole clip out."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

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

    loss = weight(t) |prediction - (noise - x_0)|^2, mean over the latents of the batch that are noised: all of them, or
    those after the first frame where that is held clean (``config.layout.noisy_first_frame``).

    Source: Wan (arXiv 2503.20314), section 4.2 (rectified flow on latents); a held first frame at t = 0 is that of Wan
    2.2's text-and-image-to-video model.
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
        """Returns the ``video`` loss; of ``observed`` the prompt, and the first frame where that is held."""
        shown = batch if observed is None else observed
        x0, sample = self.tokens(batch.latents), self.tokens(noise.latents)
        noised = self.hold(add_noise(x0, sample, noise.times[:, None, None]), self.tokens(shown.latents))
        prediction = self.predict(model, noised, TIMESTEP_IDS * noise.times, shown.text)
        squared = jnp.square(prediction - (sample - x0))
        per_clip = jnp.sum(jnp.where(self._is_noised()[:, None], squared, 0.0), axis=(1, 2))
        count = jnp.full_like(per_clip, self._values_per_clip())
        return {"video": StreamLoss(total=noise.weights * per_clip, count=count)}

    def counts(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns the number of values of all clips."""
        return {"video": jnp.float32(batch.size * self._values_per_clip())}

    def total(self, losses: dict[str, StreamLoss]) -> jax.Array:
        """Returns the weighted mean."""
        return self.config.objective.video_weight * losses["video"].mean()

    def tokens(self, latents: jax.Array) -> jax.Array:
        """Returns fp32 tokens ``[b n c]`` of latents ``[b t h w c]``, padding included."""
        return _pad(patchify(latents.astype(jnp.float32), self.backbone.patch), self.layout.num_tokens)

    def latents(self, tokens: jax.Array) -> jax.Array:
        """Returns the latents ``[b t h w c]`` of tokens ``[b n c]``: what ``tokens`` undoes."""
        (t, h, w), (pt, ph, pw) = patch_grid(self.config), self.backbone.patch
        pattern = "b (t h w) (pt ph pw c) -> b (t pt) (h ph) (w pw) c"
        return rearrange(tokens[:, : t * h * w], pattern, t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)

    def hold(self, tokens: jax.Array, known: jax.Array) -> jax.Array:
        """Returns ``tokens`` ``[b n c]`` with those of ``known`` in the place of a first frame that is held."""
        first = self.layout.tokens_by_stream().get("clean_video", 0)
        return jnp.concatenate([known[:, :first], tokens[:, first:]], axis=1) if first else tokens

    def predict(self, model: VideoTransformer, tokens: jax.Array, ids: jax.Array, text: jax.Array) -> jax.Array:
        """Returns the velocity ``[b n c]`` of ``tokens`` at timestep ids ``[b]``; a frame that is held is at 0."""
        layout_pass, slots = self.layout.full_pass(), ids[:, None]
        if "clean_video" not in self.layout.tokens_by_stream():
            return model.predict(tokens, slots, text, layout_pass)
        slots = jnp.concatenate([jnp.zeros_like(slots), slots], axis=1)
        return model.predict(tokens, slots, text, layout_pass, runs=layout_pass.slot_runs())

    def _is_noised(self) -> np.ndarray:
        """Returns which tokens are noised and carry a loss: bool ``[n]``."""
        return np.repeat([s.has_loss for s in self.layout.segments], [s.num_tokens for s in self.layout.segments])

    def _values_per_clip(self) -> int:
        """Returns how many values of a clip's latents carry a loss."""
        values = math.prod(self.backbone.patch) * self.backbone.out_channels
        return self.layout.tokens_by_stream()["noisy_video"] * values


def _pad(tokens: jax.Array, length: int) -> jax.Array:
    """Returns ``[b n c]`` with zeros appended along the tokens up to ``length``."""
    return jnp.pad(tokens, ((0, 0), (0, length - tokens.shape[1]), (0, 0)))
