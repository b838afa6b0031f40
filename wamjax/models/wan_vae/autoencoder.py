"""The Wan video autoencoder: clips to latents and back, whole or in chunks of time.

Owns the folding of pixels, the moments, the normalisation of latents and the loop over chunks. Exact to the reference,
which always works in chunks: everything is causal, so a clip taken whole gives the same.

Source: Wan Team, "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv 2503.20314), section 4.1;
``AutoencoderKLWan`` of diffusers. What differs: channels last, and clips the reference would silently shorten are
refused.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from wamjax.config.wan_vae import CLIP_STRIDE, WanVaeConfig
from wamjax.errors import ConfigError, DataError
from wamjax.models.wan_vae.blocks import Cache, CausalLayer
from wamjax.models.wan_vae.levels import Decoder, Encoder
from wamjax.nn.linear import Linear
from wamjax.types import PRNGKey

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # diffusers, DiagonalGaussianDistribution


class Moments(NamedTuple):
    """Diagonal normal distribution of the latents of a clip, fp32.

    Attributes:
      mean: ``[b t h w c]``; also the mode, which is what diffusion models are trained on.
      log_variance: ``[b t h w c]`` as the encoder gives it, without bounds.
    """

    mean: jax.Array
    log_variance: jax.Array

    def sample(self, key: PRNGKey) -> jax.Array:
        """Draws latents ``[b t h w c]``."""
        std = jnp.exp(0.5 * jnp.clip(self.log_variance, *LOG_VARIANCE_RANGE))
        return self.mean + std * jax.random.normal(key, self.mean.shape, self.mean.dtype)


class WanVae(nnx.Module):
    """Encoder, decoder and the two projections between them.

    A clip has f = 4 n + 1 frames. ``encode`` and ``decode`` take it whole (fastest, memory grows with its length) or
    in chunks of time (working memory does not); ``encode_step`` and ``decode_step`` take one chunk, for clips that
    arrive or leave piece by piece. All work under ``jit`` on arrays split over batch, rows and columns.
    """

    def __init__(self, key: PRNGKey, config: WanVaeConfig) -> None:
        """Makes the autoencoder of ``config``."""
        keys = jax.random.split(key, 4)
        channels, dtype = config.latent_channels, config.compute_dtype
        self.config = config
        self.encoder = Encoder(keys[0], config)
        self.moments = Linear(keys[1], (2 * channels, 2 * channels), (None, None), dtype=dtype)
        self.latents = Linear(keys[2], (channels, channels), (None, None), dtype=dtype)
        self.decoder = Decoder(keys[3], config)

    def encode(self, video: jax.Array, *, chunk: int | None = None) -> Moments:
        """Encodes a clip.

        Args:
          video: ``[b f H W 3]`` in [-1, 1]; f = 4 n + 1, H and W multiples of ``config.spatial_compression``.
          chunk: Frames taken at a time after the first, a multiple of 4; None takes the clip whole.

        Raises:
          DataError: The clip has another shape.
          ConfigError: ``chunk`` is not a positive multiple of 4.
        """
        self._check_video(video.shape, continues=False)
        _check_chunk(chunk, CLIP_STRIDE, "frames")
        return self._to_moments(_run(self.encoder, self._fold(video), chunk)[0])

    def encode_step(self, frames: jax.Array, cache: Cache = None, *, chunk: int | None = None) -> tuple[Moments, Cache]:
        """Encodes the next frames of a clip.

        Args:
          frames: ``[b f H W 3]``; f = 4 n + 1 without a cache, 4 n with one.
          cache: What the step before returned; None begins a clip.
          chunk: As ``encode``.

        Returns:
          The moments of these frames, and the cache for the next step.

        Raises:
          DataError: The frames have another shape.
          ConfigError: ``chunk`` is not a positive multiple of 4.
        """
        self._check_video(frames.shape, continues=cache is not None)
        _check_chunk(chunk, CLIP_STRIDE, "frames")
        features, cache = _run(self.encoder, self._fold(frames), chunk, cache)
        return self._to_moments(features), cache

    def decode(self, latents: jax.Array, *, chunk: int | None = None) -> jax.Array:
        """Decodes latents to a clip ``[b f H W 3]`` in [-1, 1]. Arguments and errors as ``decode_unclamped``."""
        return jnp.clip(self.decode_unclamped(latents, chunk=chunk), -1.0, 1.0)

    def decode_unclamped(self, latents: jax.Array, *, chunk: int | None = None) -> jax.Array:
        """Decodes latents to a clip ``[b f H W 3]`` that may leave [-1, 1]; fp32.

        Args:
          latents: ``[b t h w c]``, not normalised.
          chunk: Latent frames taken at a time after the first; None takes the clip whole.

        Raises:
          DataError: The latents have another shape.
          ConfigError: ``chunk`` is not positive.
        """
        self._check_latents(latents.shape)
        _check_chunk(chunk, 1, "latent frames")
        return self._unfold(_run(self.decoder, self.latents(latents), chunk)[0])

    def decode_step(self, latents: jax.Array, cache: Cache = None) -> tuple[jax.Array, Cache]:
        """Decodes the next latent frames of a clip, unclamped.

        Args:
          latents: ``[b t h w c]``, t any number.
          cache: What the step before returned; None begins a clip.

        Returns:
          The frames ``[b f H W 3]``, and the cache for the next step.

        Raises:
          DataError: The latents have another shape.
        """
        self._check_latents(latents.shape)
        pixels, cache = self.decoder(self.latents(latents), cache)
        return self._unfold(pixels), cache

    def normalise(self, latents: jax.Array) -> jax.Array:
        """Returns (latents - mean) / std, channel by channel: what diffusion models see."""
        mean, std = self._statistics()
        return (latents - mean) / std

    def denormalise(self, latents: jax.Array) -> jax.Array:
        """Returns latents x std + mean, channel by channel: what ``decode`` takes."""
        mean, std = self._statistics()
        return latents * std + mean

    def _statistics(self) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(self.config.latents_mean, jnp.float32), jnp.asarray(self.config.latents_std, jnp.float32)

    def _to_moments(self, features: jax.Array) -> Moments:
        return Moments(*jnp.split(self.moments(features).astype(jnp.float32), 2, axis=-1))

    def _fold(self, video: jax.Array) -> jax.Array:
        """Folds squares of pixels into channels, the column within a square before the row."""
        side = self.config.patch_size
        return rearrange(video, "b f (h row) (w col) c -> b f h w (c col row)", row=side, col=side)

    def _unfold(self, pixels: jax.Array) -> jax.Array:
        side = self.config.patch_size
        video = rearrange(pixels, "b f h w (c col row) -> b f (h row) (w col) c", row=side, col=side)
        return video.astype(jnp.float32)

    def _check_video(self, shape: tuple[int, ...], *, continues: bool) -> None:
        channels = self.config.in_channels // self.config.patch_size**2
        if len(shape) != 5 or shape[-1] != channels:
            raise DataError(f"video has shape {shape}; expected [batch frames height width {channels}]")
        self.config.check_clip(*shape[1:4], continues=continues)

    def _check_latents(self, shape: tuple[int, ...]) -> None:
        channels = self.config.latent_channels
        if len(shape) != 5 or shape[-1] != channels or not shape[1]:
            raise DataError(f"latents have shape {shape}; expected [batch frames height width {channels}]")


def _check_chunk(chunk: int | None, multiple: int, unit: str) -> None:
    if chunk is not None and (chunk < 1 or chunk % multiple):
        raise ConfigError(
            f"chunk={chunk} {unit}; expected a positive multiple of {multiple}, or None for the whole clip"
        )


def _run(step: CausalLayer, x: jax.Array, chunk: int | None, cache: Cache = None) -> tuple[jax.Array, Cache]:
    """Applies ``step`` to the first frame of a clip and then to ``chunk`` frames at a time, or to all frames at once.

    The loop is a scan whose carry is the cache, so only one chunk's activations exist at a time.
    """
    if chunk is None or (cache is None and x.shape[1] == 1):
        return step(x, cache)
    parts, begin = [], 0
    if cache is None:
        y, cache = step(x[:, :1], None)
        parts, begin = [y], 1
    count, rest = divmod(x.shape[1] - begin, chunk)

    def take(cache: Cache, index: jax.Array) -> tuple[Cache, jax.Array]:
        piece, cache = step(jax.lax.dynamic_slice_in_dim(x, begin + index * chunk, chunk, axis=1), cache)
        return cache, piece

    if count:  # of a clip shorter than a chunk there is nothing that a scan could cut
        cache, pieces = jax.lax.scan(take, cache, jnp.arange(count))
        parts.append(rearrange(pieces, "i b t h w c -> b (i t) h w c"))
    if rest:
        piece, cache = step(x[:, -rest:], cache)
        parts.append(piece)
    return jnp.concatenate(parts, axis=1), cache
