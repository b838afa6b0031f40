"""A ``Plan`` as text: sections in the order a planner reads, every line with the letter of its source.

``e`` computed exactly, ``c`` compiled, ``m`` measured, ``a`` assumed; what is assumed stands at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from wamjax.flops.summary import describe as describe_flops
from wamjax.planning.assumption import Source
from wamjax.planning.feed import Feed
from wamjax.planning.memory import MEMORY_SOURCES, MemoryPlan
from wamjax.planning.outlook import Outlook
from wamjax.planning.plan import OnMachine, Plan
from wamjax.planning.run_length import ZETTA

_GIB = 2**30
_SHORT_STEP_S = 0.01
_LEGEND = "  ".join(f"{source.tag} {source.value}" for source in Source)


def describe(plan: Plan) -> str:
    """Returns the whole plan."""
    sections = [_head(plan), _sample(plan), _flops(plan), _run(plan)]
    if plan.on is not None:
        sections += [_memory(plan.on), _time(plan.on)]
    if plan.outlook is not None and plan.feed is not None:
        sections += [_goodput(plan.outlook), _input(plan.feed), _cost(plan, plan.outlook)]
    sections += [assumptions(plan), [_LEGEND]]
    return "\n\n".join("\n".join(section) for section in sections)


def row(label: str, value: str, source: Source, note: str = "") -> str:
    """Returns one line: tag, label, value, note."""
    return f"  {source.tag}  {label:34} {value:>24}{'  ' + note if note else ''}"


def gib(num_bytes: int) -> str:
    """Returns bytes as GiB."""
    return f"{num_bytes / _GIB:.3f} GiB"


def duration(seconds: int | float) -> str:
    """Returns a time in the unit it is best read in."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds:.3f} s"


def _head(plan: Plan) -> Iterable[str]:
    yield f"plan of {plan.config.name}"
    if plan.on is None:
        yield "no machine given: --topology=v5p:4x4x4 or --chips=h100:64 adds memory, time and money"
        return
    on = plan.on
    slices = f", {on.machine.num_slices} slices" if on.machine.num_slices > 1 else ""
    shape = f" ({'x'.join(map(str, on.machine.sizes))})" if on.machine.sizes else ""
    yield f"on {on.machine.num_chips} x {on.machine.chip.name}{shape}{slices}, {on.machine.num_hosts} hosts"
    mesh = " ".join(f"{name}={size}" for name, size in on.shard.mesh.items())
    yield f"mesh {mesh}; context {on.shard.context}; attention kernel {on.shard.kernel}; remat {on.shard.remat}"


def _sample(plan: Plan) -> Iterable[str]:
    sample, count, batch, assumed = plan.sample, plan.flops, plan.batch, Source.ASSUMED
    yield "one sample"
    if sample.views:
        yield row("camera views", str(len(sample.views)), Source.EXACT, ", ".join(sample.views))
    yield row("canvas, pixels", f"{sample.canvas[0]} x {sample.canvas[1]}", Source.EXACT)
    yield row("frames", f"{sample.num_frames}", Source.EXACT, f"every {sample.frame_stride} dataset steps")
    yield row("latent grid", " x ".join(map(str, sample.latent_grid)), Source.EXACT)
    yield row("token grid", " x ".join(map(str, sample.token_grid)), Source.EXACT)
    yield row("tokens", f"{sample.num_tokens:,}", Source.EXACT, f"and {sample.padding:,} of padding")
    for stream, number in sample.tokens.items():
        yield row(f"  {stream}", f"{number:,}", Source.EXACT)
    share = "nothing attends"
    if count.num_dense_pairs:
        share = f"{count.num_pairs / count.num_dense_pairs:.1%} of {count.num_dense_pairs:,} dense"
    yield row("attended pairs", f"{count.num_pairs:,}", Source.EXACT, share)
    yield row("video", duration(sample.seconds), assumed, f"{batch * sample.seconds / 3600:.3f} hours a step")
    if sample.has_actions:
        yield row(
            "robot", duration(sample.robot_seconds), assumed, f"{batch * sample.robot_seconds / 3600:.3f} hours a step"
        )


def _flops(plan: Plan) -> Iterable[str]:
    title, columns, *lines = describe_flops(plan.flops).splitlines()
    yield from (title, f"     {columns}", *(f"  {Source.EXACT.tag}  {line}" for line in lines))
    if plan.encoders and sum(plan.encoders.values()):
        parts = ", ".join(f"{name} {flops:,}" for name, flops in plan.encoders.items() if flops)
        total = sum(plan.encoders.values())
        share = f"{total / plan.flops.model_total:.1%} of training, if not cached: {parts}"
        yield row("frozen encoders, per sample", f"{total:,}", Source.EXACT, share)
    yield row("trainable parameters", f"{plan.flops.num_trained_parameters:,}", Source.EXACT)


def _run(plan: Plan) -> Iterable[str]:
    count, run = plan.flops, plan.run
    yield f"the run (length by {run.decided_by})"
    yield row("steps", f"{run.steps:,}", run.source, f"of {plan.batch:,} samples")
    yield row("tokens", f"{run.samples * plan.sample.num_tokens:,}", run.source)
    for label, flops in (
        ("model", count.model_total),
        ("hardware", count.hardware_total),
        ("6NT", count.six_n_t),
    ):
        total = run.samples * flops / ZETTA
        note = f"{plan.batch * flops:,} FLOPs a step"
        yield row(f"ZFLOPs, {label}", f"{total:.3f}" if total >= 0.01 else f"{total:.3e}", run.source, note)
    yield row("video, hours", f"{run.samples * plan.sample.seconds / 3600:,.0f}", Source.ASSUMED)


