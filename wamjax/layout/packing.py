"""Between role streams and the packed sequence: static slices, no gathers.

A *stream* holds the tokens of one role in the order of time; the packed sequence is the layout's token order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from wamjax.layout.segments import Role, Segment


def pack(segments: Sequence[Segment], streams: Mapping[Role, jax.Array]) -> jax.Array:
    """Lays role streams out as ``segments`` say.

    Args:
      segments: Segments in sequence order.
      streams: Role -> ``[b n_role d]``, holding exactly that role's tokens among ``segments``. Padding needs none.

    Returns:
      ``[b n d]``.
    """
    firsts = _first_starts(segments)
    like = next(iter(streams.values()))
    pieces = []
    for segment in segments:
        if segment.role is Role.PADDING:
            pieces.append(jnp.zeros((like.shape[0], segment.num_tokens, *like.shape[2:]), like.dtype))
            continue
        start = segment.start - firsts[segment.role]
        pieces.append(jax.lax.slice_in_dim(streams[segment.role], start, start + segment.num_tokens, axis=1))
    return jnp.concatenate(pieces, axis=1)


def unpack(segments: Sequence[Segment], x: jax.Array, role: Role) -> jax.Array:
    """Returns the stream of ``role`` from the packed ``x`` ``[b n ...]``: ``[b n_role ...]``."""
    pieces, offset = [], 0
    for segment in segments:
        if segment.role is role:
            pieces.append(jax.lax.slice_in_dim(x, offset, offset + segment.num_tokens, axis=1))
        offset += segment.num_tokens
    return jnp.concatenate(pieces, axis=1)


def _first_starts(segments: Sequence[Segment]) -> dict[Role, int]:
    """Returns for each role the stream index of its first token among ``segments``."""
    firsts: dict[Role, int] = {}
    for segment in segments:
        firsts[segment.role] = min(segment.start, firsts.get(segment.role, segment.start))
    return firsts
