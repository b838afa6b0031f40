"""Which layout of a run is fastest, and which machine meets a deadline or a budget.

A candidate is a mesh, a context method, a rematerialisation policy and a number of parts per step, on a machine.
Every one is planned as ``planning.plan`` plans it; those that do not divide or do not fit say why. What counts is the
expected step time; over machines the run's wall time and money decide, and the candidates that no other beats in both
are the Pareto front.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from wamjax.config.blocks import main_block, with_remat
from wamjax.config.choices import ContextMethod, Remat
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.model import FlopCount, count_flops
from wamjax.layout import build_layout
from wamjax.parallel.context_plan import plan_context
from wamjax.planning.cost import Prices
from wamjax.planning.efficiency import Efficiencies
from wamjax.planning.machine import Machine
from wamjax.planning.memory import MemoryPlan, plan_memory
from wamjax.planning.outlook import Outlook
from wamjax.planning.placement import Placed, place_parameters
from wamjax.planning.plan import OnMachine, decode_seconds, economy_of, execution_of, time_on
from wamjax.planning.run_length import Wanted
from wamjax.planning.shards import Shard, make_shard

CONTEXT_METHODS: tuple[ContextMethod, ...] = ("ulysses", "ring", "ulysses_ring", "all_gather")
REMATS: tuple[Remat, ...] = ("none", "products", "exchanged", "attention", "self_attention", "offload", "full")
_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """What is tried.

    Attributes:
      context_methods: Where the context axis has more than one device.
      remats: Rematerialisation policies.
      parts: Parts of a step (``config.train.accumulate``).
      tensor: Sizes of the tensor axis; beyond 1 the blocks are placed by XLA.
      max_context: Largest context axis.
    """

    context_methods: tuple[ContextMethod, ...] = CONTEXT_METHODS
    remats: tuple[Remat, ...] = REMATS
    parts: tuple[int, ...] = (1, 2, 4, 8)
    tensor: tuple[int, ...] = (1, 2, 4, 8)
    max_context: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One layout on one machine.

    Attributes:
      machine: The machine.
      mesh: Size of each mesh axis.
      context_method: How attention is shared; ``auto`` where one device holds the sequence.
      remat: Rematerialisation policy.
      parts: Parts of a step.
    """

    machine: Machine
    mesh: dict[str, int]
    context_method: ContextMethod
    remat: Remat
    parts: int

    def apply(self, config: RunConfig) -> RunConfig:
        """Returns ``config`` laid out so."""
        blocks = "sharded" if self.mesh["tensor"] > 1 else config.parallel.blocks
        parallel = dataclasses.replace(config.parallel, **self.mesh, context_method=self.context_method, blocks=blocks)
        train = dataclasses.replace(config.train, accumulate=self.parts)
        config = dataclasses.replace(config, parallel=parallel, train=train)
        return with_remat(config, self.remat)

    def __str__(self) -> str:
        mesh = " ".join(f"{name}={size}" for name, size in self.mesh.items())
        return f"{self.machine.name:14} {mesh:36} {self.context_method:12} {self.remat:10} parts={self.parts}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What planning a candidate says.

    Attributes:
      candidate: The candidate.
      memory: Of one device; None where it does not divide.
      on: What a step is; None where it does not divide or fit.
      outlook: The whole run; None where there is no step time.
      why_not: Why it cannot be; empty where it can.
    """

    candidate: Candidate
    memory: MemoryPlan | None
    on: OnMachine | None
    outlook: Outlook | None
    why_not: str

    @property
    def step_s(self) -> float:
        """Expected seconds of a step; infinite where there is none."""
        return float("inf") if self.on is None or self.on.time is None else self.on.time.step_s.mid

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON data."""
        candidate, on, outlook = self.candidate, self.on, self.outlook
        time = None if on is None else on.time
        return {
            "machine": candidate.machine.name,
            "num_chips": candidate.machine.num_chips,
            "mesh": dict(candidate.mesh),
            "context_method": candidate.context_method,
            "remat": candidate.remat,
            "accumulate": candidate.parts,
            "why_not": self.why_not or None,
            "memory_bytes": None if self.memory is None else self.memory.total,
            "is_tight": None if self.memory is None else self.memory.is_tight,
            "host_bytes": None if self.memory is None else self.memory.host,
            "hbm_bytes": candidate.machine.hbm_bytes,
            "step_s": None if time is None else time.step_s.to_json(),
            "binding": None if time is None else time.binding.name_on(candidate.machine),
            "mfu": None if time is None else time.mfu,
            "elapsed_s": None if outlook is None else outlook.elapsed_s.mid,
            "chip_hours": None if outlook is None else outlook.chip_hours.mid,
            "usd": None if outlook is None or outlook.usd is None else outlook.usd.mid,
        }


