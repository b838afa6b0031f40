"""Which collectives a compiled module runs: kind, mesh axes, bytes, how often, and whether compute may hide them.

TPU programs write one collective in several ways: as one instruction, as a start and a done, inside a fusion (reduce-
scatter as "all-reduce-scatter"; on v5e an asynchronous gather is a start fusion, matrix products that carry it on, and
a done fusion), or inside an asynchronous computation that another core runs (tpu7x). Each is found and counted once.

Group ids of an SPMD module are positions in the program's device order, which is the order of the mesh's devices.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable, Mapping

import numpy as np

from wamjax.planning.device_groups import parse_groups
from wamjax.planning.hlo import Computation, Instruction, Module
from wamjax.planning.loops import visit_computations

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BASE = {kind: kind for kind in KINDS} | {"ragged-all-to-all": "all-to-all"}
_START = {f"{opcode}-start": kind for opcode, kind in _BASE.items()}
_DONE = {f"{opcode}-done" for opcode in _BASE}
PARTIAL = " (part)"  # after the axes, where the groups are less than their whole product


class Phase(enum.Enum):
    """What an instruction does with a collective."""

    SYNC = "sync"
    START = "start"
    DONE = "done"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of one device, per execution of its computation.

    Attributes:
      kind: One of ``KINDS``.
      num_bytes: The whole array of one device: gathered, reduced, before scattering, exchanged or sent.
      groups: Devices that take part together, as positions in the program's device order; of a permute, (source,
        target) pairs.
      shape: Operands, for reading.
      op_name: Where in the Python program it comes from.
      name: Of the instruction.
    """

    kind: str
    num_bytes: int
    groups: tuple[tuple[int, ...], ...]
    shape: str
    op_name: str
    name: str


@dataclasses.dataclass(frozen=True)
class Event:
    """A collective as one instruction of a schedule: runs, begins or is awaited. ``key`` joins start and done."""

    phase: Phase
    key: str
    collective: Collective | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """A collective with how often it runs per step.

    Attributes:
      collective: It.
      axes: Mesh axes it runs over, such as ``fsdp`` or ``data+fsdp``; with ``PARTIAL`` if over a part of them.
      times: Executions per step.
      depth: Loops around it.
      is_async: Whether compute may run between its start and its end.
    """

    collective: Collective
    axes: str
    times: int
    depth: int
    is_async: bool


def list_collectives(module: Module, mesh_shape: Mapping[str, int]) -> list[Use]:
    """Returns every collective of ``module`` once, in program order."""
    num_devices = int(np.prod(list(mesh_shape.values())))
    uses = []
    for computation, times, depth, _ in visit_computations(module)[0]:
        for event in find_events(module, computation, num_devices).values():
            if event.collective is not None:
                axes = name_axes(event.collective, mesh_shape)
                is_async = event.phase is Phase.START
                uses.append(Use(collective=event.collective, axes=axes, times=times, depth=depth, is_async=is_async))
    return uses


