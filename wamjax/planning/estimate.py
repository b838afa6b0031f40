"""How long a step takes, from the compiled program's own cycle counts and schedule.

Compute is priced by the compiler's ``estimated_cycles`` over the clock, attention kernels (which carry no cycles) by
FLOPs at a fraction of the peak, collectives by ring formulas, host transfers by bytes over bandwidth. Three bounds:

``overlapped``
    The longest of compute, links and host: everything hides everything.
``scheduled``
    The compiled order replayed. A synchronous collective stops compute; between an asynchronous start and its done,
    compute hides the wire. The links serve one collective at a time.
``exposed``
    The sum: nothing hides anything.

Of a conditional, such as a ring's on the part a device holds, one branch is taken: on average over devices, each as
often as the others; in the order of the schedule the longest, for which the others wait.

Not priced: latency, contention, copies between HBM and on-chip memory (asynchronous, taken to hide), infeed. Expect an
absolute error of some 20 %; ratios between programs under equal assumptions are better. Beside ``other`` (what is no
matrix product) stands ``roof``: the bytes of the same instructions at streaming speed. The compiler charges unfused
copies far more than that, so a change that moves only the estimate and not the roof is an effect of its cost model.
"""

from __future__ import annotations

import dataclasses
import functools

from wamjax.planning.chips import TpuGeneration
from wamjax.planning.collectives import Event, Phase, find_events
from wamjax.planning.hlo import HOST, Computation, Instruction, Module
from wamjax.planning.ici import Torus
from wamjax.planning.kernels import Kernel, find_kernel
from wamjax.planning.loops import branches, trip_count, visit_computations
from wamjax.planning.traffic import hbm_bytes

_PRODUCTS = ("convolution", "dot", "ragged-dot")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step, on each device.

    Attributes:
      overlapped: See the module.
      scheduled: See the module.
      exposed: See the module.
      matmul: Instructions with a matrix product in them.
      other: All other instructions, by the compiler's cycles.
      attention: Pallas kernels.
      ici: Collectives, on the links.
      ici_synchronous: Those of them that stop compute.
      host: Transfers between device and host memory.
      other_roof: ``other`` as bytes at streaming speed.
      scheduled_roof: ``scheduled`` with ``other_roof`` in place of ``other``.
      kernels: Names of the Pallas kernels that run.
      unpriced: Kernels without FLOPs, which take no time in this estimate.
    """

    overlapped: float
    scheduled: float
    exposed: float
    matmul: float
    other: float
    attention: float
    ici: float
    ici_synchronous: float
    host: float
    other_roof: float
    scheduled_roof: float
    kernels: tuple[str, ...]
    unpriced: tuple[str, ...]


def estimate_step(module: Module, generation: TpuGeneration, torus: Torus) -> StepTime:
    """Returns the estimate for ``module``, compiled for devices that ``torus`` places."""
    prices = _Prices(module, generation, torus)
    sums = dict.fromkeys(("matmul", "other", "attention", "ici", "ici_synchronous", "host", "other_roof"), 0.0)
    kernels: dict[str, Kernel] = {}
    for computation, runs, _, ways in visit_computations(module)[0]:
        events, times = prices.events(computation), runs / ways
        for instruction in computation.instructions:
            if event := events.get(instruction.name):
                wire = times * prices.wire(event)
                sums["ici"] += wire
                sums["ici_synchronous"] += wire if event.phase is Phase.SYNC else 0.0
            elif _is_host_transfer(computation, instruction):
                sums["host"] += times * prices.host(computation, instruction)
            elif kernel := find_kernel(computation, instruction):
                kernels[kernel.name] = kernel
                sums["attention"] += times * prices.kernel(kernel)
            elif cycles := instruction.estimated_cycles:
                part = "matmul" if _has_product(module, instruction) else "other"
                sums[part] += times * cycles / generation.clock_hz
                if part == "other":
                    sums["other_roof"] += times * prices.roof(computation, instruction)
    compute = sums["matmul"] + sums["other"] + sums["attention"]
    return StepTime(
        overlapped=max(compute, sums["ici"], sums["host"]),
        scheduled=_Replay(prices, at_roof=False).run(module.entry),
        exposed=compute + sums["ici"] + sums["host"],
        **sums,
        scheduled_roof=_Replay(prices, at_roof=True).run(module.entry),
        kernels=tuple(sorted(kernels)),
        unpriced=tuple(sorted(name for name, kernel in kernels.items() if kernel.flops is None)),
    )


class _Prices:
    """Seconds of single instructions."""

    def __init__(self, module: Module, generation: TpuGeneration, torus: Torus):
        self.module, self.generation, self.torus = module, generation, torus

    @functools.cache  # noqa: B019 - lives as long as one estimate
    def events(self, computation: Computation) -> dict[str, Event]:
        return find_events(self.module, computation, len(self.torus.coords))

    def wire(self, event: Event) -> float:
        """Seconds on the links; of the groups, which are alike, the first is priced."""
        collective = event.collective
        if collective is None:
            return 0.0
        return self.torus.wire_seconds(collective.kind, collective.num_bytes, collective.groups[0])

    def host(self, computation: Computation, instruction: Instruction) -> float:
        """Seconds of a transfer: the device's side of it is what moves, the host's may be a whole stack."""
        sides = [*instruction.arrays, *computation.operand_arrays(instruction)]
        return max((a.num_bytes for a in sides if a.memory_space != HOST), default=0) / self.generation.host_bytes_per_s

    def kernel(self, kernel: Kernel) -> float:
        """Seconds of a Pallas kernel: bound by products or by memory."""
        chip = self.generation
        fraction = chip.backward_fraction if kernel.is_backward else chip.forward_fraction
        products = (kernel.flops or 0) / (fraction * chip.peak_flops_per_s)
        return max(products, kernel.num_bytes / chip.streaming_bytes_per_s)

    def roof(self, computation: Computation, instruction: Instruction) -> float:
        """Seconds of the instruction's bytes at streaming speed."""
        return hbm_bytes(self.module, computation, instruction) / self.generation.streaming_bytes_per_s

    def compute(self, computation: Computation, instruction: Instruction, *, at_roof: bool) -> float:
        """Seconds of an instruction that computes."""
        if kernel := find_kernel(computation, instruction):
            return self.kernel(kernel)
        if not instruction.estimated_cycles:
            return 0.0
        if at_roof and not _has_product(self.module, instruction):
            return self.roof(computation, instruction)
        return instruction.estimated_cycles / self.generation.clock_hz


