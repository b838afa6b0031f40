"""Generating clips with a pretrained video backbone: from a prompt, or from a prompt and a first frame.

Owns how a first frame enters each family of models and what is held fixed while sampling. Text and image encoders,
files and pictures are the caller's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from wamjax.config.backbone import VideoTransformerConfig
from wamjax.config.wan_vae import CLIP_STRIDE, WanVaeConfig
from wamjax.errors import ConfigError, DataError
from wamjax.models.wan_vae import WanVae
from wamjax.sampling.solvers import Schedule, guided, sample

_FRAMES_PER_LATENT = 4  # mask channels of image-to-video models: one per frame of a latent frame


@runtime_checkable
class Backbone(Protocol):
    """What predicts the velocity of latents: ``VideoTransformer``, with its parameters."""

    def __call__(self, latents: jax.Array, ids: jax.Array, text: jax.Array, *, image: jax.Array | None) -> jax.Array:
        """Returns the velocity ``[b t h w c]`` of ``latents`` ``[b t h w c_in]`` at ids ``[b]`` or ``[b t]``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Size of a clip in pixels and frames."""

    frames: int
    height: int
    width: int

    def latent_shape(self, vae: WanVaeConfig, patch: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """Returns (t, h, w, c) of the clip's latents.

        Raises:
          ConfigError: The clip does not divide into latents, or these not into the transformer's patches.
        """
        if self.frames < 1 or self.frames % CLIP_STRIDE != 1:
            raise ConfigError(f"--frames={self.frames}; a clip has 4 n + 1 frames (1, 5, 9, ... 81)")
        grid = vae.spatial_compression
        for name, size, step in (("height", self.height, patch[1]), ("width", self.width, patch[2])):
            if size < 1 or size % (grid * step):
                raise ConfigError(f"--{name}={size}; expected a multiple of {grid * step} for this model")
        frames = 1 + (self.frames - 1) // vae.temporal_compression
        return frames, self.height // grid, self.width // grid, vae.latent_channels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """A first frame, as one family of models takes it.

    Attributes:
      channels: ``[b t h w c]`` beside the noisy latents at every step: a mask and the frame's latents (Wan I2V); None.
      first_frame: ``[b 1 h w c]`` normalised latents in the place of the first latent frame, told to be at t = 0
        (Wan 2.2 TI2V); None.
      image: Tokens of the image encoder ``[b m i]``; None for models without an image branch.
    """

    channels: jax.Array | None = None
    first_frame: jax.Array | None = None
    image: jax.Array | None = None


def takes_condition_channels(config: VideoTransformerConfig) -> bool:
    """Returns whether the model reads a first frame from channels of its own (Wan I2V)."""
    return config.in_channels > config.out_channels


def condition_on_frame(
    vae: WanVae, config: VideoTransformerConfig, shape: ClipShape, frame: jax.Array, image: jax.Array | None
) -> Condition:
    """Encodes a first frame.

    Args:
      vae: The model's autoencoder.
      config: The transformer, whose channels say how it takes a first frame.
      shape: The clip to come.
      frame: ``[b H W 3]`` in [-1, 1].
      image: Tokens of the image encoder, for models with an image branch.

    Raises:
      DataError: The frame has another size than the clip, or the channels are not those of a known model.
    """
    if frame.shape[1:3] != (shape.height, shape.width):
        raise DataError(
            f"the image is {frame.shape[2]} x {frame.shape[1]} pixels (width x height); the clip is "
            f"{shape.width} x {shape.height}: resize the image or change --width and --height"
        )
    if not takes_condition_channels(config):
        return Condition(first_frame=vae.normalise(vae.encode(frame[:, None]).mean), image=image)
    num_latent = vae.config.latent_channels
    if config.in_channels != 2 * num_latent + _FRAMES_PER_LATENT:
        raise DataError(
            f"the transformer takes {config.in_channels} channels; a first frame needs {num_latent} of noise, "
            f"{_FRAMES_PER_LATENT} of mask and {num_latent} of its latents"
        )
    rest = jnp.zeros((frame.shape[0], shape.frames - 1, *frame.shape[1:]), frame.dtype)
    clip = jnp.concatenate([frame[:, None], rest], axis=1)
    latents = vae.normalise(vae.encode(clip, chunk=_FRAMES_PER_LATENT).mean)
    mask = jnp.zeros((*latents.shape[:-1], _FRAMES_PER_LATENT), latents.dtype).at[:, 0].set(1.0)
    return Condition(channels=jnp.concatenate([mask, latents], axis=-1), image=image)


def generate_latents(
    backbone: Backbone,
    schedule: Schedule,
    noise: jax.Array,
    text: jax.Array,
    negative_text: jax.Array,
    *,
    guidance: float | Callable[[jax.Array], jax.Array],
    condition: Condition | None = None,
) -> jax.Array:
    """Samples normalised latents.

    Args:
      backbone: Predicts velocities.
      schedule: Noise levels and solver.
      noise: Standard normal ``[b t h w c]``.
      text: Encoded prompts ``[b l d]``.
      negative_text: Encoded negative (or empty) prompts.
      guidance: Scale of classifier-free guidance, or a function of the timestep id; 1 for none.
      condition: A first frame; None generates from the prompt alone.

    Returns:
      fp32 ``[b t h w c]``.

    Source: diffusers, ``WanPipeline`` and ``WanImageToVideoPipeline`` (``expand_timesteps`` is ``first_frame`` here).
    """
    condition = condition or Condition()
    told = {"text": text, "channels": condition.channels, "image": condition.image, "first": condition.first_frame}

    def predict(latents: jax.Array, time: jax.Array, told: dict[str, jax.Array | None]) -> jax.Array:
        batch_size, num_frames = latents.shape[:2]
        encoded = told["text"]
        assert encoded is not None
        if told["first"] is not None:
            latents = hold_first_frame(latents, told["first"])
            ids = jnp.full((batch_size, num_frames), time).at[:, 0].set(0.0)
        else:
            ids = jnp.full((batch_size,), time)
        if told["channels"] is not None:
            latents = jnp.concatenate([latents, told["channels"]], axis=-1)
        return backbone(latents, ids, encoded, image=told["image"])

    velocity = guided(predict, told, {**told, "text": negative_text}, guidance)
    latents = sample(velocity, noise, schedule)
    return latents if condition.first_frame is None else hold_first_frame(latents, condition.first_frame)


def hold_first_frame(latents: jax.Array, first: jax.Array) -> jax.Array:
    """Returns ``latents`` with ``first`` in the place of the first latent frame."""
    return jnp.concatenate([first.astype(latents.dtype), latents[:, 1:]], axis=1)
