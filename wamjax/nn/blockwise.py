"""Blockwise attention: a loop over the blocks a schedule touches, with an online softmax. Any platform; the reference.

The loop's length is the number of touched blocks, so that nothing that is hidden is computed but within a block; no
array grows as the square of the sequence. Masks of blocks are made on the fly from what each token sees.

Source: FlashAttention (arXiv 2205.14135), algorithms 1 and 4. What differs: one loop over (queries, keys) pairs of
blocks, in the order of queries, over the touched ones alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.layout.blocks import choose_block, touched_blocks
from wamjax.layout.kernels import BLOCK
from wamjax.layout.schedule import Schedule
from wamjax.nn.kernel import Kernel, Normalised


class _Sight(NamedTuple):
    """What every token sees.

    Attributes:
      owner: int32 ``[n]``, a query's rectangle; the last row of ``seen`` for none.
      seen: bool ``[rectangles+1 m]``.
      first: int32 ``[n]``: a query also sees the keys from ``first``
      last: to ``last``; none where it is smaller.
    """

    owner: np.ndarray
    seen: np.ndarray
    first: np.ndarray
    last: np.ndarray


class _Blocks(NamedTuple):
    """A schedule in blocks: their side, the numbers of blocks of queries and keys, the touched ones, what is seen."""

    side: int
    rows: int
    columns: int
    touched: np.ndarray
    sight: _Sight


def forward(q: jax.Array, k: jax.Array, v: jax.Array, schedule: Schedule) -> Normalised:
    """Attends ``q`` to ``k`` and ``v`` (``nn.kernel.Forward``); the output is in fp32."""
    blocks = _blocks(schedule)
    queries, keys, values = _split(q, blocks.side), _split(k, blocks.side), _split(v, blocks.side)
    num_rows = queries.shape[:-1]
    empty = (jnp.zeros(queries.shape, jnp.float32), jnp.full(num_rows, -jnp.inf), jnp.zeros(num_rows))

    def attend_block(carry: tuple[jax.Array, ...], place: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        row, column = place
        total, highest, weight = (part[row] for part in carry)
        scores = _scores(queries[row], keys[column], place, blocks)
        new = jnp.maximum(highest, jnp.max(scores, axis=-1))
        shift = jnp.where(jnp.isfinite(new), new, 0.0)
        weights, decay = jnp.exp(scores - shift[..., None]), jnp.exp(highest - shift)
        added = jnp.einsum(
            "bknm,bkme->bkne", weights.astype(v.dtype), values[column], preferred_element_type=jnp.float32
        )
        updated = (total * decay[..., None] + added, new, weight * decay + jnp.sum(weights, axis=-1))
        return tuple(part.at[row].set(value) for part, value in zip(carry, updated, strict=True)), None

    (total, highest, weight), _ = jax.lax.scan(attend_block, empty, jnp.asarray(blocks.touched))
    out = total / jnp.where(weight > 0, weight, 1.0)[..., None]
    return Normalised(_join(out, q.shape[2]), _join(highest + jnp.log(weight), q.shape[2]))


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, whole: Normalised, grad: jax.Array, schedule: Schedule
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of q, k and v in fp32 (``nn.kernel.Backward``)."""
    blocks, rate = _blocks(schedule), q.shape[-1] ** -0.5
    inner = jnp.sum(grad.astype(jnp.float32) * whole.out.astype(jnp.float32), axis=-1)
    by_query = [_split(x, blocks.side) for x in (q, grad, whole.lse, inner)]
    keys, values = _split(k, blocks.side), _split(v, blocks.side)
    sums = tuple(jnp.zeros(x.shape, jnp.float32) for x in (by_query[0], keys, values))

    def attend_block(carry: tuple[jax.Array, ...], place: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        row, column = place
        query, grad, lse, inner = (x[row] for x in by_query)
        scores = _scores(query, keys[column], place, blocks)
        weights = jnp.exp(jnp.where(jnp.isfinite(scores), scores - lse[..., None], -jnp.inf))
        grad_weights = jnp.einsum("bkne,bkme->bknm", grad, values[column], preferred_element_type=jnp.float32)
        grad_scores = (weights * (grad_weights - inner[..., None]) * rate).astype(q.dtype)
        parts = (
            (row, "bknm,bkme->bkne", grad_scores, keys[column]),
            (column, "bknm,bkne->bkme", grad_scores, query),
            (column, "bknm,bkne->bkme", weights.astype(v.dtype), grad),
        )
        added = [(at, jnp.einsum(*operands, preferred_element_type=jnp.float32)) for at, *operands in parts]
        return tuple(part.at[at].add(value) for part, (at, value) in zip(carry, added, strict=True)), None

    (grad_q, grad_k, grad_v), _ = jax.lax.scan(attend_block, sums, jnp.asarray(blocks.touched))
    return _join(grad_q, q.shape[2]), _join(grad_k, k.shape[2]), _join(grad_v, k.shape[2])


BLOCKWISE = Kernel(forward, backward)


def _scores(query: jax.Array, key: jax.Array, place: jax.Array, blocks: _Blocks) -> jax.Array:
    """Returns fp32 scores ``[b k n m]`` of one block, hidden pairs at minus infinity."""
    rows, columns = (at * blocks.side + jnp.arange(blocks.side) for at in place)
    owner, seen, first, last = (jnp.asarray(part) for part in blocks.sight)
    visible = seen[owner[rows][:, None], columns]
    visible |= (columns >= first[rows][:, None]) & (columns <= last[rows][:, None])
    scores = jnp.einsum("bkne,bkme->bknm", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    return jnp.where(visible, scores, -jnp.inf)


def _blocks(schedule: Schedule) -> _Blocks:
    side = choose_block(schedule) or BLOCK
    touched = touched_blocks(schedule, side)
    rows, columns = touched.shape
    sight = _sight(schedule, rows * side, columns * side)
    return _Blocks(side, rows, columns, np.argwhere(touched).astype(np.int32), sight)


def _sight(schedule: Schedule, num_queries: int, num_keys: int) -> _Sight:
    """Returns what the tokens of ``schedule``, padded to these numbers, see."""
    count = len(schedule.rectangles)
    owner, seen = np.full(num_queries, count, np.int32), np.zeros((count + 1, num_keys), bool)
    first, last = np.zeros(num_queries, np.int32), np.full(num_queries, -1, np.int32)
    for number, rectangle in enumerate(schedule.rectangles):
        for start, stop in rectangle.keys:
            seen[number, start:stop] = True
        place = rectangle.diagonal[0] if rectangle.diagonal else None
        for start, stop in rectangle.queries:
            owner[start:stop] = number
            if rectangle.diagonal and place is not None:
                first[start:stop] = rectangle.diagonal[0]
                last[start:stop] = np.arange(place, place + stop - start)
                place += stop - start
    return _Sight(owner, seen, first, last)


def _split(x: jax.Array, side: int) -> jax.Array:
    """Returns ``[blocks b k side ...]`` of ``[b k n ...]``, padded with zeros."""
    count = -(-x.shape[2] // side)
    padded = jnp.pad(x, [(0, count * side - x.shape[2]) if dim == 2 else (0, 0) for dim in range(x.ndim)])
    return jnp.moveaxis(padded.reshape(*x.shape[:2], count, side, *x.shape[3:]), 2, 0)


def _join(x: jax.Array, length: int) -> jax.Array:
    """Returns ``[b k n ...]`` of ``[blocks b k side ...]``."""
    joined = jnp.moveaxis(x, 0, 2)
    return joined.reshape(*joined.shape[:2], -1, *joined.shape[4:])[:, :, :length]
