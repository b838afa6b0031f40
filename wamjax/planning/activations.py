"""What a step keeps of its activations for the backward pass, and what one block needs beside that while it runs.

Every array of a block is a row of one table: its bytes on a device, which rematerialisation policies keep it, and
whether it can only be had again by running the block's products once more. What is kept, what is computed again and
what lies around while the backward pass is at a given place all follow from the table.

Sizes are of the arrays themselves: tiling pads nothing at these sizes, and no fragmentation is added.

Source: the policies of ``models.remat`` and the arrays of ``models.block``; compared with compiled programs in
docs/planning.md.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import NamedTuple

from wamjax.config.choices import Remat
from wamjax.layout import Rectangle, Schedule
from wamjax.layout.kernels import DELTA_CHUNK, QUERY_CHUNK, pad_to_lanes, splash_blocks
from wamjax.planning.shards import Shard

_FP32 = 4
_NONE: tuple[Remat, ...] = ("none",)
_PRODUCTS: tuple[Remat, ...] = ("none", "products", "exchanged")
_OUTPUTS: tuple[Remat, ...] = (*_PRODUCTS, "attention", "offload")
_OWN_OUTPUTS: tuple[Remat, ...] = (*_OUTPUTS, "self_attention")
_NOTHING = Schedule(0, 0, ())
_EVERY: tuple[Remat, ...] = (*_OWN_OUTPUTS, "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """One array of one block on one device.

    Attributes:
      name: What it is.
      num_bytes: Its size.
      kept_by: Policies that keep it for the backward pass.
      is_product: Whether it comes back only by running products or kernels again: it then lies there from the repeated
        forward pass until its place in the backward pass. Others are computed again next to what reads them.
      part: Part of the block: ``attention``, ``cross`` or ``mlp``.
    """

    name: str
    num_bytes: int
    kept_by: tuple[Remat, ...]
    is_product: bool
    part: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes on one device, of all blocks.

    Attributes:
      kept: Kept in device memory for the backward pass.
      offloaded: Kept in host memory.
      repeated: Of one block, brought back by running it again.
      block: The most that lies around beside these while one block's backward pass runs, but for attention.
      attention: The same while attention's backward pass runs.
      by_array: Kept bytes of all blocks by array.
    """

    kept: int
    offloaded: int
    repeated: int
    block: int
    attention: int
    by_array: dict[str, int]

    @property
    def workspace(self) -> int:
        """What one block's backward pass needs beside what is kept, at its worst place."""
        return max(self.block, self.attention)

    def beside(self, other: Activations) -> Activations:
        """Returns what is kept of both stacks, one of which is at work at a time."""
        arrays = {
            name: self.by_array.get(name, 0) + other.by_array.get(name, 0) for name in (*self.by_array, *other.by_array)
        }
        return Activations(
            kept=self.kept + other.kept,
            offloaded=self.offloaded + other.offloaded,
            repeated=max(self.repeated, other.repeated),
            block=max(self.block, other.block),
            attention=max(self.attention, other.attention),
            by_array=arrays,
        )


def plan_activations(shard: Shard, schedule: Schedule) -> Activations:
    """Returns the activations of ``shard``.

    Args:
      shard: One device's part.
      schedule: Attention of the whole sequence.
    """
    schedules = shard.schedules or (schedule,)
    layers = [_plan_layer(shard.at_layer(place), seen) for place, seen in enumerate(schedules)]
    times = shard.num_layers // len(layers)
    kept: dict[str, int] = {}
    for row in itertools.chain.from_iterable(layer.rows for layer in layers):
        if shard.remat in row.kept_by:
            kept[row.name] = kept.get(row.name, 0) + times * row.num_bytes
    offloaded = kept.pop("block input") if shard.remat == "offload" else 0
    return Activations(
        kept=sum(kept.values()),
        offloaded=offloaded,
        repeated=max(layer.repeated for layer in layers),
        block=max(layer.block for layer in layers),
        attention=max(layer.attention for layer in layers),
        by_array=kept,
    )


class _Layer(NamedTuple):
    """One layer: its arrays, and the bytes of ``Activations`` that are of one block."""

    rows: list[Array]
    repeated: int
    block: int
    attention: int


def _plan_layer(shard: Shard, schedule: Schedule) -> _Layer:
    """Returns one layer of ``shard``; what is attended is all experts' but for those that have a recurrence."""
    parts = shard.by_expert()
    joint = [part for part in parts if not part.block.is_recurrent]
    rows: list[Array] = []
    for part in parts:
        # What attention returns of the whole schedule is the first expert's.
        rows += block_arrays(part, schedule if joint and part is joint[0] else _NOTHING)
    again = [row for row in rows if shard.remat not in row.kept_by and row.is_product]
    repeated = sum(row.num_bytes for row in again)
    at_work = sum(recurrence_workspace(part) for part in parts if part.block.is_recurrent)
    if joint:
        attending = dataclasses.replace(shard, num_tokens=sum(part.num_tokens for part in joint))
        at_work += attention_workspace(attending, schedule)
    return _Layer(
        rows=rows,
        repeated=repeated,
        block=repeated + sum(_mlp_workspace(part) for part in parts),
        attention=sum(row.num_bytes for row in again if row.part == "attention") + at_work,
    )


