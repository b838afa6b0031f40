"""Plots of a run as PNG, each drawn once for a light and once for a dark page.

Owns how curves look. Does not read files and does not lay out the page (``launch.report``).
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's palette: distinct under the common colour blindnesses, and on both backgrounds.
BLUE, ORANGE, GREEN, PINK, GREY = "#2f81c7", "#e68a00", "#1a9e77", "#cc79a7", "#8a919c"
_SMOOTHING_STEPS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """One plot for both kinds of page.

    Attributes:
      light: PNG for a light background (transparent).
      dark: PNG for a dark one.
      alt: What the plot shows, in words.
    """

    light: bytes
    dark: bytes
    alt: str


def plot_losses(
    training: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    validation: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> Plot:
    """Draws one panel per loss: every step in faint, its running mean in full, validation as dots.

    Args:
      training: Panel title -> (steps, losses).
      validation: Panel title -> (steps, losses); may lack a panel.
    """

    def draw(canvas: Canvas) -> None:
        panels = np.atleast_1d(canvas.subplots(1, len(training)))
        for axes, (title, (steps, losses)) in zip(panels, training.items(), strict=True):
            axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.8)
            width = min(_SMOOTHING_STEPS, max(1, len(losses) // 5))
            smooth = _running_mean(np.asarray(losses, float), width)
            axes.plot(steps, smooth, color=BLUE, linewidth=1.8, label=f"training, mean of {width} steps")
            if title in validation:
                axes.plot(
                    *validation[title], color=ORANGE, marker="o", markersize=4, label="validation, average weights"
                )
            _logarithmic(axes, smooth)
            axes.set(title=title, xlabel="step")
            axes.legend(frameon=False)

    return _render(draw, (10.0, 3.2), f"Training loss over steps: {', '.join(training)}")


def plot_components(model: Mapping[str, int], hardware: Mapping[str, int]) -> Plot:
    """Draws the training FLOPs of one sample: for each component what is needed, and what is executed."""
    names = [name for name in hardware if hardware[name]]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        places = np.arange(len(names))
        axes.barh(places - 0.2, [model[name] for name in names], 0.4, color=BLUE, label="model")
        axes.barh(places + 0.2, [hardware[name] for name in names], 0.4, color=ORANGE, label="hardware")
        _label_bars(axes, names)
        axes.set(xlabel="FLOPs of one training sample")
        axes.legend(frameon=False)

    return _render(draw, (7.0, 0.34 * len(names) + 1.0), f"Training FLOPs by component: {', '.join(names)}")


def plot_memory(kinds: Mapping[str, int], *, limit: int, compiled: int | None = None) -> Plot:
    """Draws the memory of one device by kind, one after the other, up to what the device has.

    Args:
      kinds: Bytes by kind.
      limit: Bytes the device has.
      compiled: The compiler's peak, where the step was compiled.
    """
    held = {name: size / 2**30 for name, size in kinds.items() if size}

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        below = 0.0
        for place, size in enumerate(held.values()):
            axes.barh(place, size, left=below, color=BLUE)
            below += size
        axes.barh(len(held), below, color=ORANGE)
        axes.axvline(limit / 2**30, color=PINK, linewidth=1.5, label="what the device has")
        if compiled is not None:
            axes.axvline(compiled / 2**30, color=GREEN, linewidth=1.5, linestyle="--", label="the compiler's peak")
        _label_bars(axes, [*held, "total"])
        axes.set(xlabel="GiB of one device")
        canvas.legend(loc="outside lower center", ncols=2, frameon=False)

    return _render(draw, (7.0, 0.3 * len(held) + 1.5), f"Memory of one device by kind: {', '.join(held)}")


def plot_phases(phases: Sequence[Mapping[str, Any]], step_s: Mapping[str, float]) -> Plot:
    """Draws the phases of a step: expected seconds as bars, from low to high as lines, coloured by resource.

    Args:
      phases: ``{"name", "resource", "seconds": {"low", "mid", "high"}}`` each.
      step_s: The whole step.
    """
    resources = list(dict.fromkeys(phase["resource"] for phase in phases))
    colours = dict(zip(resources, itertools.cycle((BLUE, ORANGE, GREEN, PINK, GREY)), strict=False))

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        rows = [(phase["seconds"], colours[phase["resource"]]) for phase in phases] + [(step_s, GREY)]
        for place, (seconds, colour) in enumerate(rows):
            axes.barh(place, seconds["mid"], color=colour)
            axes.plot([seconds["low"], seconds["high"]], [place, place], color=GREY, linewidth=1.5, marker="|")
        _label_bars(axes, [*(phase["name"] for phase in phases), "the step, overlapped"])
        axes.set(xlabel="seconds")
        handles = [Patch(color=colour, label=resource) for resource, colour in colours.items()]
        canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)

    return _render(draw, (7.0, 0.3 * len(phases) + 1.5), "Seconds of a step by phase, from low to high")


def plot_buckets(buckets: Mapping[str, float]) -> Plot:
    """Draws where wall time goes, but for the steps that are progress."""
    spent = {name: seconds for name, seconds in buckets.items() if seconds and name != "step"}

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        total = sum(buckets.values())
        axes.barh(range(len(spent)), [seconds / total for seconds in spent.values()], color=ORANGE)
        _label_bars(axes, list(spent))
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
        axes.set(xlabel="of the wall time")

    return _render(draw, (7.0, 0.34 * len(spent) + 0.9), f"Wall time that makes no progress: {', '.join(spent)}")


def _label_bars(axes: Axes, names: Sequence[str]) -> None:
    """Names horizontal bars, the first at the top."""
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.25)


def plot_actions(
    chunks: Sequence[tuple[str, np.ndarray, np.ndarray]], *, block_length: int, dims: Sequence[int]
) -> Plot:
    """Draws predicted and true actions of some windows: a row per window, a column per action dim.

    Args:
      chunks: (title, true ``[a u]``, predicted ``[a u]``) each; NaN where masked.
      block_length: Actions of one block; a thin line marks where the model was shown the truth again.
      dims: Which action dims.
    """

    def draw(canvas: Canvas) -> None:
        grid = canvas.subplots(len(chunks), len(dims), squeeze=False, sharex=True, sharey=True)
        for row, (title, true, predicted) in zip(grid, chunks, strict=True):
            for axes, dim in zip(row, dims, strict=True):
                for border in range(block_length, len(true), block_length):
                    axes.axvline(border - 0.5, color=GREY, linewidth=0.6, alpha=0.6)
                axes.plot(true[:, dim], color=GREY, linewidth=2.2, label="true")
                axes.plot(predicted[:, dim], color=ORANGE, linewidth=1.5, label="predicted")
                axes.set_ylim(-1.15, 1.15)
            row[0].set_ylabel("\n".join(title.rsplit(" (", 1)).rstrip(")"), fontsize=7)
        for axes, dim in zip(grid[0], dims, strict=True):
            axes.set_title(f"action dim {dim}")
        for axes in grid[-1]:
            axes.set_xlabel("action step")
        grid[0, 0].legend(frameon=False)

    size = (2.4 * len(dims) + 0.6, 1.35 * len(chunks) + 0.7)
    return _render(draw, size, f"Predicted and true actions of {len(chunks)} held-out windows, normalised units")


def plot_intervals(rows: Sequence[tuple[str, Mapping[str, Any] | None, bool]], *, unit: str, title: str) -> Plot:
    """Draws figures with their intervals below each other.

    Args:
      rows: (label, ``{"mean", "low", "high"}`` or None, whether it is the model's), top first.
      unit: Label of the axis.
      title: What is compared.
    """

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for place, (_, figure, is_model) in enumerate(rows):
            if figure is None:
                continue
            colour = ORANGE if is_model else GREY
            if figure["low"] is not None:
                axes.plot([figure["low"], figure["high"]], [place, place], color=colour, linewidth=3, alpha=0.6)
            axes.plot(figure["mean"], place, "o", color=colour, markersize=7)
        axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set(xlabel=unit, title=title)
        axes.grid(axis="x", alpha=0.25)

    return _render(draw, (5.0, 0.42 * len(rows) + 1.0), title)


def plot_by_frame(model: Sequence[Mapping[str, Any] | None], copy: Sequence[Mapping[str, Any] | None]) -> Plot:
    """Draws PSNR over the predicted frames of a window, model against copying the last frame."""

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for figures, colour, label in ((copy, GREY, "copy the last frame"), (model, ORANGE, "model")):
            known = [(frame, figure) for frame, figure in enumerate(figures, 1) if figure is not None]
            frames = [frame for frame, _ in known]
            axes.plot(frames, [figure["mean"] for _, figure in known], "o-", color=colour, label=label)
            low = [figure["mean"] if figure["low"] is None else figure["low"] for _, figure in known]
            high = [figure["mean"] if figure["high"] is None else figure["high"] for _, figure in known]
            axes.fill_between(frames, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel="predicted frame of the window", ylabel="PSNR in dB", title="Frame by frame")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        canvas.legend(loc="outside lower center", ncols=2, frameon=False)

    return _render(draw, (5.0, 2.7), "PSNR of every predicted frame of a window")


def plot_pareto(
    results: Sequence[Mapping[str, Any]], front: Sequence[Mapping[str, Any]], *, title: str = "Time against money"
) -> Plot:
    """Draws wall time against money of planned layouts, and the front that none of them beats in both.

    Args:
      results: As ``planning.search.Result.to_json`` returns them; those without time or money are left out.
      front: Of them, those on the front.
      title: What is compared.
    """

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for rows, colour in ((results, GREY), (front, ORANGE)):
            known = [row for row in rows if row["usd"] is not None and row["why_not"] is None]
            days = [row["elapsed_s"] / 86_400 for row in known]
            axes.plot(days, [row["usd"] for row in known], "o-" if rows is front else "o", markersize=5, color=colour)
        for row in front:
            axes.annotate(
                row["machine"], (row["elapsed_s"] / 86_400, row["usd"]), fontsize=7, xytext=(4, 4),
                textcoords="offset points",
            )  # fmt: skip
        axes.set(xlabel="wall time, days", ylabel="US dollars", title=title, xscale="log", yscale="log")
        axes.grid(alpha=0.25)

    names = ", ".join(row["machine"] for row in front)
    return _render(draw, (6.5, 4.0), f"{title}: wall time and money of {len(results)} layouts; not beaten: {names}")


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Returns the mean of each value and up to ``width - 1`` before it."""
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - width, 0)
    return (sums[end] - sums[begin]) / (end - begin)


def _logarithmic(axes: Axes, values: np.ndarray) -> None:
    """Makes the loss axis logarithmic where that is possible."""
    if len(values) and np.min(values) > 0:
        axes.set_yscale("log")


def _render(draw: Callable[[Canvas], None], size: tuple[float, float], alt: str) -> Plot:
    """Draws twice, with ink for a light and for a dark page, on a transparent background."""
    pictures = []
    for ink in ("#24292f", "#d5dae1"):
        style: dict[Any, Any] = {
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 8.5,
            "legend.fontsize": 8,
            "legend.labelcolor": ink,
        }
        with mpl.rc_context(style):
            canvas = Canvas(figsize=size, layout="constrained")
            draw(canvas)
            buffer = io.BytesIO()
            canvas.savefig(buffer, format="png", dpi=160, transparent=True)
            pictures.append(buffer.getvalue())
    return Plot(light=pictures[0], dark=pictures[1], alt=alt)
