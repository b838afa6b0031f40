"""What attention kernels compute of a schedule: the visible pairs, and what their blocks hold besides.

Owns which kernel runs where, its block sizes, and the count of its pairs. The kernels themselves are in ``nn``; FLOPs
and plans rest on the same functions, and nothing here knows arrays or devices.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from wamjax.config.choices import AttentionKernel
from wamjax.errors import ConfigError
from wamjax.layout.blocks import LANES, choose_block, touched_blocks
from wamjax.layout.schedule import Rectangle, Schedule, Span, merge_spans, span_length

Platform = Literal["cpu", "gpu", "tpu"]

QUERY_CHUNK = 256  # queries of a rectangle whose scores exist at one time, in plain XLA
DELTA_CHUNK = 64  # tokens of a chunk of ``nn.gated_delta``, a power of 2; flash-linear-attention's
DELTA_TAPS = 4  # tokens that the short convolutions of ``nn.gated_delta_net`` read, the newest their own
BLOCK = 128  # side of a block of ``blockwise`` where no multiple of 128 divides the sequences

CUDNN_DTYPES = ("bfloat16", "float16")
CUDNN_HEAD_DIM = 128  # largest on every generation that has the kernel (compute capability 8.0); Hopper's takes 256

# Largest blocks of the splash kernel where all is seen. Fewer blocks of keys in the backward pass mean fewer partial
# gradients of queries in memory, and 16,384 of them do not fit into 64 MiB of VMEM (compiled for TPU v5p, jax 0.10.2).
_FORWARD_BLOCK, _BACKWARD_QUERIES, _BACKWARD_KEYS = 1024, 512, 8192


class Computed(NamedTuple):
    """Query-key pairs that an attention call computes, once for all heads.

    A forward pass takes two products over its pairs (scores, weighted values); a backward pass the scores again, where
    they were not kept, and up to four more.

    Attributes:
      forward: Pairs of the forward pass.
      backward: Pairs of the backward pass.
      keepable: Those of ``backward`` whose scores a rematerialisation policy may keep.
      is_fused: Whether the gradients of queries, keys and values come together, wanted or not.
      is_named: Whether a rematerialisation policy can tell the call from others.
      rows: Queries whose output and gradient a backward pass multiplies by a product of its own, one number each.
    """

    forward: int
    backward: int
    keepable: int = 0
    is_fused: bool = False
    is_named: bool = True
    rows: int = 0


def exactly(pairs: int) -> Computed:
    """Returns ``pairs`` and nothing else: what is needed."""
    return Computed(pairs, pairs, pairs)


def pick_kernel(
    wanted: AttentionKernel, platform: str, dtype: str, head_dim: int, *, is_in_parts: bool = False
) -> AttentionKernel:
    """Returns what computes attention: ``wanted``, or by platform if that is ``auto``.

    Splash on TPUs; cuDNN on GPUs, where it has a kernel for such heads and the keys are not in parts (it gives no
    normalisers in fp32); else rectangles.

    Args:
      wanted: ``config.parallel.attention_kernel``.
      platform: Of the devices.
      dtype: Of the values.
      head_dim: Of the heads.
      is_in_parts: Whether attention is put together from parts of the keys.
    """
    if wanted != "auto":
        return wanted
    if platform == "gpu" and not is_in_parts and has_cudnn_kernel(dtype, head_dim):
        return "cudnn"
    return "splash" if platform == "tpu" else "rectangles"


def has_cudnn_kernel(dtype: str, head_dim: int) -> bool:
    """Whether cuDNN has a kernel for such heads."""
    return dtype in CUDNN_DTYPES and head_dim <= CUDNN_HEAD_DIM and head_dim % 8 == 0


def computed_pairs(kernel: AttentionKernel, schedule: Schedule, *, is_in_parts: bool = False) -> tuple[Computed, ...]:
    """Returns what ``kernel`` computes of ``schedule``.

    Args:
      kernel: Not ``auto``.
      schedule: What is visible.
      is_in_parts: Whether these are some of the keys only, so that normalisers are kept and never scores.
    """
    if not schedule.rectangles:
        return ()
    if kernel == "splash":
        return (_splash_pairs(schedule),)
    if kernel == "blockwise":
        side = choose_block(schedule) or BLOCK
        pairs = int(touched_blocks(schedule, side).sum()) * side**2
        return (Computed(pairs, pairs),)
    if kernel == "cudnn":
        fused = sum(_even_pairs(r) for r in schedule.rectangles if is_fused(r))
        plain = tuple(_rectangle_pairs(r) for r in schedule.rectangles if not is_fused(r))
        return (Computed(fused, fused, is_fused=True, is_named=False), *plain)
    pieces = tuple(_rectangle_pairs(r) for r in schedule.rectangles)
    return tuple(part._replace(keepable=0) for part in pieces) if is_in_parts else pieces


def is_fused(rectangle: Rectangle) -> bool:
    """Whether cuDNN has a mode for ``rectangle``: dense, or causal, but not full keys before a triangle."""
    return not (rectangle.diagonal and rectangle.keys)


def _even_pairs(rectangle: Rectangle) -> int:
    """Returns the pairs of a rectangle whose odd lengths are padded by a token (``nn.cudnn``)."""
    rows, keys = (length + length % 2 for length in (rectangle.num_queries, rectangle.num_keys))
    return rows * (rows + 1) // 2 if rectangle.diagonal else rows * keys


def _rectangle_pairs(rectangle: Rectangle) -> Computed:
    """Returns all pairs a rectangle spans; of queries in whole chunks the scores are never kept."""
    rows, keys = rectangle.num_queries, rectangle.num_keys
    rest = rows % QUERY_CHUNK if rows > QUERY_CHUNK else rows
    return Computed(rows * keys, rows * keys, rest * keys)


class SplashBlocks(NamedTuple):
    """Sides of the splash kernel's blocks, in tokens: forward, then backward."""

    queries: int
    keys: int
    backward_queries: int
    backward_keys: int


