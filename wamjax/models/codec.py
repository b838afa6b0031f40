"""The patch codec: pixels to video tokens and back, without a learned VAE.

A token is one non-overlapping patch of one canvas frame, less the mean canvas of the training data and divided by the
training data's standard deviation: what a VAE's latent normalisation does for latents. A static scene then leaves
tokens near zero, and what moves stands out. The codec is exact: decoding an encoded clip gives the clip back.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from wamjax.batch import VideoStatistics
from wamjax.types import VideoPixels, VideoTokens


class Statistic(nnx.Variable):
    """A constant of the data that is saved with the parameters and never trained."""


class PatchCodec(nnx.Module):
    """Encodes canvas frames as normalised patch tokens.

    Attributes:
      mean: fp32 ``[h w c]``: mean canvas, cut into patches, in pixel levels (0..255); of one patch, it is that of all.
      std: fp32 ``[1]``: standard deviation around it, in pixel levels.
    """

    def __init__(self, patch: tuple[int, int, int], canvas: tuple[int, int]) -> None:
        """Makes the codec of a ``canvas`` (height, width); it scales 0..255 to [-1, 1] until it is calibrated."""
        self.patch = patch
        mean = _cut(jnp.full((1, patch[0], *canvas, 3), 127.5), patch)[0, 0]
        self.mean = Statistic(mean, axes=(None, None, None))
        self.std = Statistic(jnp.full((1,), 127.5), axes=(None,))

    def calibrate(self, statistics: VideoStatistics) -> None:
        """Takes over the statistics of the training data."""
        self.mean.set_value(_cut(jnp.asarray(statistics.mean, jnp.float32)[None, None], self.patch)[0, 0])
        self.std.set_value(jnp.reshape(jnp.asarray(statistics.std, jnp.float32), (1,)))

    def encode(self, video: VideoPixels) -> VideoTokens:
        """Returns fp32 tokens ``[b t h w c]`` of uint8 ``video`` ``[b f H W 3]``; c = 3 x patch pixels."""
        mean, std = self._statistics()
        return (_cut(video.astype(jnp.float32), self.patch) - mean) / std

    def decode(self, tokens: VideoTokens) -> jax.Array:
        """Returns uint8 pixels ``[b f H W 3]`` of tokens ``[b t h w c]``; values outside 0..255 are clipped."""
        mean, std = self._statistics()
        pt, ph, pw = self.patch
        pixels = rearrange(tokens * std + mean, "b t h w (pt ph pw c) -> b (t pt) (h ph) (w pw) c", pt=pt, ph=ph, pw=pw)
        return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)

    def _statistics(self) -> tuple[jax.Array, jax.Array]:
        return jax.lax.stop_gradient((self.mean[...], self.std[...]))


def _cut(video: jax.Array, patch: tuple[int, int, int]) -> jax.Array:
    """Cuts ``[b f H W 3]`` into patches ``[b t h w c]``."""
    pt, ph, pw = patch
    return rearrange(video, "b (t pt) (h ph) (w pw) c -> b t h w (pt ph pw c)", pt=pt, ph=ph, pw=pw)
