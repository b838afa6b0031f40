"""Cosmos Policy: a video model whose latent frames are pictures, states, actions and a value, all denoised by one rule.

The frames of a sample, V views: blank, state, V pictures, actions, later state, V later pictures, value. What a sample
is asked (``WamBatch.question``) decides which of them are given: everything up to the pictures always, the actions too
where the world is to be predicted, and all but the value where that is. Given frames stay clean and carry no loss.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.batch import WamBatch
from wamjax.config.backbone import VideoTransformerConfig
from wamjax.config.clip import latent_grid, token_grid
from wamjax.config.finetune import lora_config
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Layout, build_layout
from wamjax.models.video_transformer import VideoTransformer
from wamjax.nn.lora import attach_lora
from wamjax.objectives.flow_matching import add_noise, draw_edm_times
from wamjax.objectives.image_frames import tile_vector
from wamjax.objectives.noising import action_mask
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.objectives.video import ClipNoise
from wamjax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class LatentFramesObjective:
    """Denoises the frames that are not given, at one time per sample.

    loss = |prediction - (noise - x_0)|^2, mean over the values of each kind of frame. This is EDM's loss for the
    parameterisation of Cosmos-Predict2: with t = sigma / (sigma + 1) its network predicts the velocity, and the weight
    (1 + sigma)^2 / sigma^2 of the denoised sample is 1 for it.

    Source: Cosmos Policy's released code, on Cosmos-Predict2-2B. What differs: kinds of frames have a weight each,
    where the released loss is one mean.
    """

    config: RunConfig
    layout: Layout = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        backbone, sizes = self.backbone, self.config.layout
        if backbone.in_channels != backbone.out_channels + 1 or backbone.image_width is not None:
            raise ConfigError(
                f"config.backbone.in_channels={backbone.in_channels} with out_channels={backbone.out_channels}; "
                "formulation latent_frames needs one more channel, which says what is given, and no image branch "
                "(cosmos-predict2-2b-video2world)"
            )
        if sizes.states_per_block != 2 or sizes.num_blocks != 1:
            raise ConfigError(
                f"config.layout.num_blocks={sizes.num_blocks}, states_per_block={sizes.states_per_block}; formulation "
                "latent_frames has one block and two states, now and later: set them to 1 and 2"
            )
        if sizes.pad_multiple != 1 or sizes.pad_unit != 1:
            raise ConfigError(
                f"config.layout.pad_multiple={sizes.pad_multiple}, pad_unit={sizes.pad_unit}; formulation "
                "latent_frames is not padded: set both to 1"
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
        """Draws one time and the noise of each sample."""
        time_key, noise_key = jax.random.split(key)
        times = draw_edm_times(time_key, (batch_size,), self.config.objective)
        patch = self.backbone.patch
        shape = tuple(size * step for size, step in zip(token_grid(self.config), patch, strict=True))
        noise = jax.random.normal(noise_key, (batch_size, *shape, self.backbone.out_channels))
        return ClipNoise(times=times, weights=jnp.ones_like(times), latents=noise)

    def losses(
        self, model: VideoTransformer, batch: WamBatch, noise: ClipNoise, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        """Returns ``video``, ``action``, ``state`` and ``value`` losses; of ``observed`` what is given."""
        shown = batch if observed is None else observed
        x0 = self.frames(batch)
        noised = add_noise(x0, noise.latents, noise.times[:, None, None, None, None])
        predicted = self.predict(model, noised, self.frames(shown), self.given(batch), noise.times, shown.text)
        squared = jnp.square(predicted - (noise.latents - x0))
        losses = {}
        for name, mask in self._masks(batch).items():
            wide = jnp.broadcast_to(mask, squared.shape)
            axes = tuple(range(1, squared.ndim))
            losses[name] = StreamLoss(
                total=jnp.sum(squared * wide, axis=axes), count=jnp.sum(wide, axis=axes, dtype=jnp.float32)
            )
        return losses

    def predict(
        self,
        model: VideoTransformer,
        noised: jax.Array,
        clean: jax.Array,
        given: jax.Array,
        times: jax.Array,
        text: jax.Array,
    ) -> jax.Array:
        """Returns the velocity fp32 ``[b t h w c]`` of all frames.

        Args:
          model: The backbone.
          noised: ``[b t h w c]`` at t.
          clean: ``[b t h w c]``: what given frames are.
          given: bool ``[b t]``.
          times: fp32 ``[b]``: t in (0, 1), which the network is told itself, not an id of a grid.
          text: ``[b l text_width]``.
        """
        given = given[:, :, None, None, None]
        seen = jnp.where(given, clean, noised)
        channel = jnp.broadcast_to(given, (*seen.shape[:-1], 1)).astype(seen.dtype)
        padding = jnp.zeros_like(channel) if self.backbone.padding_mask else None
        inputs = jnp.concatenate([seen, channel], axis=-1)
        return model(inputs, times, text, padding_mask=padding, layout_pass=self.layout.full_pass())

    def counts(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns the number of values of each kind of frame that carry a loss."""
        *_, height, width = latent_grid(self.config)
        shape = (batch.size, self._num_frames, height, width, self.backbone.out_channels)
        return {
            name: jnp.sum(jnp.broadcast_to(mask, shape), dtype=jnp.float32) for name, mask in self._masks(batch).items()
        }

    def total(self, losses: dict[str, StreamLoss]) -> jax.Array:
        """Returns the weighted sum of the masked means."""
        factors = self.config.objective
        future = losses["video"].mean() + losses["state"].mean()
        return (
            factors.video_weight * future
            + factors.action_weight * losses["action"].mean()
            + factors.value_weight * losses["value"].mean()
        )

    def frames(self, batch: WamBatch) -> jax.Array:
        """Returns the clean latent frames fp32 ``[b t h w c]`` of ``batch``."""
        _, height, width = latent_grid(self.config)
        frame = (height, width, self.backbone.out_channels)
        pictures = batch.latents.astype(jnp.float32)
        now, later = jnp.split(pictures, 2, axis=1)
        state = batch.state * batch.state_mask
        vectors = (state[:, 0], batch.actions.reshape(batch.size, -1), state[:, 1], batch.value[:, None])
        first, actions, second, value = (tile_vector(vector, frame)[:, None] for vector in vectors)
        return jnp.concatenate([jnp.zeros_like(first), first, now, actions, second, later, value], axis=1)

    def given(self, batch: WamBatch) -> jax.Array:
        """Returns which frames each sample is given: bool ``[b t]``."""
        index, action = np.arange(self._num_frames), self._action_frame
        last = np.array([action - 1, action, self._num_frames - 2])  # by question
        return jnp.asarray(index) <= jnp.asarray(last)[batch.question][:, None]

    @property
    def _action_frame(self) -> int:
        return 2 + self.config.layout.frames_per_block

    @property
    def _num_frames(self) -> int:
        return token_grid(self.config)[0] * self.backbone.patch[0]

    def _masks(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns what carries a loss, by kind of frame: bool, broadcast to ``[b t h w c]``."""
        index, action = np.arange(self._num_frames), self._action_frame
        asked = ~self.given(batch)
        # An action that is masked (beyond the episode, or a dim the robot lacks) is a part of a frame's values.
        *_, height, width = latent_grid(self.config)
        frame = (height, width, self.backbone.out_channels)
        real = tile_vector(action_mask(batch).reshape(batch.size, -1).astype(jnp.float32), frame)[:, None] > 0
        kinds = {
            "video": (index > action + 1) & (index < self._num_frames - 1),
            "state": index == action + 1,
            "value": index == self._num_frames - 1,
        }
        masks = {name: (asked & kind)[:, :, None, None, None] for name, kind in kinds.items()}
        masks["action"] = (asked & (index == action))[:, :, None, None, None] & real
        return masks
