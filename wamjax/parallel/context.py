"""Context parallelism: the exchanges of heads among devices that each hold a part of the sequence.

Which method is used, and with how many devices, is ``parallel.context_plan``'s.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from wamjax.parallel.context_plan import CONTEXT
from wamjax.parallel.explicit import row_major
from wamjax.parallel.rules import active_placement, constrain


def split_heads(x: jax.Array, ways: int) -> jax.Array:
    """Returns ``[b k/ways n ways e]``: this device's heads of the tokens of ``ways`` neighbouring devices.

    On whole arrays, where ``ways`` is the context axis, it is a sharding constraint.
    """
    placement = active_placement()
    if placement is None or not placement.is_local:
        return constrain(x, "batch", "attention_heads", None, None)
    if ways == 1:
        return x
    batch, heads, tokens, dims = x.shape
    parts = _exchange(x.reshape(batch, ways, heads // ways, tokens, dims))
    return row_major(jnp.swapaxes(parts, 1, 2).reshape(batch, heads // ways, ways * tokens, dims))


def join_heads(x: jax.Array, ways: int) -> jax.Array:
    """Returns ``[b k n e]`` with this device's part of the sequence and all heads: the inverse of ``split_heads``."""
    placement = active_placement()
    if placement is None or not placement.is_local:
        return constrain(x, "batch", "attention_heads", None, None)
    if ways == 1:
        return x
    batch, heads, tokens, dims = x.shape
    parts = jnp.swapaxes(row_major(x).reshape(batch, heads, ways, tokens // ways, dims), 1, 2)
    return _exchange(parts).reshape(batch, ways * heads, tokens // ways, dims)


def _exchange(parts: jax.Array) -> jax.Array:
    """Sends part i of ``[b ways k n e]`` to the i-th of ``ways`` neighbours, and returns what they sent, in order.

    What is sent and what arrives is contiguous: the one transposition of an exchange stays outside.
    """
    ways, size = parts.shape[1], jax.lax.axis_size(CONTEXT)
    groups = None if ways == size else [list(range(first, first + ways)) for first in range(0, size, ways)]
    arrived = jax.lax.all_to_all(
        row_major(parts), CONTEXT, split_axis=1, concat_axis=1, axis_index_groups=groups, tiled=True
    )
    return row_major(arrived)