def tabulate(uses: Iterable[Use]) -> dict[str, dict[str, dict[str, int]]]:
    """Returns kind -> axes -> {"count", "bytes"} per device and step, loops multiplied."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    for use in uses:
        cell = table.setdefault(use.collective.kind, {}).setdefault(use.axes, {"count": 0, "bytes": 0})
        cell["count"] += use.times
        cell["bytes"] += use.times * use.collective.num_bytes
    return table


def find_events(module: Module, computation: Computation, num_devices: int) -> dict[str, Event]:
    """Returns instruction name -> event, for the instructions of ``computation`` that are part of a collective."""
    events: dict[str, Event] = {}
    for instruction in computation.instructions:
        event = _find_event(module, computation, instruction, num_devices)
        if event is not None:
            events[instruction.name] = event
    return events


def name_axes(collective: Collective, mesh_shape: Mapping[str, int]) -> str:
    """Returns the mesh axes along which the devices of each group differ, joined by ``+``; see ``Use.axes``."""
    names, sizes = list(mesh_shape), tuple(mesh_shape.values())
    grid = np.arange(int(np.prod(sizes))).reshape(sizes)
    places = {int(device): place for place, device in np.ndenumerate(grid)}
    varying = [
        axis
        for axis in range(len(sizes))
        if any(len({places[device][axis] for device in group}) > 1 for group in collective.groups)
    ]
    name = "+".join(names[axis] for axis in varying)
    if collective.kind != "collective-permute":
        fixed = [axis for axis in range(len(sizes)) if axis not in varying]
        expected = grid.transpose(fixed + varying).reshape(-1, int(np.prod([sizes[axis] for axis in varying])))
        if {frozenset(group) for group in collective.groups} != {frozenset(row) for row in expected.tolist()}:
            return name + PARTIAL
    return name


def _find_event(module: Module, computation: Computation, instruction: Instruction, num_devices: int) -> Event | None:
    opcode = instruction.opcode
    if opcode in _BASE or opcode in _START:
        kind, phase = (_BASE[opcode], Phase.SYNC) if opcode in _BASE else (_START[opcode], Phase.START)
        return Event(phase, instruction.name, _describe(computation, instruction, kind, num_devices))
    if opcode in _DONE:
        return Event(Phase.DONE, instruction.operands[0], None)
    if opcode == "fusion":
        return _find_in_fusion(module, instruction, num_devices)
    if opcode in ("async-start", "async-update", "async-done"):
        return _find_in_async(module, computation, instruction, num_devices)
    return None


def _find_in_fusion(module: Module, fusion: Instruction, num_devices: int) -> Event | None:
    """Classifies a fusion that holds a collective by the markers that XLA puts beside it."""
    found = _first_collective(module, fusion)
    if found is None:
        return None
    inner, computation = found
    targets = {nested.target for nested, _ in _nested(module, fusion)}
    chain = re.search(r'chain_id="([^"]*)"', inner.attributes)
    key = f"chain {chain[1]}" if chain else fusion.name
    if "AsyncCollectiveDone" in targets:
        return Event(Phase.DONE, key, None)
    kind = inner.opcode
    if kind == "all-reduce" and fusion.num_bytes < inner.num_bytes:
        kind = "reduce-scatter"  # "all-reduce-scatter": each device keeps its slice of the sum
    if "AsyncCollectiveStart" in targets:
        return Event(Phase.START, key, _describe(computation, inner, kind, num_devices))
    if "async_collective_fusion_config" in inner.backend_config:
        return None  # a product that carries on what a start fusion has begun
    return Event(Phase.SYNC, key, _describe(computation, inner, kind, num_devices))


def _find_in_async(
    module: Module, computation: Computation, instruction: Instruction, num_devices: int
) -> Event | None:
    """Classifies a step of ``async-start`` (-> ``async-update``) -> ``async-done``.

    With an update, the start only prepares, and the data is handed over by the update.
    """
    start = instruction
    while start.opcode != "async-start":
        start = computation.by_name[start.operands[0]]
    found = _first_collective(module, start)
    if found is None:
        return None
    if instruction.opcode == "async-done":
        return Event(Phase.DONE, start.name, None)
    updates = [user for user in computation.users[instruction.name] if user.opcode == "async-update"]
    if updates:
        return None
    inner, within = found
    return Event(Phase.START, start.name, _describe(within, inner, inner.opcode, num_devices))


def _first_collective(module: Module, caller: Instruction) -> tuple[Instruction, Computation] | None:
    return next(((inner, within) for inner, within in _nested(module, caller) if inner.opcode in _BASE), None)


def _nested(module: Module, caller: Instruction) -> Iterable[tuple[Instruction, Computation]]:
    """Yields the instructions below a fusion, an asynchronous start or a custom call, with their computations."""
    for key in ("calls", "called_computations", "to_apply"):
        name = caller.attribute(key)
        called = module.computations.get(name.strip("{}%")) if name else None
        if called is None:
            continue
        for inner in called.instructions:
            yield inner, called
            if inner.opcode not in _BASE:
                yield from _nested(module, inner)


def _describe(computation: Computation, instruction: Instruction, kind: str, num_devices: int) -> Collective:
    groups = parse_groups(instruction, num_devices)
    arrays = computation.operand_arrays(instruction)
    copies = len(groups[0]) if kind == "all-gather" else 1
    return Collective(
        kind=kind,
        num_bytes=copies * sum(array.num_bytes for array in arrays),
        groups=groups,
        shape=", ".join(map(str, arrays)),
        op_name=instruction.op_name,
        name=instruction.name,
    )
