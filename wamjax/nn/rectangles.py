"""Attention as a list of dense rectangles, in plain XLA: any platform, exact, and no array of all pairs.

A rectangle with many queries is taken a chunk of queries at a time, and the backward pass computes its scores again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from wamjax.layout.kernels import QUERY_CHUNK
from wamjax.layout.schedule import Rectangle, Schedule, Span, span_length
from wamjax.nn.kernel import ATTENTION_OUT, Kernel, Normalised
from wamjax.types import Heads, KeyHeads

# Name by which a rematerialisation policy keeps the scores of rectangles with too few queries for chunks.
ATTENTION_SCORES = "attention_scores"


def attend_rectangles(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    schedule: Schedule,
    key_mask: jax.Array | None = None,
    *,
    name: str = ATTENTION_OUT,
) -> Heads:
    """Attention as a list of dense rectangles, in plain XLA (any platform); a policy keeps its output by ``name``."""
    pieces: list[tuple[Span, jax.Array]] = []
    for rectangle in schedule.rectangles:
        keys = keys_of(rectangle)
        seen = None if key_mask is None else take(key_mask, keys, axis=1)
        out = _attend_rectangle(take(q, rectangle.queries), take(k, keys), take(v, keys), rectangle, seen, name)
        pieces += spread(rectangle.queries, out)
    return lay_out(pieces, schedule.num_queries)


def forward(q: jax.Array, k: jax.Array, v: jax.Array, schedule: Schedule) -> Normalised:
    """Attends ``q`` to ``k`` and ``v`` (``nn.kernel.Forward``)."""
    outs: list[tuple[Span, jax.Array]] = []
    lses: list[tuple[Span, jax.Array]] = []
    for rectangle in schedule.rectangles:
        keys = keys_of(rectangle)
        for rows, limits in _chunks(rectangle):
            queries = _chunk(take(q, rows), _chunk_size(rows))
            out, highest, scale = _chunk_outputs(queries, take(k, keys), take(v, keys), limits, None)
            lse = _unchunk((highest - jnp.log(scale))[..., None])
            outs += spread(rows, out)
            lses += spread(rows, lse)
    if not outs:
        return Normalised(jnp.zeros_like(q, v.dtype), jnp.full(q.shape[:3], -jnp.inf))
    n = schedule.num_queries
    return Normalised(lay_out(outs, n), lay_out(lses, n, fill=-jnp.inf)[..., 0])


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, whole: Normalised, grad: jax.Array, schedule: Schedule
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of q, k and v (``nn.kernel.Backward``), those of k and v in fp32."""
    grads_q: list[tuple[Span, jax.Array]] = []
    grad_k, grad_v = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for rectangle in schedule.rectangles:
        keys = keys_of(rectangle)
        for rows, limits in _chunks(rectangle):
            size = _chunk_size(rows)
            lse = _chunk(take(whole.lse[..., None], rows), size)[..., 0]
            queries, outs = _chunk(take(q, rows), size), take(whole.out, rows)
            kept = (queries, take(k, keys), take(v, keys), limits, None, outs, lse, jnp.ones_like(lse))
            by_query, by_key, by_value, *_ = _attend_chunks_backward(kept, take(grad, rows))
            grads_q += spread(rows, _unchunk(by_query))
            grad_k, grad_v = _add_at(grad_k, keys, by_key), _add_at(grad_v, keys, by_value)
    return lay_out(grads_q, schedule.num_queries) if grads_q else jnp.zeros_like(q), grad_k, grad_v


RECTANGLES = Kernel(forward, backward)


def _attend_rectangle(
    q: jax.Array, k: jax.Array, v: jax.Array, rectangle: Rectangle, seen: jax.Array | None, name: str
) -> jax.Array:
    """Attends all queries to all keys (the last ones triangularly if there is a diagonal)."""
    num_queries, num_full = q.shape[2], k.shape[2] - (q.shape[2] if rectangle.diagonal else 0)
    num_chunks, rest = divmod(num_queries, QUERY_CHUNK) if num_queries > QUERY_CHUNK else (0, num_queries)
    first_rest = num_chunks * QUERY_CHUNK
    limits = num_full + 1 + jnp.arange(num_queries) if rectangle.diagonal else None
    pieces = []
    if num_chunks:
        chunked = None if limits is None else limits[:first_rest].reshape(num_chunks, QUERY_CHUNK)
        pieces.append(_attend_chunks(_chunk(q[:, :, :first_rest], QUERY_CHUNK), k, v, chunked, seen, name))
    if rest:
        limited = None if limits is None else limits[first_rest:]
        pieces.append(_softmax_attention(q[:, :, first_rest:], k, v, limited, seen, name))
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=2)