def candidates(config: RunConfig, machine: Machine, space: Space) -> Iterator[Candidate]:
    """Yields every candidate on ``machine`` whose mesh has its number of devices."""
    block = main_block(config)
    for mesh in _meshes(machine, space):
        methods = _methods(mesh, block.num_heads, space)
        for method, remat, parts in itertools.product(methods, space.remats, space.parts):
            yield Candidate(machine=machine, mesh=mesh, context_method=method, remat=remat, parts=parts)


def _methods(mesh: dict[str, int], num_heads: int, space: Space) -> list[ContextMethod]:
    """Returns the context methods that differ on ``mesh``: without the mixed one where it would be one of its parts."""
    if mesh["context"] == 1:
        return ["auto"]
    chosen: list[ContextMethod] = []
    for method in space.context_methods:
        if method == "ulysses_ring" and 1 in _ways(method, num_heads, mesh):
            continue
        chosen.append(method)
    return chosen


def _ways(method: ContextMethod, num_heads: int, mesh: dict[str, int]) -> tuple[int, int]:
    try:
        plan = plan_context(method, num_heads, mesh)
    except ConfigError:  # nothing to exchange
        return 1, mesh["context"]
    return plan.ulysses, plan.ring


def _meshes(machine: Machine, space: Space) -> Iterator[dict[str, int]]:
    """Yields meshes of all devices, of whose axes data alone crosses slices."""
    devices, slices = machine.num_devices, machine.num_slices
    for data in _divisors(devices):
        if data % slices:
            continue
        for context in _divisors(devices // data):
            if context > space.max_context:
                continue
            for tensor in space.tensor:
                rest = devices // data // context
                if rest % tensor == 0:
                    yield {"data": data, "fsdp": rest // tensor, "context": context, "tensor": tensor}


def search(
    config: RunConfig,
    tried: Iterable[Candidate],
    *,
    steps: int,
    prices: Prices,
    wanted: Wanted | None = None,
    efficiencies: Efficiencies | None = None,
) -> list[Result]:
    """Plans candidates and returns them, those that can be before those that cannot, the fastest first.

    Args:
      config: The run, whose own layout is replaced.
      tried: The candidates.
      steps: Steps of the run.
      prices: Of chips.
      wanted: Deadline and budget that a run must keep to.
      efficiencies: What step times rest on; None for those of each machine's chips.
    """
    known = _Known(config)
    results = [
        _plan(config, candidate, known, steps=steps, prices=prices, wanted=wanted, efficiencies=efficiencies)
        for candidate in tried
    ]
    return sorted(results, key=_rank)


def pareto(results: Sequence[Result]) -> list[Result]:
    """Returns the feasible results with a price that no other beats in both wall time and money, fastest first."""
    priced = sorted(
        (r for r in results if not r.why_not and r.outlook is not None and r.outlook.usd is not None),
        key=lambda r: _time_and_money(r),
    )
    front: list[Result] = []
    for result in priced:
        if not front or _time_and_money(result)[1] < _time_and_money(front[-1])[1]:
            front.append(result)
    return front


def _time_and_money(result: Result) -> tuple[float, float]:
    assert result.outlook is not None, "only priced results are compared"
    assert result.outlook.usd is not None
    return result.outlook.elapsed_s.mid, result.outlook.usd.mid


def _rank(result: Result) -> tuple[bool, float, float]:
    elapsed = float("inf") if result.outlook is None else result.outlook.elapsed_s.mid
    needed = float("inf") if result.memory is None else float(result.memory.total)
    return bool(result.why_not), elapsed, result.step_s if result.on else needed


def _plan(
    config: RunConfig,
    candidate: Candidate,
    known: _Known,
    *,
    steps: int,
    prices: Prices,
    wanted: Wanted | None,
    efficiencies: Efficiencies | None,
) -> Result:
    """Plans one candidate; what does not fit into memory is not timed."""
    laid, machine = candidate.apply(config), candidate.machine
    try:
        shard = make_shard(laid, known.layout, machine)
        parameters = known.parameters(laid, shard)
        memory = plan_memory(laid, shard, known.layout.full_pass().schedule, parameters, machine.hbm_bytes)
        if not memory.fits:
            return Result(candidate=candidate, memory=memory, on=None, outlook=None, why_not=_too_large(memory))
        count = known.flops(laid, shard, candidate)
        decode_s = decode_seconds(config, machine)
        on = time_on(machine, shard, parameters, memory, count, efficiencies, decode_s=decode_s)
        economy = economy_of(laid, on, prices)
        outlook = None if economy is None else economy.outlook(steps)
    except ConfigError as error:
        return Result(candidate=candidate, memory=None, on=None, outlook=None, why_not=str(error))
    return Result(candidate=candidate, memory=memory, on=on, outlook=outlook, why_not=_why_not(on, outlook, wanted))


class _Known:
    """What many candidates share: the layout, parameters on a mesh, FLOPs of a policy on so many devices."""

    def __init__(self, config: RunConfig) -> None:
        self.layout = build_layout(config)
        self._parameters: dict[Hashable, tuple[Placed, ...]] = {}
        self._flops: dict[Hashable, FlopCount] = {}

    def parameters(self, config: RunConfig, shard: Shard) -> tuple[Placed, ...]:
        """Returns the parameters on the shard's mesh."""
        key = tuple(shard.mesh.values())
        if key not in self._parameters:
            self._parameters[key] = place_parameters(config, shard.mesh, shard.rules.parameters)
        return self._parameters[key]

    def flops(self, config: RunConfig, shard: Shard, candidate: Candidate) -> FlopCount:
        """Returns the FLOPs of one sample."""
        execution = execution_of(shard, candidate.machine)
        key = (execution, candidate.remat, candidate.context_method, config.parallel.blocks)
        if key not in self._flops:
            self._flops[key] = count_flops(config, self.layout, execution)
        return self._flops[key]


def _too_large(memory: MemoryPlan) -> str:
    largest = max(MemoryPlan.KINDS, key=lambda kind: getattr(memory, kind))
    return (
        f"needs {memory.total / _GIB:.1f} GiB of {memory.hbm / _GIB:.1f}, {getattr(memory, largest) / _GIB:.1f} of "
        f"them {largest.replace('_', ' ')}"
    )


def _why_not(on: OnMachine, outlook: Outlook | None, wanted: Wanted | None) -> str:
    if outlook is None:
        return on.no_time
    if wanted is not None and wanted.deadline_s is not None and outlook.elapsed_s.mid > wanted.deadline_s:
        return f"takes {outlook.elapsed_s.mid / 86_400:.1f} days, {wanted.deadline_s / 86_400:.1f} are allowed"
    if wanted is not None and wanted.budget_usd is not None:
        if outlook.usd is None:
            return outlook.cost.usd_reason or "has no price"
        if outlook.usd.mid > wanted.budget_usd:
            return f"costs {outlook.usd.mid:,.0f} USD, {wanted.budget_usd:,.0f} are allowed"
    return ""


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})
