"""Attention on TPUs: the splash kernel on the blocks of a schedule.

Owns the mask and the call; block sizes are ``layout.kernels``'s. Blocks that a schedule does not touch are never read.

Source: jax.experimental.pallas.ops.tpu.splash_attention. What differs: its kernel of one head is mapped over batch and
heads, which puts parallel dims in front of its grid (its own grid of heads is sequential in the backward pass, and
leaves the second core of a v4 or v5p chip idle).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from wamjax.layout.blocks import LANES
from wamjax.layout.kernels import block_size, pad_to_lanes, seen_prefix, splash_blocks
from wamjax.layout.schedule import Schedule
from wamjax.nn.kernel import Kernel, Normalised, declared

_HIDDEN = 1e30  # a normaliser beside which every score's exponential is zero


@dataclasses.dataclass(frozen=True)
class ScheduleMask(masks.Mask):
    """A schedule as a lazy mask ``[queries keys]``, evaluated block by block.

    A query in no rectangle is padding; its softmax must not be empty, so that it sees what the last query before it
    that is in one sees, which adds no block.
    """

    schedule: Schedule

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and keys."""
        return self.schedule.num_queries, self.schedule.num_keys

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns bool of two slices."""
        rows, columns = (np.arange(*part.indices(size)) for part, size in zip(index, self.shape, strict=True))
        owner, offset = _owners(self.schedule)
        block = np.zeros((rows.size, columns.size), dtype=bool)
        for number in np.unique(owner[rows]):
            rectangle, mine = self.schedule.rectangles[number], owner[rows] == number
            seen = np.zeros(columns.size, dtype=bool)
            for start, stop in rectangle.keys:
                seen |= (columns >= start) & (columns < stop)
            block[mine] = seen
            if rectangle.diagonal:
                start, _ = rectangle.diagonal
                block[mine] |= (columns >= start) & (columns - start <= offset[rows][mine][:, None])
        return block


@dataclasses.dataclass(frozen=True)
class PrefixMask(masks.Mask):
    """All queries see the first ``num_seen`` keys: a sequence padded at its end.

    The kernel computes it, where blocks of any other mask are read from memory.
    """

    num_queries: int
    num_keys: int
    num_seen: int

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and keys."""
        return self.num_queries, self.num_keys

    @property
    def q_sequence(self) -> np.ndarray:
        """The queries' numbers, which the kernel gives to ``mask_function``."""
        return np.arange(self.num_queries, dtype=np.int32)

    def mask_function(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Returns which pairs of query and key numbers are seen."""
        return (keys < self.num_seen) & (queries >= 0)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns bool of two slices."""
        rows, columns = (np.arange(*part.indices(size)) for part, size in zip(index, self.shape, strict=True))
        return np.broadcast_to(columns < self.num_seen, (rows.size, columns.size))


@functools.lru_cache(maxsize=64)
def _owners(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Returns for every query its rectangle and its place among that rectangle's queries."""
    owner, offset = np.full(schedule.num_queries, -1), np.zeros(schedule.num_queries, int)
    for number, rectangle in enumerate(schedule.rectangles):
        rows = np.concatenate([np.arange(*span) for span in rectangle.queries])
        owner[rows], offset[rows] = number, np.arange(rows.size)
    live = np.flatnonzero(owner >= 0)
    previous = live[np.maximum(np.searchsorted(live, np.arange(schedule.num_queries), side="right") - 1, 0)]
    return owner[previous], offset[previous]


def attend_splash(
    q: jax.Array, k: jax.Array, v: jax.Array, schedule: Schedule, *, name: str, interpret: bool = False
) -> jax.Array:
    """Attends local arrays. Sequences that are no multiple of 128 are padded to one: an image's keys, a device's part.

    Args:
      q: ``[b k n e]`` queries.
      k: ``[b k m e]`` keys.
      v: ``[b k m e]`` values.
      schedule: Which rectangles are attended.
      name: Under which a rematerialisation policy keeps the output and the softmax's normaliser.
      interpret: Whether the kernel is run by XLA operations, on any platform.

    Returns:
      ``[b k n e]`` in the dtype of ``v``. A query in no rectangle has some output that has no meaning.
    """
    num_queries = q.shape[2]
    (q, k, v), schedule = _pad_to_lanes(q, k, v), pad_to_lanes(schedule)
    kernel = _make_kernel(schedule, name, interpret)
    one_head = lambda q, k, v: kernel(q[None], k[None], v[None])[0]  # noqa: E731 - mapped twice below
    with declared("splash", q, schedule):
        return jax.vmap(jax.vmap(one_head))(_scaled(q), k, v)[:, :, :num_queries]


def make_splash(interpret: bool = False) -> Kernel:
    """Returns both passes of the kernel, for parts of attention (``nn.kernel``)."""

    def forward(q: jax.Array, k: jax.Array, v: jax.Array, schedule: Schedule) -> Normalised:
        num_queries = q.shape[2]
        (q, k, v), schedule = _pad_to_lanes(q, k, v), pad_to_lanes(schedule)
        kernel, live = _make_kernel(schedule, None, interpret, save_residuals=True), _live(schedule)
        one_head = lambda q, k, v: kernel(q[None], k[None], v[None])  # noqa: E731 - mapped twice below
        with declared("splash", q, schedule):
            out, (lse,) = jax.vmap(jax.vmap(one_head))(_scaled(q), k, v)
        out, lse = jnp.where(live[:, None], out[:, :, 0], 0), jnp.where(live, lse[:, :, 0], -jnp.inf)
        return Normalised(out[:, :, :num_queries].astype(v.dtype), lse[:, :, :num_queries])

    def backward(
        q: jax.Array, k: jax.Array, v: jax.Array, whole: Normalised, grad: jax.Array, schedule: Schedule
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        num_queries, num_keys = q.shape[2], k.shape[2]
        q, k, v, out, lse, grad = _pad_to_lanes(q, k, v, whole.out, whole.lse, grad)
        schedule = pad_to_lanes(schedule)
        kernel, live = _make_kernel(schedule, None, interpret), _live(schedule)
        # A query that sees no key of this part has some block of the kernel's mask: its weights there must be zero.
        lse = jnp.where(live, lse, _HIDDEN)
        grad = jnp.where(live[:, None], grad, 0).astype(q.dtype)
        options = {name: value for name, value in kernel.kwargs.items() if name not in ("save_residuals", "interpret")}

        def one_head(q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array, lse: jax.Array, grad: jax.Array) -> Any:
            q, k, v, out, lse = (x[None] for x in (q, k, v, out, lse))
            kept = (q, k, v, None, None, out, lse, kernel.dq_mask_info, kernel.dkv_mask_info)
            # The kernel's own backward pass takes the normaliser as it is given; no public function does.
            grads = kernels._splash_attention_bwd(
                save_residuals=False, interpret=interpret, res=kept, do=grad[None], **options
            )
            return tuple(part[0] for part in grads[3:6])

        with declared("splash", q, schedule):
            grad_q, grad_k, grad_v = jax.vmap(jax.vmap(one_head))(_scaled(q), k, v, out.astype(v.dtype), lse, grad)
        grad_q = grad_q[:, :, :num_queries].astype(jnp.float32) * q.shape[-1] ** -0.5
        return grad_q, grad_k[:, :, :num_keys], grad_v[:, :, :num_keys]

    return Kernel(forward, backward)


SPLASH = make_splash()


def _pad_to_lanes(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns arrays ``[b k n ...]`` with zeros after their tokens up to a multiple of 128."""

    def pad(array: jax.Array) -> jax.Array:
        missing = -array.shape[2] % LANES
        return jnp.pad(array, [(0, missing if axis == 2 else 0) for axis in range(array.ndim)]) if missing else array

    return tuple(pad(array) for array in arrays)


def _scaled(q: jax.Array) -> jax.Array:
    """Returns queries as the kernel takes them, times 1 / sqrt(e)."""
    return (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)


def _live(schedule: Schedule) -> np.ndarray:
    """Returns bool ``[n]``: which queries see a key."""
    live = np.zeros(schedule.num_queries, bool)
    for rectangle in schedule.rectangles:
        for start, stop in rectangle.queries:
            live[start:stop] = True
    return live


def _make_kernel(
    schedule: Schedule, name: str | None, interpret: bool, *, save_residuals: bool = False
) -> kernels.SplashAttentionKernel:
    """Makes the kernel of one head."""
    return kernels.make_splash_mha(
        masks.MultiHeadMask([_make_mask(schedule)]),
        block_sizes=_block_sizes(schedule),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=name,
        save_residuals=save_residuals,
        interpret=interpret,
    )


def _block_sizes(schedule: Schedule) -> kernels.BlockSizes:
    """Returns the blocks of both passes."""
    sides = splash_blocks(schedule)
    return kernels.BlockSizes(
        block_q=sides.queries,
        block_kv=sides.keys,
        block_kv_compute=sides.keys,
        block_q_dkv=sides.backward_queries,
        block_kv_dkv=sides.backward_keys,
        block_kv_dkv_compute=block_size(sides.backward_keys, sides.keys),
        use_fused_bwd_kernel=True,
    )


def _make_mask(schedule: Schedule) -> masks.Mask:
    """Returns the cheapest mask that says what ``schedule`` does."""
    shape, prefix = (schedule.num_queries, schedule.num_keys), seen_prefix(schedule)
    if prefix is None:
        return ScheduleMask(schedule)
    return masks.FullMask(shape) if prefix == shape[1] else PrefixMask(*shape, prefix)