def _memory(on: OnMachine) -> Iterable[str]:
    memory = on.memory
    yield "memory of one device"
    for kind in MemoryPlan.KINDS:
        if size := getattr(memory, kind):
            yield row(kind.replace("_", " "), gib(size), _memory_source(kind))
    yield row("total", gib(memory.total), _memory_source("total"), f"of {gib(memory.hbm)}: {memory.verdict}")
    if memory.host:
        devices = on.machine.host.chips * on.machine.chip.devices_per_chip
        note = f"{gib(devices * memory.host)} of a whole host, whose memory is not in the tables"
        yield row("in host memory", gib(memory.host), Source.EXACT, note)


def _time(on: OnMachine) -> Iterable[str]:
    time, assumed = on.time, Source.ASSUMED
    if time is None:
        yield f"step time: {on.no_time}"
        return
    yield "step time: low (all hides) - expected - high (nothing hides)"
    for phase in time.phases:
        if phase.seconds.mid:
            band, resource = phase.seconds, phase.resource.name_on(on.machine)
            yield row(
                phase.name, duration(band.mid), assumed, f"{resource}; {duration(band.low)} to {duration(band.high)}"
            )
    step = time.step_s
    yield row("step", duration(step.mid), assumed, f"{duration(step.low)} to {duration(step.high)}")
    if step.mid < _SHORT_STEP_S:
        yield "     too short to believe: latency and the launching of kernels, which are not in it, take longer"
    yield row("bound by", time.binding.name_on(on.machine), assumed)
    peak = f"of {time.peak_flops_per_s / 1e15:g} PFLOP/s, the listed dense peak"
    yield row("MFU", f"{time.mfu:.1%}", assumed, peak)
    yield row("HFU", f"{time.hfu:.1%}", assumed, "with recomputation")


def _goodput(outlook: Outlook) -> Iterable[str]:
    goodput, assumed = outlook.goodput, Source.ASSUMED
    yield "goodput: where the expected wall time goes"
    yield row("checkpoint", gib(goodput.checkpoint_bytes), Source.EXACT, f"{duration(goodput.save_s)} to write")
    best = f"{duration(goodput.optimal_interval_s)}, which wastes {goodput.optimal_waste:.2%}"
    yield row("saved every", duration(goodput.interval_s), assumed, f"{goodput.interval_steps:,} steps; best {best}")
    yield row("failures", f"{goodput.failures:.1f}", assumed, f"one in {duration(goodput.mtbf_s)} of all chips")
    for bucket, seconds in goodput.buckets.items():
        if seconds:
            share = f"{seconds / goodput.elapsed_s:.1%}"
            yield row(bucket.removesuffix("_s").replace("_", " "), duration(seconds), assumed, share)
    band = outlook.elapsed_s
    yield row("wall time", duration(band.mid), assumed, f"{duration(band.low)} to {duration(band.high)}")
    yield row("goodput", f"{goodput.goodput:.1%}", assumed)


def _input(feed: Feed) -> Iterable[str]:
    assumed = Source.ASSUMED
    yield "input of one host"
    yield row("frames", f"{feed.frames_per_s:,.2f} /s", assumed, f"{feed.pixel_bytes_per_s / 1e6:,.1f} MB/s of pixels")
    decoded = f"{feed.decoded_frames_per_s:,.2f} frames/s decoded from {feed.encoded_bytes_per_s / 1e6:,.2f} MB/s"
    yield row("decoding cores", f"{feed.decode_cores:,.2f}", assumed, decoded)
    yield row("video storage of the run", f"{feed.encoded_storage_bytes / 1e12:,.3f} TB", assumed)
    if feed.latent_bytes_per_s is not None and feed.latent_storage_bytes is not None:
        stored = f"{feed.latent_storage_bytes / 1e12:,.3f} TB for the run"
        yield row("or cached latents", f"{feed.latent_bytes_per_s / 1e6:,.2f} MB/s", assumed, stored)


def _cost(plan: Plan, outlook: Outlook) -> Iterable[str]:
    cost, assumed = outlook.cost, Source.ASSUMED
    yield "cost of the run"
    hours = outlook.chip_hours
    yield row("chip-hours", f"{hours.mid:,.0f}", assumed, f"{hours.low:,.0f} to {hours.high:,.0f}")
    if outlook.usd is None:
        yield row("money", "unknown", assumed, cost.usd_reason or "")
    else:
        price = f"at {cost.usd_per_chip_hour:g} USD per chip and hour ({cost.prices})"
        yield row(
            "money, USD", f"{outlook.usd.mid:,.0f}", assumed, f"{outlook.usd.low:,.0f} to {outlook.usd.high:,.0f}"
        )
        yield row("", "", assumed, price)
    if cost.usd_three_year is not None:
        yield row("  under a three-year commitment", f"{cost.usd_three_year:,.0f}", assumed)
    energy = "unknown" if cost.energy_kwh is None else f"{cost.energy_kwh:,.0f} kWh"
    yield row("energy", energy, assumed, cost.energy_source)
    if plan.prices.warning:
        yield f"  warning: {plan.prices.warning}"


def assumptions(plan: Plan) -> Iterable[str]:
    """Yields what the plan takes for granted, one line each."""
    yield "assumptions"
    yield f"  {plan.sample.rate}"
    if plan.on is not None:
        yield f"  {plan.on.machine.host.source}"
        yield from (f"  {line}" for line in plan.on.efficiencies.describe())
    for taken in (plan.outlook and plan.outlook.goodput.assumptions, plan.feed and plan.feed.assumptions):
        if taken:
            yield from (f"  {getattr(taken, field.name)}" for field in dataclasses.fields(taken))


def _memory_source(kind: str) -> Source:
    return MEMORY_SOURCES.get(f"memory.{kind}_bytes", MEMORY_SOURCES["memory"])[0]