def block_arrays(shard: Shard, schedule: Schedule) -> list[Array]:
    """Returns the arrays of one block, in the order in which its forward pass makes them."""
    size, rows = shard.itemsize, shard.tokens
    stream = shard.stream_tokens * shard.block.width * size
    block = shard.block
    heads = rows * shard.inner * size
    hidden = rows * shard.hidden * size
    cross = _kernel_output(shard, None)
    context_tokens = shard.context_tokens + shard.image_tokens
    per_key = shard.batch * shard.inner * size * block.key_heads // block.num_heads
    arrays = [
        kept("block input", stream, _EVERY, "attention"),
        *(_recurrent_arrays(shard) if block.is_recurrent else _attention_arrays(shard, schedule)),
        kept("attention scores", _scores(shard, schedule), _PRODUCTS, "attention"),
        kept("output projection", stream, _PRODUCTS, "attention"),
        kept("cross query", heads * block.cross_attention, _PRODUCTS, "cross"),
    ]
    by_cross = _OWN_OUTPUTS if shard.kernel == "cudnn" else _OUTPUTS  # whose calls cannot be told apart
    for name, count in (("text", shard.context_tokens), ("image", shard.image_tokens)):
        if count:
            arrays += [
                kept(f"{name} keys and values", 2 * count * per_key, _PRODUCTS, "cross"),
                kept(f"{name} attention output", cross.output, by_cross, "cross"),
                kept(f"{name} attention normaliser", cross.normaliser, by_cross, "cross"),
            ]
    arrays += [
        kept("cross projection", stream * block.cross_attention, _PRODUCTS, "cross"),
        kept("feed-forward product", hidden * (2 if block.gated_mlp else 1), _PRODUCTS, "mlp"),
        Array(name="feed-forward units", num_bytes=hidden, kept_by=_NONE, is_product=False, part="mlp"),
        kept("feed-forward output", stream, _PRODUCTS, "mlp"),
        # Means and inverse deviations of three layer norms, rates of norms of queries and keys.
        Array(
            name="norm statistics",
            num_bytes=_FP32 * (9 * rows + shard.batch * context_tokens),
            kept_by=("products", "exchanged"),
            is_product=False,
            part="mlp",
        ),
    ]
    return arrays


def kept(name: str, num_bytes: int, by: tuple[Remat, ...], part: str) -> Array:
    """Returns an array that comes back by products alone."""
    return Array(name=name, num_bytes=num_bytes, kept_by=by, is_product=True, part=part)


def _attention_arrays(shard: Shard, schedule: Schedule) -> list[Array]:
    """Returns what self-attention makes up to its output."""
    block, own = shard.block, _kernel_output(shard, schedule)
    heads = shard.tokens * shard.laid_out_inner * shard.itemsize
    keys = heads * block.key_heads // block.num_heads  # as projected; attention reads them as often as queries do
    return [
        kept("query", heads, _PRODUCTS, "attention"),
        kept("key", keys, _PRODUCTS, "attention"),
        # Exchanged values stand in for the projected ones, whose product then has nothing left to give.
        kept("value", keys, ("none", "products"), "attention"),
        *_exchanged(heads),
        kept("attention output", own.output, _OWN_OUTPUTS, "attention"),
        kept("attention normaliser", own.normaliser, _OWN_OUTPUTS, "attention"),
    ]


def _recurrent_arrays(shard: Shard) -> list[Array]:
    """Returns what a gated delta layer makes up to its output; short convolutions and gates are computed again."""
    own, per_dim = shard.block.own_attention, shard.tokens * shard.heads * shard.itemsize
    projected = {"query": own.key_dim, "key": own.key_dim, "value": own.value_dim, "output gate": own.value_dim}
    return [
        *(kept(name, per_dim * dims, _PRODUCTS, "attention") for name, dims in projected.items()),
        kept("decay and strength", 2 * per_dim, _PRODUCTS, "attention"),
        kept("attention output", per_dim * own.value_dim, _OWN_OUTPUTS, "attention"),
    ]


class _KernelOutput(NamedTuple):
    """Bytes that an attention kernel's forward pass returns: its output, and what normalises it."""

    output: int
    normaliser: int


