"""Attention behind one front door: a schedule of rectangles in, one exact softmax per query out.

What the schedule does not hold is never computed, and no array grows as the square of the sequence: a rectangle with
many queries is taken a chunk of queries at a time. Kernels for other hardware register in ``KERNELS``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from wamjax.layout.schedule import Rectangle, Schedule, Span
from wamjax.types import Heads, KeyHeads

QUERY_CHUNK = 1024  # queries whose scores exist at one time


def attend(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    schedule: Schedule,
    *,
    key_mask: Bool[Array, "b m"] | None = None,
    kernel: str = "rectangles",
) -> Heads:
    """Softmax attention over the pairs of ``schedule``.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(e)) v_j over the keys j that the schedule shows to query i.

    Args:
      q: ``[b n k e]`` queries.
      k: ``[b m k e]`` keys.
      v: ``[b m k e]`` values.
      schedule: Which rectangles are attended; its sizes are n and m.
      key_mask: ``[b m]`` keys that are seen at all (padded text); None for all. A sample that shows no key gives the
        mean of its values.
      kernel: Key of ``KERNELS``.

    Returns:
      ``[b n k e]`` in the dtype of ``v``; zero for queries in no rectangle (padding).

    Raises:
      ValueError: The kernel is unknown, or the arrays do not have the schedule's sizes.
    """
    if kernel not in KERNELS:
        raise ValueError(f"attention kernel {kernel!r} is unknown; expected one of {sorted(KERNELS)}")
    if (q.shape[1], k.shape[1]) != (schedule.num_queries, schedule.num_keys):
        raise ValueError(
            f"attention got {q.shape[1]} queries and {k.shape[1]} keys; its schedule holds {schedule.num_queries} and "
            f"{schedule.num_keys}"
        )
    return KERNELS[kernel](q, k, v, schedule, key_mask)


def attend_rectangles(
    q: Heads, k: KeyHeads, v: KeyHeads, schedule: Schedule, key_mask: jax.Array | None = None
) -> Heads:
    """Attention as a list of dense rectangles, in plain XLA (any platform)."""
    pieces: list[tuple[Span, jax.Array]] = []
    for rectangle in schedule.rectangles:
        keys = (*rectangle.keys, *([rectangle.diagonal] if rectangle.diagonal else []))
        seen = None if key_mask is None else _take(key_mask, keys)
        out = _attend_rectangle(_take(q, rectangle.queries), _take(k, keys), _take(v, keys), rectangle, seen)
        offset = 0
        for start, stop in rectangle.queries:
            pieces.append(((start, stop), out[:, offset : offset + stop - start]))
            offset += stop - start
    return _lay_out(pieces, schedule.num_queries)


Kernel = Callable[[Heads, KeyHeads, KeyHeads, Schedule, jax.Array | None], Heads]
KERNELS: dict[str, Kernel] = {"rectangles": attend_rectangles}


def _attend_rectangle(
    q: jax.Array, k: jax.Array, v: jax.Array, rectangle: Rectangle, seen: jax.Array | None
) -> jax.Array:
    """Attends all queries to all keys (the last ones triangularly if there is a diagonal)."""
    num_queries, num_full = q.shape[1], k.shape[1] - (q.shape[1] if rectangle.diagonal else 0)

    def limits(first: int | jax.Array, count: int) -> jax.Array | None:
        return num_full + 1 + first + jnp.arange(count) if rectangle.diagonal else None

    if num_queries <= QUERY_CHUNK:
        return _softmax_attention(q, k, v, limits(0, num_queries), seen)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(first: jax.Array) -> jax.Array:
        queries = jax.lax.dynamic_slice_in_dim(q, first, QUERY_CHUNK, axis=1)
        return _softmax_attention(queries, k, v, limits(first, QUERY_CHUNK), seen)

    whole = num_queries // QUERY_CHUNK
    out = jax.lax.map(chunk, jnp.arange(whole) * QUERY_CHUNK)  # [chunks b n k e]
    out = jnp.moveaxis(out, 0, 1).reshape(q.shape[0], whole * QUERY_CHUNK, *q.shape[2:])
    rest = num_queries - whole * QUERY_CHUNK
    if not rest:
        return out
    tail = _softmax_attention(q[:, -rest:], k, v, limits(whole * QUERY_CHUNK, rest), seen)
    return jnp.concatenate([out, tail], axis=1)


def _softmax_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, limits: jax.Array | None, seen: jax.Array | None
) -> jax.Array:
    """Dense attention with fp32 softmax.

    Query i sees the first ``limits[i]`` keys if ``limits`` is given, and of those the ones ``seen`` ``[b m]`` shows.
    """
    scores = jnp.einsum("bnke,bmke->bknm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if limits is not None:
        scores = jnp.where(jnp.arange(k.shape[1]) < limits[:, None], scores, -jnp.inf)
    if seen is not None:
        scores = jnp.where(seen[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bknm,bmke->bnke", weights, v)


def _take(x: jax.Array, spans: Sequence[Span]) -> jax.Array:
    """Returns the tokens of ``spans`` along dim 1."""
    parts = [jax.lax.slice_in_dim(x, start, stop, axis=1) for start, stop in spans]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _lay_out(pieces: list[tuple[Span, jax.Array]], length: int) -> jax.Array:
    """Concatenates pieces by position, with zeros where there is none."""
    like, laid, offset = pieces[0][1], [], 0
    for (start, stop), piece in sorted(pieces, key=lambda item: item[0]):
        if start > offset:
            laid.append(jnp.zeros((like.shape[0], start - offset, *like.shape[2:]), like.dtype))
        laid.append(piece)
        offset = stop
    if offset < length:
        laid.append(jnp.zeros((like.shape[0], length - offset, *like.shape[2:]), like.dtype))
    return laid[0] if len(laid) == 1 else jnp.concatenate(laid, axis=1)
