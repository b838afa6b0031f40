"""What devices send each other in one step: kinds of collectives, mesh axes, bytes and how often, in closed form.

Owns the list; how long each takes is ``planning.fabric``'s. The counterpart that reads a compiled program is
``planning.collectives``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from wamjax.config.choices import REPEATING
from wamjax.parallel.context_plan import CONTEXT
from wamjax.planning.fabric import Kind
from wamjax.planning.placement import Placed
from wamjax.planning.shards import Shard

_FP32 = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
    """One kind of collective of a step, on every device.

    Attributes:
      what: What is moved, for reading.
      kind: Kind of collective.
      axes: Mesh axes of more than one device that it spans.
      num_bytes: The whole array of one device, each time.
      times: Per step.
    """

    what: str
    kind: Kind
    axes: tuple[str, ...]
    num_bytes: int
    times: int


def list_exchanges(shard: Shard, parameters: Sequence[Placed]) -> tuple[Exchange, ...]:
    """Returns what a step of ``shard`` exchanges; nothing of axes of one device."""
    found = [*_weights(shard, parameters), *_tokens(shard), *_tensor(shard)]
    return tuple(e for e in found if e.axes and e.num_bytes and e.times)


def _axes(shard: Shard, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if shard.mesh[name] > 1)


def _weights(shard: Shard, parameters: Sequence[Placed]) -> list[Exchange]:
    """Kernels gathered for both passes, their gradients added up, the sum over replicas."""
    entry = shard.rules.parameters["embed"] or ()
    axes = _axes(shard, *((entry,) if isinstance(entry, str) else entry))
    own = [p for p in parameters if p.is_trained]

    def whole(rows: Sequence[Placed]) -> int:
        return sum(p.gathered for p in rows if p.is_gathered)

    def send(what: str, kind: Kind, where: tuple[str, ...], num_bytes: int, times: int) -> Exchange:
        return Exchange(what=what, kind=kind, axes=where, num_bytes=num_bytes, times=times)

    # Per block, as the program does it; the few kernels outside the blocks are spread over the blocks' exchanges.
    layers, size = shard.num_layers, shard.itemsize
    vectors = _FP32 * sum(p.local for p in own if not p.is_gathered)
    return [
        send("kernels", "all-gather", axes, whole(parameters) * size // layers, 2 * layers * shard.parts),
        send("gradients of kernels", "reduce-scatter", axes, whole(own) * size // layers, layers * shard.parts),
        send("gradients of vectors", "all-reduce", _axes(shard, "fsdp", CONTEXT), vectors, shard.parts),
        send(
            "gradients of replicas", "all-reduce", _axes(shard, "data"), _FP32 * sum(p.local for p in own),
            shard.parts,
        ),
    ]  # fmt: skip


def _tokens(shard: Shard) -> list[Exchange]:
    """Attention's exchanges over the context axis (docs/design/context-parallelism.md has the formulas)."""
    ulysses, ring = shard.context.ulysses, shard.context.ring
    axes, times = _axes(shard, CONTEXT), shard.num_layers * shard.parts
    heads = shard.tokens * shard.inner * shard.itemsize
    wide = heads * _FP32 // shard.itemsize
    found = []

    def add(what: str, kind: Kind, num_bytes: int, per_layer: int) -> None:
        found.append(Exchange(what=what, kind=kind, axes=axes, num_bytes=num_bytes, times=per_layer * times))

    if ulysses > 1:
        # Queries, keys and values there and the output back, the same backward; and again what was not kept.
        again = 1 if shard.remat == "exchanged" else 4
        add("heads", "all-to-all", heads, 4 + 4 + again)
    runs = 3 if shard.remat == "full" else 2  # passes that bring keys and values
    if ring > 1 and shard.context.exchange == "ring":
        add("keys and values", "collective-permute", heads, 2 * (ring - 1) * runs)
        add("gradients of keys and values", "collective-permute", wide, 2 * ring)
    if ring > 1 and shard.context.exchange == "all_gather":
        add("keys and values", "all-gather", ring * heads, 2 * runs)
        add("gradients of keys and values", "reduce-scatter", ring * wide, 2)
    return found


def _tensor(shard: Shard) -> list[Exchange]:
    """Partial sums of products over the tensor axis: three outputs of a block forward, three inputs backward.

    Source: Megatron-LM (arXiv 1909.08053), with cross-attention as a third layer. Split streams
    (arXiv 2205.05198) gather and scatter the same bytes.
    """
    per_layer = 3 + 3 + (2 if shard.remat in REPEATING else 0)  # the last output of a block is not needed again
    num_bytes = shard.tokens * shard.block.width * shard.itemsize
    return [
        Exchange(
            what="partial sums",
            kind="all-reduce",
            axes=_axes(shard, "tensor"),
            num_bytes=num_bytes,
            times=per_layer * shard.num_layers * shard.parts,
        )
    ]