class _Replay:
    """Runs computations in their compiled order against two queues, links and host, each serving one at a time."""

    def __init__(self, prices: _Prices, *, at_roof: bool):
        self._prices, self._at_roof = prices, at_roof
        self._seconds: dict[str, float] = {}

    def run(self, computation: Computation) -> float:
        """Returns the seconds of one execution; what it has begun, it also ends."""
        if computation.name not in self._seconds:
            self._seconds[computation.name] = self._replay(computation)
        return self._seconds[computation.name]

    def _replay(self, computation: Computation) -> float:
        prices, events = self._prices, self._prices.events(computation)
        now, free = 0.0, {"ici": 0.0, "host": 0.0}
        ends: dict[str, float] = {}

        def occupy(queue: str, seconds: float) -> float:
            free[queue] = max(now, free[queue]) + seconds
            return free[queue]

        for instruction in computation.instructions:
            if event := events.get(instruction.name):
                if event.phase is Phase.DONE:
                    now = max(now, ends.get(event.key, now))
                elif event.phase is Phase.START:
                    ends[event.key] = occupy("ici", prices.wire(event))
                else:
                    now = occupy("ici", prices.wire(event))
            elif _is_host_transfer(computation, instruction):
                end = occupy("host", prices.host(computation, instruction))
                if instruction.opcode.endswith("-start"):
                    ends[instruction.name] = end
                else:
                    now = end
            elif instruction.opcode.endswith("-done"):
                now = max(now, ends.get(instruction.operands[0], now))
            elif instruction.opcode == "while":
                now += self._loop(computation, instruction)
            elif called := branches(prices.module, instruction):
                now += max(self.run(branch) for branch in called)
            else:
                now += prices.compute(computation, instruction, at_roof=self._at_roof)
        return max(now, *free.values())

    def _loop(self, computation: Computation, loop: Instruction) -> float:
        module = self._prices.module
        trips = trip_count(module, computation, loop)
        body = module.called(loop, "body")
        return 0.0 if body is None else (1 if trips is None else trips) * self.run(body)


def _has_product(module: Module, instruction: Instruction) -> bool:
    return instruction.opcode in _PRODUCTS or any(inner.opcode in _PRODUCTS for inner in module.nested(instruction))


def _is_host_transfer(computation: Computation, instruction: Instruction) -> bool:
    """Whether the instruction moves an array between device and host memory."""
    is_copy = instruction.opcode in ("copy", "dynamic-slice", "dynamic-update-slice", "fusion")
    if not is_copy and not instruction.opcode.endswith("-start"):
        return False
    sides = [*instruction.arrays, *computation.operand_arrays(instruction)]
    return any(array.memory_space == HOST for array in sides)