def _softmax_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, limits: jax.Array | None, seen: jax.Array | None, name: str
) -> jax.Array:
    """Dense attention with fp32 softmax, heads first: ``[b k n e]``.

    Query i sees the first ``limits[i]`` keys if ``limits`` is given, and of those the ones ``seen`` ``[b m]`` shows.
    """
    scores = checkpoint_name(_scores(q, k, limits, seen), ATTENTION_SCORES)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return checkpoint_name(jnp.einsum("bknm,bkme->bkne", weights, v), name)


def _scores(q: jax.Array, k: jax.Array, limits: jax.Array | None, seen: jax.Array | None) -> jax.Array:
    """Returns fp32 scores ``[b k n m]``, hidden pairs at (or next to) minus infinity."""
    scores = jnp.einsum("bkne,bkme->bknm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if limits is not None:
        scores = jnp.where(jnp.arange(k.shape[2]) < limits[:, None], scores, -jnp.inf)
    if seen is not None:
        scores = jnp.where(seen[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    return scores


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend_chunks(
    q: jax.Array, k: jax.Array, v: jax.Array, limits: jax.Array | None, seen: jax.Array | None, name: str
) -> jax.Array:
    """Dense attention a chunk of queries at a time, whose backward pass computes the scores again.

    Args:
      q: ``[chunks b k c e]``.
      k: ``[b k m e]``.
      v: ``[b k m e]``.
      limits: ``[chunks c]``, how many keys each query sees; None for all.
      seen: bool ``[b m]``; None for all.
      name: Under which a rematerialisation policy keeps what it returns.

    Returns:
      ``[b k n e]`` with n = chunks c.
    """
    return _attend_chunks_forward(q, k, v, limits, seen, name)[0]


def _attend_chunks_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, limits: jax.Array | None, seen: jax.Array | None, name: str
) -> tuple[jax.Array, tuple[Any, ...]]:
    parts = _chunk_outputs(q, k, v, limits, seen)
    kept = tuple(checkpoint_name(part, name) for part in parts)
    return kept[0], (q, k, v, limits, seen, *kept)


def _chunk_outputs(
    q: jax.Array, k: jax.Array, v: jax.Array, limits: jax.Array | None, seen: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns outputs ``[b k n e]``; of each chunk's softmax the highest score and 1 / sum, ``[chunks b k c]``."""

    def attend_chunk(chunk: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array, jax.Array]:
        scores = _scores(chunk[0], k, chunk[1], seen)
        highest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.einsum("bknm,bkme->bkne", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / total).astype(v.dtype), highest[..., 0], 1.0 / total[..., 0]

    out, highest, scale = jax.lax.map(attend_chunk, (q, limits))
    return _unchunk(out), highest, scale


def _attend_chunks_backward(kept: tuple[Any, ...], grad: jax.Array) -> tuple[Any, ...]:
    """Returns the gradients of ``_attend_chunks``.

    Scores are computed as ``[b k m c]``, keys first: then no product of the five has its large operand transposed.
    """
    q, k, v, limits, seen, out, highest, scale = kept
    k_columns, rate = jnp.swapaxes(k, 2, 3), q.shape[-1] ** -0.5
    grad_dot_out = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)

    def grad_chunk(sums: tuple[jax.Array, jax.Array], chunk: Any) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        q, grad, limits, highest, scale, grad_dot_out = chunk
        q_columns, grad_columns = jnp.swapaxes(q, 2, 3), jnp.swapaxes(grad, 2, 3)
        scores = jnp.einsum("bkme,bken->bkmn", k, q_columns, preferred_element_type=jnp.float32) * rate
        if limits is not None:
            scores = jnp.where(jnp.arange(k.shape[2])[:, None] < limits, scores, -jnp.inf)
        if seen is not None:
            scores = jnp.where(seen[:, None, :, None], scores, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - highest[:, :, None]) * scale[:, :, None]
        grad_weights = jnp.einsum("bkme,bken->bkmn", v, grad_columns, preferred_element_type=jnp.float32)
        grad_scores = weights * (grad_weights - grad_dot_out[:, :, None, :, 0]) * rate
        if seen is not None:
            grad_scores = jnp.where(seen[:, None, :, None], grad_scores, 0.0)
        grad_scores = grad_scores.astype(q.dtype)
        grad_q = jnp.einsum("bkem,bkmn->bken", k_columns, grad_scores)
        grad_k = jnp.einsum("bkmn,bkne->bkme", grad_scores, q, preferred_element_type=jnp.float32)
        grad_v = jnp.einsum("bkmn,bkne->bkme", weights.astype(v.dtype), grad, preferred_element_type=jnp.float32)
        return (sums[0] + grad_k, sums[1] + grad_v), grad_q

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    size = q.shape[3]
    chunks = (q, _chunk(grad, size), limits, highest, scale, _chunk(grad_dot_out, size))
    (grad_k, grad_v), grad_q = jax.lax.scan(grad_chunk, zeros, chunks)
    return jnp.swapaxes(grad_q, 3, 4), grad_k.astype(k.dtype), grad_v.astype(v.dtype), None, None


_attend_chunks.defvjp(_attend_chunks_forward, lambda name, kept, grad: _attend_chunks_backward(kept, grad))


def keys_of(rectangle: Rectangle) -> tuple[Span, ...]:
    """Returns the spans of a rectangle's keys, the diagonal last."""
    return (*rectangle.keys, rectangle.diagonal) if rectangle.diagonal else rectangle.keys


def _chunks(rectangle: Rectangle) -> list[tuple[tuple[Span, ...], jax.Array | None]]:
    """Returns a rectangle's queries in whole chunks, and the rest as one: spans, and how many keys each query sees."""
    whole = rectangle.num_queries // QUERY_CHUNK * QUERY_CHUNK
    pieces, offset, num_full = [], 0, rectangle.num_keys - rectangle.num_queries
    for count in (whole, rectangle.num_queries - whole):
        if not count:
            continue
        rows = _slice_spans(rectangle.queries, offset, offset + count)
        limits = num_full + 1 + jnp.arange(offset, offset + count) if rectangle.diagonal else None
        pieces.append((rows, None if limits is None else limits.reshape(-1, _chunk_size(rows))))
        offset += count
    return pieces


def _chunk_size(rows: Sequence[Span]) -> int:
    """Returns the chunk of ``rows``, as ``_chunks`` makes them."""
    count = span_length(rows)
    return QUERY_CHUNK if count % QUERY_CHUNK == 0 else count


def _slice_spans(spans: Sequence[Span], first: int, last: int) -> tuple[Span, ...]:
    """Returns the tokens ``first`` to ``last`` of those in ``spans``."""
    kept, offset = [], 0
    for start, stop in spans:
        low, high = max(start, start + first - offset), min(stop, start + last - offset)
        if low < high:
            kept.append((low, high))
        offset += stop - start
    return tuple(kept)


def spread(spans: Sequence[Span], x: jax.Array) -> list[tuple[Span, jax.Array]]:
    """Returns the tokens of ``x`` ``[b k n e]`` by the spans they belong to."""
    pieces, offset = [], 0
    for start, stop in spans:
        pieces.append(((start, stop), x[:, :, offset : offset + stop - start]))
        offset += stop - start
    return pieces


def _add_at(total: jax.Array, spans: Sequence[Span], x: jax.Array) -> jax.Array:
    """Adds the tokens of ``x`` where ``spans`` say."""
    for (start, stop), piece in spread(spans, x):
        total = total.at[:, :, start:stop].add(piece.astype(total.dtype))
    return total


def _chunk(x: jax.Array, size: int) -> jax.Array:
    """Returns ``[chunks b k c e]`` of ``[b k n e]``."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, size, x.shape[-1]), 2, 0)


def _unchunk(x: jax.Array) -> jax.Array:
    """Returns ``[b k n e]`` of ``[chunks b k c e]``."""
    return jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, x.shape[-1])


def take(x: jax.Array, spans: Sequence[Span], axis: int = 2) -> jax.Array:
    """Returns the tokens of ``spans`` along ``axis``."""
    parts = [jax.lax.slice_in_dim(x, start, stop, axis=axis) for start, stop in spans]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)


def lay_out(pieces: list[tuple[Span, jax.Array]], length: int, fill: float = 0.0) -> jax.Array:
    """Concatenates pieces by position, with ``fill`` where there is none."""
    like, laid, offset = pieces[0][1], [], 0

    def filled(count: int) -> jax.Array:
        return jnp.full((*like.shape[:2], count, like.shape[3]), fill, like.dtype)

    for (start, stop), piece in sorted(pieces, key=lambda item: item[0]):
        if start > offset:
            laid.append(filled(start - offset))
        laid.append(piece)
        offset = stop
    if offset < length:
        laid.append(filled(length - offset))
    return laid[0] if len(laid) == 1 else jnp.concatenate(laid, axis=2)
