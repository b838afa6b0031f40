"""Step time as a roofline: what each phase asks of one resource, over what the resource reaches.

Phases that compute follow one another; exchange hides behind them as far as it can, and input behind everything. Three
times come out: *low*, everything hides and every resource is at its best; *high*, nothing hides and every resource is
at its worst; *mid*, expected shares of both. The binding resource is the one with the most expected seconds.

What is not in it: latency, contention, stragglers, kernels launched one by one; a step of a few milliseconds takes
longer than this says.

Source: the roofline model (Williams et al., 2009) and "How to Scale Your Model" (jax-ml.github.io/scaling-book).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from wamjax.config.choices import REPEATING
from wamjax.flops.model import FlopCount
from wamjax.planning.assumption import Band
from wamjax.planning.efficiency import Efficiencies
from wamjax.planning.exchange import Exchange
from wamjax.planning.fabric import Fabric
from wamjax.planning.machine import Machine
from wamjax.planning.memory import MemoryPlan
from wamjax.planning.shards import Shard

_SCORES = ("self_scores", "cross_scores")

# How often a block's arrays go through memory outside matrix products and attention kernels, per pass: arrays of the
# residual stream's width (norms, modulation, rotary, residual sums, copies into and out of what is kept), arrays of
# feed-forward units, and gathered kernels with their gradients. Chosen so that the 14B at 480p moves what its compiled
# step does (0.22 s at XLA's streaming speed, v5p:4x4x4, jax 0.10.2, libtpu 0.0.51).
_STREAM_PASSES = {"forward": 20, "backward": 40}
_HIDDEN_PASSES = {"forward": 4, "backward": 8}
_KERNEL_PASSES = 5
# Passes over the output of one residual convolution, forward and backward, that are not part of its products: 1.34 to
# 1.6 in four compiled steps of UniPi's model (v5e:2x2, jax 0.10.2, libtpu 0.0.51) at the expected share of bandwidth.
_CONVOLUTION_PASSES = 1.5
_OFFLOAD = "activations to host and back"


class Resource(enum.StrEnum):
    """What a phase occupies."""

    MATRIX = "matrix units"
    MEMORY = "HBM"
    LINKS = "ICI"  # the scale-up links of GPUs, too
    NETWORK = "DCN"
    HOST = "host input"

    def name_on(self, machine: Machine) -> str:
        """Returns its name on ``machine``: ICI and DCN are what TPUs have."""
        return self.value if machine.generation is not None else _ON_GPUS.get(self, self.value)


_ON_GPUS = {Resource.LINKS: "scale-up links", Resource.NETWORK: "scale-out network"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the step.

    Attributes:
      name: What it does.
      resource: What it occupies.
      work: FLOPs or bytes of one device.
      listed_s: Seconds at the listed rate.
      seconds: At the assumed shares of that rate.
    """

    name: str
    resource: Resource
    work: int
    listed_s: float
    seconds: Band


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """The step.

    Attributes:
      phases: Its parts.
      step_s: Seconds of a step.
      busy_s: Those of them in which nothing waits for the batch.
      binding: The resource with the most expected seconds.
      mfu: Model FLOPs of the expected time, of the listed peak.
      hfu: Hardware FLOPs likewise.
      peak_flops_per_s: Listed dense peak of all chips: what both are shares of.
    """

    phases: tuple[Phase, ...]
    step_s: Band
    busy_s: Band
    binding: Resource
    mfu: float
    hfu: float
    peak_flops_per_s: float

    def seconds_of(self, resource: Resource) -> float:
        """Returns the expected seconds of a resource."""
        return sum((phase.seconds.mid for phase in self.phases if phase.resource is resource), 0.0)


