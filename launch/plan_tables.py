"""A plan's JSON object as titled tables of text, for the HTML page and for Markdown alike.

Owns which numbers of a plan are shown, in which unit and order. What a plan does not have (memory without a machine,
time without a listed peak) leaves its table out, or says why in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from wamjax.planning.text import duration, gib

_PETA = 1e15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table.

    Attributes:
      key: Short name, for anchors and plots.
      title: Its heading.
      head: Column titles.
      rows: Cells; as many as ``head``.
      note: What to know about it; may be empty.
    """

    key: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tabulate(plan: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of a plan as ``wamjax plan --json`` writes it, top to bottom."""
    tables = [_summary(plan), _sample(plan), _flops(plan), _run(plan)]
    if "memory" in plan:
        tables.append(_memory(plan))
    if plan.get("time", {}).get("step_s"):
        tables.append(_time(plan))
    if "goodput" in plan:
        tables.append(_goodput(plan))
    if "feed" in plan:
        tables.append(_feed(plan))
    if plan.get("cost", {}).get("chip_hours") is not None:
        tables.append(_cost(plan))
    if "search" in plan:
        tables.append(_search(plan["search"]))
    assumed = _assumptions(plan)
    return [*tables, assumed] if assumed.rows else tables


def source_of(plan: Mapping[str, Any], key: str) -> str:
    """Returns how the number under a dotted key came about; empty where the plan does not say."""
    sources = plan.get("sources", {})
    while key:
        if key in sources:
            return sources[key]["source"]
        key = key.rpartition(".")[0]
    return ""


def where(plan: Mapping[str, Any]) -> str:
    """Returns the machine and the mesh in words."""
    machine = plan.get("machine")
    if machine is None:
        return "no machine chosen"
    mesh = " ".join(f"{name}={size}" for name, size in plan["mesh"].items())
    return (
        f"{machine['num_chips']:,} x {machine['chip']} ({machine['name']}), {machine['num_hosts']:,} hosts, mesh {mesh}"
    )


def _summary(plan: Mapping[str, Any]) -> Table:
    run, rows = plan["run"], []

    def add(label: str, value: str, key: str) -> None:
        rows.append((label, value, source_of(plan, key)))

    add("parameters", f"{plan['model']['parameters']:,}", "model.parameters")
    add("trained parameters", f"{plan['model']['trainable_parameters']:,}", "model.trainable_parameters")
    add("run", f"{run['steps']:,} steps of {plan['global_batch_size']:,} samples", "run.steps")
    add("model compute", f"{run['zettaflops_model']:.4g} ZFLOP", "run.zettaflops_model")
    time = plan.get("time", {})
    if time.get("step_s"):
        step = time["step_s"]
        add("step time", f"{step['mid']:.4g} s ({step['low']:.4g} to {step['high']:.4g} s)", "time.step_s")
        add("bound by", time["binding"], "time.binding")
        add("MFU / HFU", f"{time['mfu']:.1%} / {time['hfu']:.1%}", "time.mfu")
    elif time:
        add("step time", f"unknown: {time['reason_unknown']}", "time")
    if "memory" in plan:
        memory = plan["memory"]
        verdict = ("fits" if memory["fits"] else "does not fit") + (", narrowly" if memory["is_tight"] else "")
        add(
            "memory of a device",
            f"{gib(memory['total_bytes'])} of {gib(memory['hbm_bytes'])}: {verdict}",
            "memory.total_bytes",
        )
    if "goodput" in plan:
        add("wall time", duration(plan["goodput"]["elapsed_s"]), "goodput.elapsed_s")
    if plan.get("cost", {}).get("chip_hours") is not None:
        add("chip-hours", f"{plan['cost']['chip_hours']:,.0f}", "cost.chip_hours")
        add("money", _dollars(plan["cost"]["usd"], plan["cost"]["usd_reason"]), "cost.usd")
    return Table(key="summary", title="Summary", head=("", "", "source"), rows=tuple(rows), note=where(plan))


def _sample(plan: Mapping[str, Any]) -> Table:
    sample, tokens, pairs = plan["sample"], plan["tokens"], plan["attention"]
    dense = pairs["pairs_per_sample"] / pairs["dense_pairs_per_sample"]
    rows = [
        ("canvas", " x ".join(map(str, sample["canvas"])) + " pixels", source_of(plan, "sample.canvas")),
        ("frames", f"{sample['frames']:,}", source_of(plan, "sample.frames")),
        ("latent grid", " x ".join(map(str, sample["latent_grid"])), source_of(plan, "sample.latent_grid")),
        ("tokens", f"{tokens['per_sample']:,}", source_of(plan, "tokens.per_sample")),
        *(
            (f"tokens: {stream.replace('_', ' ')}", f"{count:,}", source_of(plan, "tokens.by_stream"))
            for stream, count in tokens["by_stream"].items()
        ),
        ("padding", f"{tokens['padding_per_sample']:,}", source_of(plan, "tokens.padding_per_sample")),
        (
            "attended pairs",
            f"{pairs['pairs_per_sample']:,} ({dense:.1%} of dense)",
            source_of(plan, "attention.pairs_per_sample"),
        ),
        ("video of a step", f"{sample['video_hours_per_step']:.4g} h", source_of(plan, "sample.video_hours_per_step")),
    ]
    if sample["robot_hours_per_step"]:
        hours = f"{sample['robot_hours_per_step']:.4g} h"
        rows.append(("robot time of a step", hours, source_of(plan, "sample.robot_hours_per_step")))
    return Table(key="sample", title="One sample", head=("", "", "source"), rows=tuple(rows))


def _flops(plan: Mapping[str, Any]) -> Table:
    flops = plan["flops"]
    columns = [flops[key] for key in ("by_component", "train_model_by_component", "train_hardware_by_component")]
    rows = [
        (name.replace("_", " "), *(f"{column[name]:,}" for column in columns), _share(columns[1], name))
        for name in columns[2]
        if columns[2][name]
    ]
    totals = (flops["forward_per_sample"], flops["train_model_per_sample"], flops["train_hardware_per_sample"])
    rows.append(("total", *(f"{total:,}" for total in totals), "100.0%"))
    return Table(
        key="flops",
        title="FLOPs of one sample by component",
        head=("component", "forward", "training, model", "training, hardware", "of model"),
        rows=tuple(rows),
        note=f"{source_of(plan, 'flops')}: 1 multiply-add = 2, matrix products only, attended pairs only. Hardware has "
        f"padding and recomputation in it. The shorthand 6NT would say {flops['six_nt_per_sample']:,}.",
    )


def _run(plan: Mapping[str, Any]) -> Table:
    run, step = plan["run"], plan["flops_per_step"]
    rows = tuple(
        (label, f"{step[name] / _PETA:,.4g} PFLOP", f"{run[f'zettaflops_{name}']:.4g} ZFLOP")
        for name, label in (("model", "model"), ("hardware", "hardware"), ("six_nt", "6NT, the published shorthand"))
    )
    return Table(
        key="run",
        title="The run",
        head=("count", "one step", f"{run['steps']:,} steps"),
        rows=rows,
        note=f"Length by {run['decided_by']}: {run['samples']:,} samples, {run['tokens']:,} tokens, "
        f"{run['video_hours']:,.0f} hours of video.",
    )


def _memory(plan: Mapping[str, Any]) -> Table:
    memory = plan["memory"]
    kinds = [
        key for key in memory if key.endswith("_bytes") and key not in ("hbm_bytes", "host_bytes", "checkpoint_bytes")
    ]
    rows = [
        (key.removesuffix("_bytes").replace("_", " "), gib(memory[key]), source_of(plan, f"memory.{key}"))
        for key in kinds
        if memory[key]
    ]
    rows.append(("what the device has", gib(memory["hbm_bytes"]), source_of(plan, "memory.hbm_bytes")))
    compiled = plan.get("compile", {}).get("peak_bytes")
    if compiled is not None:
        rows.append(
            (
                "the compiler's peak",
                f"{gib(compiled)} ({memory['total_bytes'] / compiled - 1:+.1%} planned)",
                "compiled",
            )
        )
    return Table(key="memory", title="Memory of one device", head=("kind", "", "source"), rows=tuple(rows))


def _time(plan: Mapping[str, Any]) -> Table:
    time = plan["time"]
    rows = [
        (phase["name"], phase["resource"], *(f"{phase['seconds'][end]:.4g}" for end in ("low", "mid", "high")))
        for phase in time["phases"]
    ]
    rows.append(
        ("step, overlapped", time["binding"], *(f"{time['step_s'][end]:.4g}" for end in ("low", "mid", "high")))
    )
    return Table(
        key="time",
        title="One step, seconds",
        head=("phase", "resource", "low", "expected", "high"),
        rows=tuple(rows),
        note=f"{source_of(plan, 'time')}. Low: everything hides and every resource is at its best; high: nothing hides "
        f"and every resource is at its worst. Bound by {time['binding']}.",
    )


def _goodput(plan: Mapping[str, Any]) -> Table:
    goodput = plan["goodput"]
    rows = [
        (name.replace("_", " "), duration(seconds), f"{seconds / goodput['elapsed_s']:.2%}")
        for name, seconds in goodput["buckets"].items()
        if seconds
    ]
    rows.append(("wall time", duration(goodput["elapsed_s"]), "100.00%"))
    return Table(
        key="goodput",
        title="Where the wall time goes",
        head=("bucket", "time", "share"),
        rows=tuple(rows),
        note=f"{source_of(plan, 'goodput')}. {goodput['failures']:.3g} failures expected; a checkpoint takes "
        f"{duration(goodput['save_s'])}, is taken every {duration(goodput['interval_s'])}, best every "
        f"{duration(goodput['optimal_interval_s'])}.",
    )


def _feed(plan: Mapping[str, Any]) -> Table:
    feed = plan["feed"]
    rows = [
        ("frames, one host", f"{feed['frames_per_s']:,.1f} /s"),
        ("pixels, one host", f"{feed['pixel_bytes_per_s'] / 1e6:,.1f} MB/s"),
        ("compressed video, one host", f"{feed['encoded_bytes_per_s'] / 1e6:,.2f} MB/s"),
        ("cores for decoding, one host", f"{feed['decode_cores']:,.1f}"),
        ("compressed video, whole run", f"{feed['encoded_storage_bytes'] / 1e12:,.3g} TB, no sample twice"),
    ]
    if feed["latent_bytes_per_s"] is not None:
        rows.append(("or cached latents, one host", f"{feed['latent_bytes_per_s'] / 1e6:,.2f} MB/s"))
        rows.append(("or cached latents, whole run", f"{feed['latent_storage_bytes'] / 1e12:,.3g} TB, no sample twice"))
    return Table(
        key="feed",
        title="Input",
        head=("", ""),
        rows=tuple(rows),
        note=f"{source_of(plan, 'feed')}, at the expected step time.",
    )


def _cost(plan: Mapping[str, Any]) -> Table:
    cost = plan["cost"]
    energy = cost["energy_kwh"]
    rows = [
        ("chip-hours", f"{cost['chip_hours']:,.1f}"),
        ("on demand", _dollars(cost["usd"], cost["usd_reason"])),
    ]
    if cost["usd_three_year"] is not None:
        rows.append(("three-year commitment", _dollars(cost["usd_three_year"], None)))
    rows.append(("energy", "unknown" if energy is None else f"{energy:,.0f} kWh"))
    notes = [f"Prices: {cost['prices']}.", f"Power: {cost['energy_source']}."]
    notes += [f"Warning: {cost['warning']}."] if cost.get("warning") else []
    return Table(key="cost", title="Money and energy", head=("", ""), rows=tuple(rows), note=" ".join(notes))


def _search(search: Mapping[str, Any]) -> Table:
    """The layouts that no other beats in both time and money, or where there are no prices the fastest ones."""
    feasible = [result for result in search["results"] if result["why_not"] is None]
    shown = search["pareto"] or feasible[:10]
    rows = tuple(
        (
            result["machine"],
            " ".join(f"{name}={size}" for name, size in result["mesh"].items()),
            result["remat"],
            f"{result['step_s']['mid']:.4g} s",
            duration(result["elapsed_s"]),
            _dollars(result["usd"], None),
        )
        for result in shown
    )
    return Table(
        key="search",
        title="Time against money",
        head=("machine", "mesh", "remat", "step", "wall time", "money"),
        rows=rows,
        note=f"{len(search['results']):,} layouts planned, {len(feasible):,} feasible"
        + ("; those that no other beats in both." if search["pareto"] else "; the fastest."),
    )


def _assumptions(plan: Mapping[str, Any]) -> Table:
    """Every number that was taken for granted, with where it is from."""
    rows = []
    for name, share in plan.get("time", {}).get("efficiencies", {}).items():
        rows.append((f"share reached: {name.replace('_', ' ')}", _band(share), share["source"]))
    for part in ("goodput", "feed"):
        for assumption in plan.get(part, {}).get("assumptions", {}).values():
            value = f"{assumption['value']:,.6g} {assumption['unit']}".rstrip()
            rows.append((assumption["name"], value, assumption["source"]))
    return Table(key="assumptions", title="Assumptions", head=("", "", "from"), rows=tuple(rows))


def _band(share: Mapping[str, Any]) -> str:
    return f"{share['mid']:g} ({share['low']:g} to {share['high']:g})"


def _share(column: Mapping[str, int], name: str) -> str:
    total = sum(column.values())
    return f"{column[name] / total:.1%}" if total else "-"


def _dollars(usd: float | None, reason: str | None) -> str:
    return f"{usd:,.0f} USD" if usd is not None else f"unknown: {reason}" if reason else "unknown"


def as_markdown(tables: Sequence[Table]) -> str:
    """Returns the tables as Markdown, a heading above each."""
    blocks = []
    for table in tables:
        head = [cell or " " for cell in table.head]
        lines = [f"## {table.title}", ""]
        lines += [table.note, ""] if table.note else []
        lines += [_line(head), _line(["---"] * len(head))]
        lines += [_line(row) for row in table.rows]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells)
    return "| " + " | ".join(escaped) + " |"
