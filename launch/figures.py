"""The figures of an evaluation in words: names, units, which way is better, what each one means.

Owns the vocabulary shared by ``eval.json``, the console summary and the report, so that a figure is explained once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a figure is.

    Attributes:
      label: Short name.
      unit: Unit, empty for a pure number.
      better: Which direction is better.
      definition: One or two sentences that let a reader recompute it.
      digits: Digits after the point when printed.
    """

    label: str
    unit: str
    better: Literal["lower", "higher"]
    definition: str
    digits: int


FIGURES: dict[str, Meaning] = {
    "action_error": Meaning(
        label="action error",
        unit="of half range",
        better="lower",
        definition="Mean absolute error of sampled actions, in normalised units: 1 is half of the range between a "
        "dim's 1 % and 99 % quantile in training. Every block is sampled from the true past.",
        digits=4,
    ),
    "action_error_mean_baseline": Meaning(
        label="always the training-mean action",
        unit="of half range",
        better="lower",
        definition="Action error of always predicting the mean action of the training episodes.",
        digits=4,
    ),
    "action_error_repeat_baseline": Meaning(
        label="repeat the last action",
        unit="of half range",
        better="lower",
        definition="Action error of repeating, through each block, the action executed just before it; at the very "
        "start of an episode, where nothing has been executed, of the raw action zero.",
        digits=4,
    ),
    "action_error_zero_baseline": Meaning(
        label="raw action zero",
        unit="of half range",
        better="lower",
        definition="Action error of always commanding the raw action zero (for relative control: hold still).",
        digits=4,
    ),
    "video_psnr": Meaning(
        label="frame PSNR",
        unit="dB",
        better="higher",
        definition="Peak signal-to-noise ratio of predicted frames: 10 log10(255^2 / mean squared error) over all "
        "predicted frames of a window, visible pixels only; the error is floored at 8-bit rounding (58.9 dB).",
        digits=2,
    ),
    "video_psnr_copy": Meaning(
        label="copy the last frame",
        unit="dB",
        better="higher",
        definition="PSNR of copying the last true frame before each block.",
        digits=2,
    ),
    "video_ssim": Meaning(
        label="frame SSIM",
        unit="",
        better="higher",
        definition="Structural similarity (7 x 7 windows) of predicted frames, mean over visible pixels; 1 is equal.",
        digits=4,
    ),
    "video_ssim_copy": Meaning(
        label="copy the last frame",
        unit="",
        better="higher",
        definition="SSIM of copying the last true frame before each block.",
        digits=4,
    ),
    "action_sensitivity": Meaning(
        label="action sensitivity",
        unit="loss",
        better="higher",
        definition="Action loss when the model is shown the observation (past frames and state) of another episode of "
        "the same task at about the same time, minus the loss with its own; same noise and timesteps. Above zero: "
        "the policy looks.",
        digits=4,
    ),
    "video_sensitivity": Meaning(
        label="video sensitivity",
        unit="loss",
        better="higher",
        definition="Video loss when the model is given the actions of that other sample, minus the loss with its own; "
        "same noise and timesteps. Above zero: the predicted future depends on what the robot does.",
        digits=4,
    ),
}

# Each claim of the summary: model figure, then the baselines it is held against.
COMPARISONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "action_error",
        ("action_error_mean_baseline", "action_error_repeat_baseline", "action_error_zero_baseline"),
    ),
    ("video_psnr", ("video_psnr_copy",)),
    ("video_ssim", ("video_ssim_copy",)),
    ("action_sensitivity", ()),
    ("video_sensitivity", ()),
)


def format_figure(name: str, figure: Mapping[str, Any] | None) -> str:
    """Returns ``0.1234 [0.1200, 0.1268]``, or why there is no such text.

    Args:
      name: A key of ``FIGURES``, for the digits.
      figure: ``{"mean", "low", "high", "n"}`` or None.
    """
    digits = FIGURES[name].digits
    if figure is None:
        return "not measured"
    mean = _rounded(figure["mean"], digits)
    if figure["low"] is None:
        return f"{mean} (one episode: no interval)"
    return f"{mean} [{_rounded(figure['low'], digits)}, {_rounded(figure['high'], digits)}]"


def _rounded(value: float, digits: int) -> str:
    """Returns ``value`` with so many digits after the point, or two significant ones where those would all be zero."""
    if value and round(value, digits) == 0:
        return f"{value:.1e}"
    return f"{round(value, digits) + 0.0:.{digits}f}"


def verdict(name: str, gain: Mapping[str, Any] | None) -> str:
    """Returns in words whether the model is better, from an interval that should lie above zero.

    Args:
      name: For the gain over a baseline that baseline's name; for a sensitivity its own name.
      gain: The figure; positive means better.
    """
    if gain is None or gain["low"] is None:
        return "undecided: no interval"
    is_sensitivity = name.endswith("_sensitivity")
    if gain["low"] > 0:
        return "clearly above zero" if is_sensitivity else "model better"
    if gain["high"] < 0:
        return "clearly below zero" if is_sensitivity else "model worse"
    return "not clearly above zero" if is_sensitivity else "undecided: the interval holds zero"


def summarise(evaluation: Mapping[str, Any]) -> str:
    """Returns the console summary of an evaluation (the content of ``eval.json``)."""
    width = max(len(FIGURES[name].label) for name in FIGURES) + 6
    data = f"{evaluation['windows']} windows of {evaluation['episodes']} held-out episodes"
    lines = [f"step {evaluation['step']}, {data}: mean [95 % interval over episodes]"]
    for name, baselines in COMPARISONS:
        meaning = FIGURES[name]
        figure = evaluation[name]
        unit = f" {meaning.unit}" if meaning.unit == "dB" else ""
        note = verdict(name, figure) if not baselines else f"{meaning.better} is better"
        lines.append(f"  {meaning.label:<{width}}{format_figure(name, figure) + unit:<32}{note}")
        for baseline in baselines:
            label = f"    vs {FIGURES[baseline].label}"
            value = format_figure(baseline, evaluation[baseline]) + unit
            lines.append(f"{label:<{width + 2}}{value:<32}{verdict(baseline, evaluation['gains'][baseline])}")
    if evaluation["closed_loop"] is None:
        lines.append(f"  closed loop: not run: {evaluation['closed_loop_reason']}")
    else:
        for task, rate in evaluation["closed_loop"].items():
            lines.append(
                f"  closed loop {task}: solved {rate['successes']} of {rate['trials']} unseen seeds "
                f"({rate['rate']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}])"
            )
    return "\n".join(lines)