def plan_time(
    count: FlopCount,
    shard: Shard,
    memory: MemoryPlan,
    exchanges: Sequence[Exchange],
    machine: Machine,
    efficiencies: Efficiencies,
    fabric: Fabric | None = None,
    *,
    decode_s: float = 0.0,
) -> Roofline:
    """Returns the step time of ``shard`` on ``machine``.

    Args:
      count: FLOPs of one sample.
      shard: One device's part.
      memory: What it holds.
      exchanges: What it sends.
      machine: What it runs on.
      efficiencies: Shares of the listed rates.
      fabric: The machine's wires under the shard's mesh, if they were laid already.
      decode_s: Seconds in which all cores of a host decode its part of a batch; 0 where latents are cached.

    Raises:
      ValueError: The chip has no listed peak for the compute dtype (``explain_no_peak`` says so beforehand).
    """
    peak = machine.chip.peaks.get(_peak_dtype(shard))
    if peak is None:
        raise ValueError(explain_no_peak(shard, machine))
    phases = [
        *_compute(count, shard, peak / machine.chip.devices_per_chip, efficiencies),
        *_memory(shard, memory, machine, efficiencies),
        *_wires(exchanges, fabric or Fabric(machine, shard.mesh), machine, efficiencies),
        *_input(memory, machine, efficiencies, decode_s),
    ]
    step, busy = _overlap([phase for phase in phases if phase.listed_s > 0], efficiencies.hidden)
    samples = shard.batch * shard.parts * shard.mesh["data"] * shard.mesh["fsdp"]
    rate = float(peak * machine.num_chips)
    totals = {resource: sum(p.seconds.mid for p in phases if p.resource is resource) for resource in Resource}
    return Roofline(
        phases=tuple(phases),
        step_s=step,
        busy_s=busy,
        binding=max(totals, key=lambda resource: totals[resource]),
        mfu=samples * count.model_total / step.mid / rate,
        hfu=samples * count.hardware_total / step.mid / rate,
        peak_flops_per_s=rate,
    )


def explain_no_peak(shard: Shard, machine: Machine) -> str:
    """Returns why there is no step time on ``machine``; empty where there is one."""
    dtype, peaks = _peak_dtype(shard), machine.chip.peaks
    if dtype in peaks:
        return ""
    return (
        f"no listed {dtype} peak for {machine.chip.name} (listed: {', '.join(sorted(peaks))}); a step time needs "
        "compute_dtype=bfloat16 (config.model or config.backbone.block)"
    )


def _peak_dtype(shard: Shard) -> str:
    """Returns the dtype whose peak bounds the products: the compute dtype, since attention is never rounded further."""
    return shard.block.compute_dtype


def _phase(name: str, resource: Resource, work: int | float, rate: int | float, share: Band) -> Phase:
    listed = work / rate
    seconds = Band(low=listed / share.high, mid=listed / share.mid, high=listed / share.low)
    return Phase(name=name, resource=resource, work=int(work), listed_s=listed, seconds=seconds)


def _compute(count: FlopCount, shard: Shard, peak: int | float, efficiencies: Efficiencies) -> list[Phase]:
    """Matrix products and attention kernels of one device, which has an equal part of all samples."""
    samples = shard.batch * shard.parts * shard.mesh["data"] * shard.mesh["fsdp"]
    each = samples / shard.num_devices
    products = sum(flops for name, flops in count.hardware.items() if name not in _SCORES)
    once = sum(count.hardware_forward[name] for name in _SCORES)
    forward = once * (2 if shard.remat == "full" else 1)
    backward = sum(count.hardware[name] for name in _SCORES) - forward
    busiest = peak / shard.imbalance  # all wait for the device with the most pairs
    return [
        _phase("matrix products", Resource.MATRIX, each * products, peak, efficiencies.matmul),
        _phase("attention, forward", Resource.MATRIX, each * forward, busiest, efficiencies.attention_forward),
        _phase("attention, backward", Resource.MATRIX, each * backward, busiest, efficiencies.attention_backward),
    ]


