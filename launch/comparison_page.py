"""The comparison of several systems as a table and a plot: what each learned, and what it and its chunks cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

COLUMNS = (
    "member",
    "action error",
    "action sensitivity",
    "video PSNR (dB)",
    "closed-loop success",
    "training FLOPs",
    "steps",
    "actions per chunk",
    "FLOPs per chunk",
    "ms per chunk",
)


def write_comparison(output: Path, results: Sequence[Mapping[str, Any]], failures: Mapping[str, str]) -> str:
    """Writes comparison.json, comparison.md and, of two members or more, comparison.png; returns the table.

    Args:
      output: Folder.
      results: The members' results (``launch.compare_command.describe_result``).
      failures: Member -> why it has none.
    """
    text = format_table(results, failures)
    (output / "comparison.md").write_text(text + "\n", encoding="utf-8")
    content = {"members": list(results), "failures": dict(failures)}
    (output / "comparison.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if len(results) > 1:
        plot_comparison(output / "comparison.png", results)
    return text


def format_table(results: Sequence[Mapping[str, Any]], failures: Mapping[str, str]) -> str:
    """Returns the table in Markdown; figures with their 95 % intervals, members that failed below it."""
    rows = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for result in results:
        cells = (
            result["member"],
            _figure(result["action_error"], 3),
            _figure(result["action_sensitivity"], 3),
            _figure(result["video_psnr"], 1),
            _success(result),
            f"{result['training_flops']:.2e}",
            _steps(result),
            str(result["chunk_actions"]),
            f"{result['chunk_flops']:.2e}",
            f"{result['chunk_ms']:.1f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    devices = sorted({result["device"] for result in results})
    notes = [f"Milliseconds: one rollout on {', '.join(devices)}, from observation to actions."] if devices else []
    notes += [f"{result['member']}: no closed loop: {result['closed_loop_reason']}" for result in results
              if result["closed_loop"] is None]  # fmt: skip
    notes += [f"{member} failed: {reason}" for member, reason in failures.items()]
    return "\n".join([*rows, "", *notes])


_MARKERS = "os^D"  # after ten members colours come again


def plot_comparison(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Draws action error and video PSNR over the FLOPs of an action chunk, with intervals."""
    figure = Canvas(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (name, label) in zip(
        axes, (("action_error", "action error (normalised)"), ("video_psnr", "video PSNR (dB)")), strict=True
    ):
        for place, result in enumerate(results):
            found = result[name]
            if found is None:
                continue
            low, high = (found["mean"] if found[end] is None else found[end] for end in ("low", "high"))
            spread = [[found["mean"] - low], [high - found["mean"]]]
            axis.errorbar(result["chunk_flops"], found["mean"], yerr=spread, capsize=3, label=result["member"],
                          color=f"C{place % 10}", fmt=_MARKERS[place // 10 % len(_MARKERS)])  # fmt: skip
        axis.set(xscale="log", xlabel="FLOPs per action chunk", ylabel=label)
        axis.xaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False))
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(*_drawn(axes), loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def _drawn(axes: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    """Returns what stands for each member in a legend, and its name; a member need not be on every axis."""
    drawn = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    return list(drawn.values()), list(drawn)


def _figure(found: Mapping[str, float] | None, digits: int) -> str:
    if found is None:
        return "-"
    if found["low"] is None:  # one episode gives no interval
        return f"{found['mean']:.{digits}f}"
    return f"{found['mean']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def _steps(result: Mapping[str, Any]) -> str:
    """Returns the training steps of each run of a member."""
    stages = result.get("stages") or {"": result}
    return " + ".join(str(stage["training_steps"]) for stage in stages.values())


def _success(result: Mapping[str, Any]) -> str:
    """Returns the success rate of every task."""
    if result["closed_loop"] is None:
        return "-"
    return ", ".join(
        f"{task} {rate['rate']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}]"
        for task, rate in result["closed_loop"].items()
    )
