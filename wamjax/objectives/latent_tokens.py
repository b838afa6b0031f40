"""Latents as the tokens of a backbone with action modules: one patch of one latent frame each, and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from wamjax.layout import Segment
from wamjax.objectives.noising import select_frames

_PATCHES = "b t (h ph) (w pw) c -> b t h w (ph pw c)"


def patch_tokens(latents: jax.Array, patch: tuple[int, int, int]) -> jax.Array:
    """Returns fp32 ``[b t h w (ph pw c)]``, the values of every patch together, of ``[b t (h ph) (w pw) c]``."""
    return rearrange(latents.astype(jnp.float32), _PATCHES, ph=patch[1], pw=patch[2])


def unpatch_tokens(tokens: jax.Array, grid: tuple[int, int], patch: tuple[int, int, int]) -> jax.Array:
    """Returns ``[b t (h ph) (w pw) c]`` of tokens ``[b (t h w) (ph pw c)]`` with ``grid`` rows and columns a frame."""
    pattern = "b (t h w) (ph pw c) -> b t (h ph) (w pw) c"
    return rearrange(tokens, pattern, h=grid[0], w=grid[1], ph=patch[1], pw=patch[2])


def join_condition(
    tokens: jax.Array, condition: jax.Array | None, segments: tuple[Segment, ...], patch: tuple[int, int, int]
) -> jax.Array:
    """Returns patches ``[b n (p c)]`` whose channels are those of ``tokens`` and then of ``condition``.

    Args:
      tokens: ``[b n (p c)]`` of ``segments``.
      condition: ``[b t h w c]`` latents of the whole clip; None without.
      segments: Frames.
      patch: Latent frames (1), rows and columns of one token.
    """
    if condition is None:
        return tokens
    beside = select_frames(patch_tokens(condition, patch), segments)
    parts = [rearrange(part, "b n (p c) -> b n p c", p=patch[1] * patch[2]) for part in (tokens, beside)]
    return rearrange(jnp.concatenate(parts, axis=-1), "b n p c -> b n (p c)")
