"""A ``CompileReport`` as text for the console."""

from __future__ import annotations

from wamjax.planning.ahead import CompileReport, assumptions
from wamjax.planning.collectives import tabulate
from wamjax.planning.estimate import StepTime

_GIB = 2**30
_MIB = 2**20
_PARTS = (
    ("matmul", "matrix products"),
    ("other", "everything else that computes"),
    ("attention", "attention kernels"),
    ("ici", "collectives"),
    ("ici_synchronous", "  of these stopping compute"),
    ("host", "host transfers"),
)


def describe(report: CompileReport) -> str:
    """Returns tables of memory, collectives and step time with what they take for granted."""
    lines = [_describe_head(report), "", *_describe_memory(report)]
    if report.step_time is not None:
        lines += ["", *_describe_collectives(report), "", *_describe_time(report, report.step_time)]
    return "\n".join(lines)


def _describe_head(report: CompileReport) -> str:
    mesh = " ".join(f"{name}={size}" for name, size in report.mesh.shape.items())
    verb = "compiled" if report.fits else "does not fit"
    return (
        f"{report.topology.name}: {report.topology.num_chips} chips ({report.topology.generation.chip.name}), "
        f"{report.mesh.size} devices, {mesh}; {verb}, {report.seconds:.1f} s"
    )


def _describe_memory(report: CompileReport) -> list[str]:
    memory, limit = report.memory, report.topology.generation.hbm_bytes
    rows = [(name, getattr(memory, name)) for name in ("argument", "output", "alias", "temp", "host")]
    lines = ["memory per device, GiB"]
    lines += [f"  {name:10} {size / _GIB:9.3f}" for name, size in rows if size is not None]
    verdict = "fits" if report.fits else "DOES NOT FIT"
    lines.append(f"  {'peak':10} {memory.peak / _GIB:9.3f}  of {limit / _GIB:.2f}: {verdict}")
    lines.append("largest allocations (arrays that take turns in one place)")
    lines += [f"  {size / _MIB:10,.1f} MiB  {_shorten(arrays)}" for size, arrays in report.largest_buffers]
    return lines


def _describe_collectives(report: CompileReport) -> list[str]:
    lines = [f"{'collectives per device and step':32} {'mesh axes':16} {'count':>7} {'MiB':>12}"]
    for kind, by_axes in sorted(tabulate(report.collectives).items()):
        for axes, cell in sorted(by_axes.items()):
            lines.append(f"  {kind:30} {axes:16} {cell['count']:7,} {cell['bytes'] / _MIB:12,.1f}")
    return lines if len(lines) > 1 else ["no collectives"]


def _describe_time(report: CompileReport, step: StepTime) -> list[str]:
    taken = assumptions(report)
    forward, backward, peak = (
        taken[key]
        for key in ("attention_forward_fraction", "attention_backward_fraction", "peak_flops_per_s_per_device")
    )
    lines = ["estimated step time, ms"]
    lines += [f"  {label:34} {getattr(step, name) * 1e3:12,.3f}" for name, label in _PARTS]
    lines.append(f"  {'everything else at memory speed':34} {step.other_roof * 1e3:12,.3f}")
    lines.append(f"  {'overlapped (all hides all)':34} {step.overlapped * 1e3:12,.3f}")
    mfu = "" if report.mfu is None else f"  MFU {report.mfu:.1%}"
    lines.append(f"  {'scheduled (compiled order)':34} {step.scheduled * 1e3:12,.3f}{mfu}")
    lines.append(f"  {'scheduled, else at memory speed':34} {step.scheduled_roof * 1e3:12,.3f}")
    lines.append(f"  {'exposed (nothing hides)':34} {step.exposed * 1e3:12,.3f}")
    lines.append(f"attention kernels: {', '.join(step.kernels) or 'none, plain XLA'}")
    lines += [
        f"NOT PRICED: kernel {name} states no FLOPs (pl.CostEstimate) and takes no time" for name in step.unpriced
    ]
    lines += [f"NOT COUNTED: loop {name} has an unknown trip count and counts once" for name in report.unknown_loops]
    lines += [
        "an estimate, nothing ran on a TPU; it assumes",
        f"  clock {taken['clock_hz'] / 1e9:g} GHz, peak {peak / 1e12:g} TFLOP/s per device",
        f"  attention at {forward:g} forward and {backward:g} backward of the peak",
        f"  links {taken['link_bytes_per_s'] / 1e9:g} GB/s one way per device, torus {_describe_torus(report)}",
        f"  memory {taken['streaming_bytes_per_s'] / 1e12:g} TB/s, host {taken['host_bytes_per_s'] / 1e9:g} GB/s",
        f"  unverified of these: {', '.join(taken['unverified']) or 'none'}",
        "  compiler options: " + " ".join(f"{key}={value}" for key, value in taken["compiler_options"].items()),
    ]
    return lines


def _describe_torus(report: CompileReport) -> str:
    torus = report.torus
    dims = (f"{size} {'ring' if ring else 'line'}" for size, ring in zip(torus.sizes, torus.wraps, strict=True))
    return " x ".join(dims)


def _shorten(text: str, width: int = 88) -> str:
    return text if len(text) <= width else text[: width - 4] + " ..."
