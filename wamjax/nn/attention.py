"""Attention behind one front door: a schedule of rectangles in, one exact softmax per query out.

What the schedule does not hold is never computed, and no array grows as the square of the sequence: a rectangle with
many queries is taken a chunk of queries at a time. Kernels for other hardware register in ``KERNELS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool

from wamjax.layout.schedule import Rectangle, Schedule, Span
from wamjax.nn.splash import attend_splash
from wamjax.parallel.rules import active_placement, partition_spec
from wamjax.types import Heads, KeyHeads

QUERY_CHUNK = 256  # queries whose scores exist at one time

# Names by which a rematerialisation policy keeps values of this module.
ATTENTION_IN = "attention_in"  # queries, keys and values where attention reads them, after any exchange
ATTENTION_OUT = "attention_out"  # outputs, and the softmax's normalisers
ATTENTION_SCORES = "attention_scores"  # of rectangles with too few queries for chunks


def attend(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    schedule: Schedule,
    *,
    key_mask: Bool[Array, "b m"] | None = None,
    split: Literal["heads", "tokens"] = "heads",
    kernel: str = "auto",
) -> Heads:
    """Softmax attention over the pairs of ``schedule``.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(e)) v_j over the keys j that the schedule shows to query i.

    Args:
      q: ``[b k n e]`` queries.
      k: ``[b k m e]`` keys.
      v: ``[b k m e]`` values.
      schedule: Which rectangles are attended; its sizes are n and m.
      key_mask: ``[b m]`` keys that are seen at all (padded text); None for all. A sample that shows no key gives the
        mean of its values.
      split: Which dim of the queries the mesh's context axis splits; keys and values are split along heads too, or are
        whole where queries are split along tokens.
      kernel: Key of ``KERNELS``; ``auto`` picks by platform, schedule and mask.

    Returns:
      ``[b k n e]`` in the dtype of ``v``; zero for queries in no rectangle (padding).

    Raises:
      ValueError: The kernel is unknown, or the arrays do not have the schedule's sizes.
    """
    if kernel == "auto":
        kernel = choose_kernel(key_mask is not None)
    if kernel not in KERNELS:
        raise ValueError(f"attention kernel {kernel!r} is unknown; expected one of {sorted(KERNELS)}")
    if (q.shape[2], k.shape[2]) != (schedule.num_queries, schedule.num_keys):
        raise ValueError(
            f"attention got {q.shape[2]} queries and {k.shape[2]} keys; its schedule holds {schedule.num_queries} and "
            f"{schedule.num_keys}"
        )
    placement = active_placement()
    if kernel == "rectangles" or placement is None or placement.is_local:
        return KERNELS[kernel](q, k, v, schedule, key_mask)
    # XLA cannot split a kernel: each device runs it on its own part.
    names = ("batch", "attention_heads", None, None) if split == "heads" else ("batch", "heads", "tokens", None)
    whole = (*names[:2], None, None)
    specs = [
        partition_spec(part, array.shape, placement.mesh, placement.rules.activations, "attention's operand")
        for part, array in ((names, q), (whole, k), (whole, v))
    ]
    local = schedule if split == "heads" else _part_of_queries(schedule, placement.mesh.shape["context"])
    run = jax.shard_map(
        lambda q, k, v: KERNELS[kernel](q, k, v, local, None),
        mesh=placement.mesh,
        in_specs=tuple(specs),
        out_specs=specs[0],
        check_vma=False,
    )
    return run(q, k, v)


def _part_of_queries(schedule: Schedule, ways: int) -> Schedule:
    """Returns the schedule of one of ``ways`` equal parts of the queries, where all see all keys."""
    assert schedule.num_pairs == schedule.num_queries * schedule.num_keys, "only where all queries see all keys"
    part = schedule.num_queries // ways
    return Schedule(part, schedule.num_keys, (Rectangle(((0, part),), ((0, schedule.num_keys),)),))


def choose_kernel(is_masked: bool) -> str:
    """Returns the kernel for what is being traced: splash on TPUs, else (or with a mask of keys) rectangles."""
    placement = active_placement()
    is_tpu = placement is not None and placement.mesh.devices.flat[0].platform == "tpu"
    return "splash" if is_tpu and not is_masked else "rectangles"


def attend_rectangles(
    q: Heads, k: KeyHeads, v: KeyHeads, schedule: Schedule, key_mask: jax.Array | None = None
) -> Heads:
    """Attention as a list of dense rectangles, in plain XLA (any platform)."""
    pieces: list[tuple[Span, jax.Array]] = []
    for rectangle in schedule.rectangles:
        keys = (*rectangle.keys, *([rectangle.diagonal] if rectangle.diagonal else []))
        seen = None if key_mask is None else _take(key_mask, keys, axis=1)
        out = _attend_rectangle(_take(q, rectangle.queries), _take(k, keys), _take(v, keys), rectangle, seen)
        offset = 0
        for start, stop in rectangle.queries:
            pieces.append(((start, stop), out[:, :, offset : offset + stop - start]))
            offset += stop - start
    return _lay_out(pieces, schedule.num_queries)


def _attend_splash(q: Heads, k: KeyHeads, v: KeyHeads, schedule: Schedule, key_mask: jax.Array | None) -> Heads:
    if key_mask is not None:
        raise ValueError("the splash kernel takes no mask of keys; use rectangles")
    return attend_splash(q, k, v, schedule, name=ATTENTION_OUT)


Kernel = Callable[[Heads, KeyHeads, KeyHeads, Schedule, jax.Array | None], Heads]
KERNELS: dict[str, Kernel] = {"rectangles": attend_rectangles, "splash": _attend_splash}


def _attend_rectangle(
    q: jax.Array, k: jax.Array, v: jax.Array, rectangle: Rectangle, seen: jax.Array | None
) -> jax.Array:
    """Attends all queries to all keys (the last ones triangularly if there is a diagonal)."""
    num_queries, num_full = q.shape[2], k.shape[2] - (q.shape[2] if rectangle.diagonal else 0)
    num_chunks, rest = divmod(num_queries, QUERY_CHUNK) if num_queries > QUERY_CHUNK else (0, num_queries)
    first_rest = num_chunks * QUERY_CHUNK
    limits = num_full + 1 + jnp.arange(num_queries) if rectangle.diagonal else None
    pieces = []
    if num_chunks:
        chunked = None if limits is None else limits[:first_rest].reshape(num_chunks, QUERY_CHUNK)
        pieces.append(_attend_chunks(_chunk(q[:, :, :first_rest]), k, v, chunked, seen))
    if rest:
        pieces.append(
            _softmax_attention(q[:, :, first_rest:], k, v, None if limits is None else limits[first_rest:], seen)
        )
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=2)


def _softmax_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, limits: jax.Array | None, seen: jax.Array | None
) -> jax.Array:
    """Dense attention with fp32 softmax, heads first: ``[b k n e]``.

    Query i sees the first ``limits[i]`` keys if ``limits`` is given, and of those the ones ``seen`` ``[b m]`` shows.
    """
    scores = checkpoint_name(_scores(q, k, limits, seen), ATTENTION_SCORES)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return checkpoint_name(jnp.einsum("bknm,bkme->bkne", weights, v), ATTENTION_OUT)


def _scores(q: jax.Array, k: jax.Array, limits: jax.Array | None, seen: jax.Array | None) -> jax.Array:
    """Returns fp32 scores ``[b k n m]``, hidden pairs at (or next to) minus infinity."""
    scores = jnp.einsum("bkne,bkme->bknm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if limits is not None:
        scores = jnp.where(jnp.arange(k.shape[2]) < limits[:, None], scores, -jnp.inf)
    if seen is not None:
        scores = jnp.where(seen[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    return scores


@jax.custom_vjp
def _attend_chunks(
    q: jax.Array, k: jax.Array, v: jax.Array, limits: jax.Array | None, seen: jax.Array | None
) -> jax.Array:
    """Dense attention a chunk of queries at a time, whose backward pass computes the scores again.

    Args:
      q: ``[chunks b k c e]``.
      k: ``[b k m e]``.
      v: ``[b k m e]``.
      limits: ``[chunks c]``, how many keys each query sees; None for all.
      seen: bool ``[b m]``; None for all.

    Returns:
      ``[b k n e]`` with n = chunks c.
    """
    return _attend_chunks_forward(q, k, v, limits, seen)[0]


def _attend_chunks_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, limits: jax.Array | None, seen: jax.Array | None
) -> tuple[jax.Array, tuple[Any, ...]]:
    def attend_chunk(chunk: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array, jax.Array]:
        scores = _scores(chunk[0], k, chunk[1], seen)
        highest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.einsum("bknm,bkme->bkne", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / total).astype(v.dtype), highest[..., 0], 1.0 / total[..., 0]

    out, highest, scale = jax.lax.map(attend_chunk, (q, limits))
    kept = tuple(checkpoint_name(part, ATTENTION_OUT) for part in (_unchunk(out), highest, scale))
    return kept[0], (q, k, v, limits, seen, *kept)


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
    chunks = (q, _chunk(grad), limits, highest, scale, _chunk(grad_dot_out))
    (grad_k, grad_v), grad_q = jax.lax.scan(grad_chunk, zeros, chunks)
    return jnp.swapaxes(grad_q, 3, 4), grad_k.astype(k.dtype), grad_v.astype(v.dtype), None, None


_attend_chunks.defvjp(_attend_chunks_forward, _attend_chunks_backward)


def _chunk(x: jax.Array) -> jax.Array:
    """Returns ``[chunks b k c e]`` of ``[b k n e]``."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, QUERY_CHUNK, x.shape[-1]), 2, 0)


def _unchunk(x: jax.Array) -> jax.Array:
    """Returns ``[b k n e]`` of ``[chunks b k c e]``."""
    return jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, x.shape[-1])


def _take(x: jax.Array, spans: Sequence[Span], axis: int = 2) -> jax.Array:
    """Returns the tokens of ``spans`` along ``axis``."""
    parts = [jax.lax.slice_in_dim(x, start, stop, axis=axis) for start, stop in spans]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)


def _lay_out(pieces: list[tuple[Span, jax.Array]], length: int) -> jax.Array:
    """Concatenates pieces by position, with zeros where there is none."""
    like, laid, offset = pieces[0][1], [], 0

    def zeros(count: int) -> jax.Array:
        return jnp.zeros((*like.shape[:2], count, like.shape[3]), like.dtype)

    for (start, stop), piece in sorted(pieces, key=lambda item: item[0]):
        if start > offset:
            laid.append(zeros(start - offset))
        laid.append(piece)
        offset = stop
    if offset < length:
        laid.append(zeros(length - offset))
    return laid[0] if len(laid) == 1 else jnp.concatenate(laid, axis=2)
