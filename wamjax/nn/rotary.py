"""Rotary position embedding: 3-D for video tokens, 1-D over the full head dimension for other streams.

The head dimension's pairs are (j, j + e/2) ("rotate half"). Models that rotate neighbouring pairs (Wan) are the same
up to a permutation of the query and key columns, which belongs to weight import.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.layout import Pass


class Rotation(NamedTuple):
    """Rotation of every token and pair of head dims: fp32 ``[n e/2]`` cosines and sines, ``[b 1 n e/2]`` per sample."""

    cos: jax.Array | np.ndarray
    sin: jax.Array | np.ndarray


def split_head_dim(head_dim: int) -> tuple[int, int, int]:
    """Returns how many of ``head_dim`` dims rotate with (frame, row, column).

    Source: Wan 2.1, wan/modules/model.py: ``d - 4 (d // 6), 2 (d // 6), 2 (d // 6)``.
    """
    sixth = head_dim // 6
    return head_dim - 4 * sixth, 2 * sixth, 2 * sixth


def rotary_table(
    layout_pass: Pass,
    head_dim: int,
    theta: float,
    *,
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
    frame_step: float | jax.Array = 1.0,
) -> Rotation:
    """Returns the rotation of every token.

    angle(position, pair j of an axis with w dims) = position * theta_axis^(-2 j / w); the pairs of frame, row and
    column follow one another for video, and one axis spans all pairs otherwise. Angles are computed in fp64, those of
    frames in fp32 where ``frame_step`` is a traced array.

    Args:
      layout_pass: The pass whose tokens are placed.
      head_dim: Even head dimension e.
      theta: Base of the frequencies.
      scale: NTK-aware stretching of (frame, row, column): theta_axis = theta * scale^(w / (w - 2)).
      frame_step: Steps of the frame axis that one latent frame takes.

    Source: Wan 2.1, ``rope_params``; Cosmos-Predict, ``VideoRopePosition3DEmb`` (NTK scaling, frame rate).
    """
    positions, is_video = layout_pass.positions(), layout_pass.is_video()[:, None]
    dims = split_head_dim(head_dim)
    frames, rows, columns = (
        positions[:, axis, None] * _frequencies(width, _stretched(theta, scale[axis], width))
        for axis, width in enumerate(dims)
    )
    sequence = positions[:, :1] * _frequencies(head_dim, theta)
    xp: Any = np
    if isinstance(frame_step, jax.Array):
        xp, frames, frame_step = jnp, jnp.asarray(frames, jnp.float32), frame_step.astype(jnp.float32)
    frames = frames * frame_step
    angles = xp.where(is_video, xp.concatenate([frames, rows, columns], axis=-1), sequence)
    return Rotation(xp.cos(angles).astype(np.float32), xp.sin(angles).astype(np.float32))


def rotation_of(positions: jax.Array, head_dim: int, theta: float) -> Rotation:
    """Returns the rotation of tokens whose places differ from sample to sample, with a dim for heads.

    Args:
      positions: Int ``[b n]``, of one axis over all pairs.
      head_dim: Even head dimension e.
      theta: Base of the frequencies.
    """
    frequencies = _frequencies(head_dim, theta).astype(np.float32)
    angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def apply_rotary(x: jax.Array, rotation: Rotation, dtype: str) -> jax.Array:
    """Rotates ``x`` ``[b k n e]``, computed in fp32, and returns it in ``dtype``.

    In bf16 the input is rounded first (as Wan's own code does after the norm), and its halves are exchanged by a
    product with a signed permutation, which is exact: accelerators would copy fp32 halves instead.
    """
    cos, sin = (jnp.asarray(part) for part in rotation)
    if dtype != "bfloat16":
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(dtype)
    x = x.astype(dtype)
    cos, sin = (jnp.concatenate([part, part], axis=-1) for part in (cos, sin))
    turned = jnp.einsum("bkne,ef->bknf", x, jnp.asarray(_quarter_turn(x.shape[-1]), dtype))
    return (x.astype(jnp.float32) * cos + turned.astype(jnp.float32) * sin).astype(dtype)


def _quarter_turn(dims: int) -> np.ndarray:
    """Returns the matrix that maps (first half, second half) of a row to (-second half, first half)."""
    eye, zero = np.eye(dims // 2), np.zeros((dims // 2, dims // 2))
    return np.block([[zero, eye], [-eye, zero]])


def _frequencies(dims: int, theta: float) -> np.ndarray:
    return theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)


def _stretched(theta: float, scale: float, dims: int) -> float:
    """Returns the base of an axis with ``dims`` dims whose range is stretched ``scale`` times."""
    return theta if scale == 1.0 else theta * scale ** (dims / (dims - 2))