def splash_blocks(schedule: Schedule) -> SplashBlocks:
    """Returns the blocks of both passes: large where all queries see one prefix, else as the schedule has it best.

    Raises:
      ConfigError: A sequence is no multiple of 128.
    """
    n, m = schedule.num_queries, schedule.num_keys
    blocks = SplashBlocks(
        block_size(n, _FORWARD_BLOCK),
        block_size(m, _FORWARD_BLOCK),
        block_size(n, _BACKWARD_QUERIES),
        block_size(m, _BACKWARD_KEYS),
    )
    if seen_prefix(schedule) is not None:
        return blocks
    return SplashBlocks(*(choose_block(schedule) or LANES,) * 4)


def block_size(length: int, limit: int) -> int:
    """Returns the largest multiple of 128 up to ``limit`` that divides ``length``.

    Raises:
      ConfigError: ``length`` is no multiple of 128.
    """
    if length % LANES:
        raise ConfigError(
            f"{length} tokens are no multiple of {LANES}, as attention on a TPU needs; it would take "
            f"{-length % LANES} padding tokens: set config.layout.pad_multiple"
        )
    return max(size for size in range(LANES, min(limit, length) + 1, LANES) if length % size == 0)


def seen_prefix(schedule: Schedule) -> int | None:
    """Returns how many keys from the first all queries see (padding too, which may); None if it is not so simple."""
    if len(schedule.rectangles) != 1:
        return None
    (rectangle,) = schedule.rectangles
    if rectangle.diagonal or len(rectangle.keys) != 1 or rectangle.keys[0][0]:
        return None
    return rectangle.keys[0][1]


def pad_to_lanes(schedule: Schedule) -> Schedule:
    """Returns ``schedule`` with queries and hidden keys that complete the last 128, as the splash kernel takes it."""
    queries, keys = (length + -length % LANES for length in (schedule.num_queries, schedule.num_keys))
    return Schedule(queries, keys, schedule.rectangles)


def fill_padding(schedule: Schedule) -> Schedule:
    """Returns ``schedule`` with queries in no rectangle seeing what the last one before them (else the first) sees."""
    placed = sorted((span, r) for r in schedule.rectangles for span in r.queries)
    owners: dict[tuple[tuple[Span, ...], Span | None], list[Span]] = {}
    position, previous = 0, placed[0][1]
    for (start, stop), rectangle in [*placed, ((schedule.num_queries,) * 2, placed[-1][1])]:
        if position < start:
            seen = previous.keys if previous.diagonal is None else _seen_by(previous, position)
            owners.setdefault((seen, None), []).append((position, start))
        position, previous = max(position, stop), rectangle
    extra = [Rectangle(merge_spans(spans), seen) for (seen, _), spans in owners.items()]
    return Schedule(schedule.num_queries, schedule.num_keys, (*schedule.rectangles, *extra))


def _seen_by(rectangle: Rectangle, position: int) -> tuple[Span, ...]:
    """Returns the keys that the last query of a causal rectangle before ``position`` sees (its first if none is)."""
    assert rectangle.diagonal is not None
    first = rectangle.diagonal[0]
    before = span_length([(start, min(stop, position)) for start, stop in rectangle.queries if start < position])
    return merge_spans([*rectangle.keys, (first, first + max(before, 1))])


def _splash_pairs(schedule: Schedule) -> Computed:
    schedule = pad_to_lanes(schedule)
    blocks, prefix = splash_blocks(schedule), seen_prefix(schedule)
    if prefix is not None:
        everywhere = ((0, schedule.num_queries),)
        schedule = Schedule(schedule.num_queries, schedule.num_keys, (Rectangle(everywhere, ((0, prefix),)),))
    schedule = fill_padding(schedule)

    def pairs(queries: int, keys: int) -> int:
        return int(touched_blocks(schedule, queries, keys).sum()) * queries * keys

    return Computed(pairs(*blocks[:2]), pairs(*blocks[2:]), is_fused=True, rows=schedule.num_queries)