def _memory(shard: Shard, memory: MemoryPlan, machine: Machine, efficiencies: Efficiencies) -> list[Phase]:
    """What goes through memory outside products and kernels, and the optimizer's update."""
    rate = machine.chip.hbm_bytes_per_s / machine.chip.devices_per_chip
    size, times = shard.itemsize, shard.num_layers * shard.parts
    runs = {"forward": 2 if shard.remat in REPEATING else 1, "backward": 1}
    stream = sum(runs[name] * passes for name, passes in _STREAM_PASSES.items()) * shard.tokens * shard.block.width
    hidden = sum(runs[name] * passes for name, passes in _HIDDEN_PASSES.items()) * shard.tokens * shard.hidden
    kernels = _KERNEL_PASSES * memory.collectives // 3
    moved = times * ((stream + hidden) * size + kernels)
    if shard.is_convolutional:
        moved = times * _CONVOLUTION_PASSES * shard.tokens * shard.block.width * size
    # The state is read and written, the gradient read: 28 bytes a parameter for AdamW in fp32. What is kept passes by.
    gradients = memory.gradients // (2 if shard.parts > 1 else 1)
    update = 2 * (gradients + memory.optimizer + memory.ema) + gradients
    return [
        _phase("elementwise", Resource.MEMORY, moved, rate, efficiencies.memory),
        _phase("optimizer", Resource.MEMORY, update, rate, efficiencies.memory),
    ]


def _wires(exchanges: Sequence[Exchange], fabric: Fabric, machine: Machine, efficiencies: Efficiencies) -> list[Phase]:
    """One phase for each kind of wire and group of mesh axes."""
    links: dict[str, list[float]] = {}
    network: dict[str, list[float]] = {}
    for exchange in exchanges:
        times = fabric.time(exchange.kind, exchange.num_bytes, exchange.axes)
        axes, moved = "+".join(exchange.axes), exchange.num_bytes * exchange.times
        for table, seconds in ((links, times.links), (network, times.network)):
            if seconds:
                cell = table.setdefault(axes, [0.0, 0.0])
                cell[0] += moved
                cell[1] += seconds * exchange.times
    name = "ICI" if machine.generation is not None else "scale-up links"
    rows = [(f"{name}, {axes}", Resource.LINKS, cell, efficiencies.links) for axes, cell in links.items()]
    rows += [(f"network, {axes}", Resource.NETWORK, cell, efficiencies.network) for axes, cell in network.items()]
    return [_phase(label, resource, moved, moved / seconds, share) for label, resource, (moved, seconds), share in rows]


def _input(memory: MemoryPlan, machine: Machine, efficiencies: Efficiencies, decode_s: float) -> list[Phase]:
    """The batch on its way to the device, what is kept in host memory there and back, and decoding."""
    rate = machine.host.input_bytes_per_s
    seconds = Band(low=decode_s, mid=decode_s, high=decode_s)
    return [
        _phase("batch to device", Resource.HOST, memory.input, rate, efficiencies.host),
        _phase(_OFFLOAD, Resource.HOST, 2 * memory.host, rate, efficiencies.host),
        Phase(name="decoding", resource=Resource.HOST, work=0, listed_s=decode_s, seconds=seconds),
    ]


def _overlap(phases: Sequence[Phase], hidden: Band) -> tuple[Band, Band]:
    """Returns the step, and what of it does not wait for the batch.

    Compute goes in a row, wires hide behind it as far as assumed, what comes from the host behind all.
    """

    def total(end: str, *resources: Resource) -> float:
        return sum((getattr(phase.seconds, end) for phase in phases if phase.resource in resources), 0.0)

    times, working = {}, {}
    for end, share in (("low", hidden.high), ("mid", hidden.mid), ("high", hidden.low)):
        compute = total(end, Resource.MATRIX, Resource.MEMORY)
        wires = total(end, Resource.LINKS, Resource.NETWORK)
        busy = compute + max((1 - share) * wires, wires - compute)
        host_s = total(end, Resource.HOST)
        offload_s = sum((getattr(phase.seconds, end) for phase in phases if phase.name == _OFFLOAD), 0.0)
        times[end] = max(busy, host_s) if end != "high" else busy + host_s
        working[end] = max(busy, offload_s) if end != "high" else busy + offload_s
    return Band(**times), Band(**working)