def _kernel_output(shard: Shard, schedule: Schedule | None) -> _KernelOutput:
    """Returns what self-attention by ``schedule`` returns, or cross-attention where there is none.

    Plain XLA returns attended queries alone, and two numbers each of those that it takes in chunks.
    """
    if shard.kernel != "rectangles" or shard.context.ring > 1:
        return _KernelOutput(shard.tokens * shard.laid_out_inner * shard.itemsize, shard.tokens * shard.heads * _FP32)
    counts = [shard.num_tokens] if schedule is None else [r.num_queries for r in schedule.rectangles]
    chunked = sum(n // QUERY_CHUNK * QUERY_CHUNK for n in counts if n > QUERY_CHUNK)
    ways = shard.mesh["context"]
    return _KernelOutput(
        output=shard.batch * sum(counts) * shard.inner * shard.itemsize // ways,
        normaliser=2 * _FP32 * shard.batch * chunked * shard.heads // ways,
    )


def _exchanged(heads: int) -> Iterable[Array]:
    """What attention reads: after an exchange over the mesh it comes back only by another exchange."""
    for name in ("query", "key", "value"):
        yield Array(
            name=f"exchanged {name}",
            num_bytes=heads,
            kept_by=("exchanged",),
            is_product=False,
            part="attention",
        )


def _scores(shard: Shard, schedule: Schedule) -> int:
    """Bytes of scores that plain XLA attention keeps: those of fewer queries than a chunk."""
    if shard.kernel != "rectangles" or shard.context.ring > 1:
        return 0
    rest = sum(
        (r.num_queries if r.num_queries <= QUERY_CHUNK else r.num_queries % QUERY_CHUNK) * r.num_keys
        for r in schedule.rectangles
    )
    cross = shard.num_tokens if shard.num_tokens <= QUERY_CHUNK else shard.num_tokens % QUERY_CHUNK
    rest += cross * (shard.context_tokens + shard.image_tokens)
    return _FP32 * shard.batch * rest * shard.heads // shard.mesh["context"]


def _mlp_workspace(shard: Shard) -> int:
    """Bytes beside what is kept while the feed-forward layer's backward pass runs.

    Its units, their gradient and that of the product before them; its input, the gradient of its output, and the
    residual stream's gradient in fp32.
    """
    size = shard.itemsize
    units = 3 * shard.tokens * shard.hidden * size
    stream = shard.stream_tokens * shard.block.width
    return units + 2 * stream * size + stream * _FP32


def attention_workspace(shard: Shard, schedule: Schedule) -> int:
    """Bytes beside what is kept while self-attention's backward pass runs.

    Queries, keys and values as attention reads them, the gradient of its output, the three gradients it returns (those
    of a ring's keys and values in fp32), the partial gradients of the queries that the TPU kernel writes, one for each
    block of keys, and the residual stream's gradient in fp32.
    """
    size, rows = shard.itemsize, shard.tokens
    heads = rows * shard.laid_out_inner
    keys = heads * (shard.context.ring if shard.context.exchange == "all_gather" else 1)
    travelling = 2 if shard.context.ring > 1 else 1  # what is held, and what arrives
    operands = (heads + 2 * travelling * keys + heads) * size
    gradients = heads * size + 2 * keys * (_FP32 if shard.context.ring > 1 else size)
    partial = _partial_gradients(shard, schedule) * heads * size
    return operands + gradients + partial + shard.stream_tokens * shard.block.width * _FP32


def recurrence_workspace(shard: Shard) -> int:
    """Bytes beside what is kept while the backward pass of a gated delta rule runs (``nn.gated_delta``).

    Its inputs and the gradient of its output; in fp32 the state at every chunk, what its chunks write, read and
    correct, queries and keys with their decays, products within a chunk (overlaps, inverse, scores, decays); the
    gradients of all that its scan reads, and the residual stream's gradient.
    """
    own, per_dim = shard.block.own_attention, shard.tokens * shard.heads
    inputs = per_dim * (2 * own.key_dim + 2 * own.value_dim) * shard.itemsize
    states = _FP32 * -(-per_dim // DELTA_CHUNK) * own.key_dim * own.value_dim
    scanned = _FP32 * per_dim * (3 * own.key_dim + own.value_dim + DELTA_CHUNK)  # queries, keys, reads; writes; scores
    corrected = _FP32 * per_dim * own.value_dim
    within = _FP32 * per_dim * 3 * DELTA_CHUNK
    return inputs + states + 2 * scanned + corrected + within + shard.stream_tokens * shard.block.width * _FP32


def _partial_gradients(shard: Shard, schedule: Schedule) -> int:
    """Gradients of the queries that splash's fused backward kernel writes, one for each block of keys."""
    if shard.kernel != "splash":
        return 0
    keys = shard.keys_per_query_part
    is_part = shard.context.ring > 1  # a cut of the schedule: priced as if all of it were seen
    whole = Schedule(keys, keys, (Rectangle(((0, keys),), ((0, keys),)),)) if is_part else schedule
    return -(-keys // splash_blocks(pad_to_lanes(whole)).backward_keys)
