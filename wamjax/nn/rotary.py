"""Rotary position embedding: 3-D for video tokens, 1-D over the full head dimension for other streams.

The head dimension's pairs are (j, j + e/2) ("rotate half"). Models that rotate neighbouring pairs (Wan) are the same
up to a permutation of the query and key columns, which belongs to weight import.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.layout import Pass


def split_head_dim(head_dim: int) -> tuple[int, int, int]:
    """Returns how many of ``head_dim`` dims rotate with (frame, row, column).

    Source: Wan 2.1, wan/modules/model.py: ``d - 4 (d // 6), 2 (d // 6), 2 (d // 6)``.
    """
    sixth = head_dim // 6
    return head_dim - 4 * sixth, 2 * sixth, 2 * sixth


def rotary_angles(layout_pass: Pass, head_dim: int, theta: float) -> np.ndarray:
    """Returns the rotation angles of every token.

    angle(position, pair j of an axis with w dims) = position * theta^(-2 j / w); the pairs of frame, row and column
    follow one another for video, and one axis spans all pairs otherwise.

    Args:
      layout_pass: The pass whose tokens are placed.
      head_dim: Even head dimension e.
      theta: Base of the frequencies.

    Returns:
      float32 ``[n e/2]``, in radians; computed in fp64.
    """
    positions = layout_pass.positions().astype(np.float64)
    video = np.concatenate(
        [positions[:, axis, None] * _frequencies(dims, theta) for axis, dims in enumerate(split_head_dim(head_dim))],
        axis=-1,
    )
    sequence = positions[:, :1] * _frequencies(head_dim, theta)
    return np.where(layout_pass.is_video()[:, None], video, sequence).astype(np.float32)


def apply_rotary(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates ``x`` ``[b n k e]`` by ``angles`` ``[n e/2]``, in fp32; returns fp32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def _frequencies(dims: int, theta: float) -> np.ndarray:
    return theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)
