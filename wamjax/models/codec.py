"""The patch codec: pixels to video tokens and back, without a learned VAE.

A token is one non-overlapping patch of one canvas frame, scaled to [-1, 1]. The codec is exact: decoding an encoded
clip gives the clip back.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from wamjax.types import VideoPixels, VideoTokens


def encode_patches(video: VideoPixels, patch: tuple[int, int, int]) -> VideoTokens:
    """Returns fp32 tokens ``[b t h w c]`` in [-1, 1] of uint8 ``video`` ``[b f H W 3]``; c = 3 x patch pixels."""
    scaled = video.astype(jnp.float32) / 127.5 - 1.0
    return rearrange(scaled, "b (t pt) (h ph) (w pw) c -> b t h w (pt ph pw c)", pt=patch[0], ph=patch[1], pw=patch[2])


def decode_patches(tokens: VideoTokens, patch: tuple[int, int, int]) -> jax.Array:
    """Returns uint8 pixels ``[b f H W 3]`` of tokens ``[b t h w c]``; values outside [-1, 1] are clipped."""
    pixels = rearrange(
        tokens, "b t h w (pt ph pw c) -> b (t pt) (h ph) (w pw) c", pt=patch[0], ph=patch[1], pw=patch[2]
    )
    return jnp.clip(jnp.round((pixels + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
