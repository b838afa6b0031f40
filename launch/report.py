"""``report.html``: everything a run shows, in one file that needs nothing else.

Owns gathering what lies in the work directory and laying it out (``launch.page`` embeds pictures and films).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch import plots
from launch.figures import COMPARISONS, FIGURES, format_figure, verdict
from launch.open_loop import Example, spread
from launch.page import page_template
from wamjax.config import bridge
from wamjax.config.schema import RunConfig
from wamjax.training.records import read_records

MAX_ACTION_EXAMPLES = 4
MAX_ACTION_DIMS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """A film of the work directory: file name, and what it shows."""

    file: str
    caption: str


FILMS = (
    Film(
        file="predicted.mp4",
        caption="Held-out windows, true on the left and predicted on the right. Grey frames were given to the model, "
        "orange ones it predicted, one block at a time.",
    ),
    Film(
        file="rollout.mp4",
        caption="One closed-loop rollout on an unseen seed: what the robot saw on the left, what the model expected to "
        "see on the right. This is the first seed of each task, not a chosen one.",
    ),
)


def write_report(
    workdir: Path,
    *,
    output: Path,
    config: RunConfig,
    evaluation: Mapping[str, Any],
    examples: Sequence[Example],
    sharding: str,
) -> Path:
    """Writes ``report.html`` from what the run recorded and its evaluation.

    Args:
      workdir: The run's work directory: run.json, metrics.jsonl, ledger.jsonl, first_batch.png.
      output: Folder of the evaluation's pictures and films; the report is written beside them.
      config: The run's configuration.
      evaluation: The content of ``eval.json``.
      examples: Some evaluated windows, for the action plots.
      sharding: Table of parameters and how they lie on the mesh, as text.

    Returns:
      The file.
    """
    ledger = read_records(workdir / "ledger.jsonl")
    run = _read_json(workdir / "run.json")
    page = page_template("report.html.j2").render(
        name=config.name,
        evaluation=evaluation,
        tiles=_tiles(evaluation),
        comparisons=list(_comparison_rows(evaluation)),
        definitions=[(meaning.label, name, meaning.definition) for name, meaning in FIGURES.items()],
        by_dim=_by_dim_rows(evaluation),
        by_task=_by_task_rows(evaluation),
        films=[(film, content) for film in FILMS if (content := _read(output / film.file))],
        strip=_read(output / "strip.png"),
        first_batch=_read(workdir / "first_batch.png"),
        frame_plot=plots.plot_by_frame(
            [frame["video_psnr"] for frame in evaluation["video_psnr_by_frame"]],
            [frame["video_psnr_copy"] for frame in evaluation["video_psnr_by_frame"]],
        ),
        action_plot=_action_plot(examples, config),
        error_plot=_interval_plot("action_error", evaluation),
        loss_plot=_loss_plot(workdir),
        ledger=_ledger_view(ledger[-1]) if ledger else None,
        sharding=sharding,
        environment=list(_flatten({key: value for key, value in run.items() if key != "config"})),
        config=[(key, _plain(value)) for key, value in bridge.iterate_fields(config)],
    )
    path = output / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _tiles(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the few numbers at the top of the page: label, value, note, tone."""
    error, mean = evaluation["action_error"], evaluation["action_error_mean_baseline"]
    tiles = []
    if error is not None and mean is not None:
        tiles.append(
            {
                "label": "Action error",
                "value": f"{error['mean'] / mean['mean']:.2f} x",
                "note": "of always predicting the training-mean action",
                "tone": _tone("action_error_mean_baseline", evaluation["gains"]["action_error_mean_baseline"]),
            }
        )
    gain = evaluation["gains"]["video_psnr_copy"]
    if gain is not None:
        tiles.append(
            {
                "label": "Predicted frames",
                "value": f"{gain['mean']:+.2f} dB",
                "note": "PSNR above copying the last frame",
                "tone": _tone("video_psnr_copy", gain),
            }
        )
    sensitivity = evaluation["action_sensitivity"]
    if sensitivity is not None:
        tiles.append(
            {
                "label": "Action sensitivity",
                "value": f"{sensitivity['mean']:+.3f}",
                "note": verdict("action_sensitivity", sensitivity),
                "tone": _tone("action_sensitivity", sensitivity),
            }
        )
    for task, rate in (evaluation["closed_loop"] or {}).items():
        tiles.append(
            {
                "label": f"Closed loop: {task}",
                "value": f"{rate['successes']} / {rate['trials']}",
                "note": f"unseen seeds solved ({rate['low']:.0%} to {rate['high']:.0%} at 95 % confidence)",
                "tone": "good" if rate["rate"] >= 0.5 else "plain",
            }
        )
    return tiles


def _tone(name: str, gain: Mapping[str, Any]) -> str:
    """Returns ``good``, ``bad`` or ``plain`` for a verdict."""
    words = verdict(name, gain)
    if words in ("model better", "clearly above zero"):
        return "good"
    return "bad" if words in ("model worse", "clearly below zero") else "plain"


def _comparison_rows(evaluation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the rows of the summary table: each model figure followed by its baselines."""
    for name, baselines in COMPARISONS:
        for key in (name, *baselines):
            meaning, figure = FIGURES[key], evaluation[key]
            is_model = key == name
            is_sensitivity = is_model and not baselines
            judged = figure if is_sensitivity else (None if is_model else evaluation["gains"][key])
            yield {
                "is_model": is_model,
                "label": meaning.label if is_model else f"vs {meaning.label}",
                "figure": format_figure(key, figure),
                "unit": meaning.unit,
                "n": "" if figure is None else figure["n"],
                "verdict": f"{meaning.better} is better" if is_model and baselines else verdict(key, judged),
                "tone": "aside" if (is_model and baselines) or judged is None else _tone(key, judged),
            }


def _by_dim_rows(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns head and rows of the action error of every dim."""
    names = [name for name in FIGURES if name.startswith("action_error")]
    rows = [
        [str(dim), *(format_figure(name, figures[name]) for name in names)]
        for dim, figures in enumerate(evaluation["action_error_by_dim"])
        if figures["action_error"] is not None
    ]
    return {"head": ["dim", "model", *(FIGURES[name].label for name in names[1:])], "rows": rows}


def _by_task_rows(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns head and rows of the main figures of every task."""
    names = list(next(iter(evaluation["by_task"].values()), {}))
    rows = [
        [task, *(format_figure(name, figures[name]) for name in names)]
        for task, figures in evaluation["by_task"].items()
    ]
    heads = [FIGURES[name].label if name in dict(COMPARISONS) else f"({FIGURES[name].label})" for name in names]
    return {"head": ["task", *heads], "rows": rows}


def _interval_plot(name: str, evaluation: Mapping[str, Any]) -> plots.Plot:
    """Returns a plot of one model figure above its baselines."""
    rows = [("model", evaluation[name], True)]
    rows += [(FIGURES[key].label, evaluation[key], False) for key in dict(COMPARISONS)[name]]
    meaning = FIGURES[name]
    return plots.plot_intervals(rows, unit=meaning.unit, title=f"{meaning.label} ({meaning.better} is better)")


def _action_plot(examples: Sequence[Example], config: RunConfig) -> plots.Plot | None:
    """Returns the plot of predicted beside true actions, or None when no example has actions."""
    acting = [e for e in examples if np.isfinite(e.true_actions).any()]
    if not acting:
        return None
    shown = spread(acting, MAX_ACTION_EXAMPLES)
    dims = np.flatnonzero(np.isfinite(np.stack([e.true_actions for e in shown])).any(axis=(0, 1)))
    return plots.plot_actions(
        [(e.frames.title, e.true_actions, e.predicted_actions) for e in shown],
        block_length=config.layout.actions_per_block,
        dims=dims[:MAX_ACTION_DIMS].tolist(),
    )


def _loss_plot(workdir: Path) -> plots.Plot | None:
    """Returns the loss curves of ``metrics.jsonl``, or None when it holds no losses."""
    records = read_records(workdir / "metrics.jsonl")

    def curve(metric: str) -> tuple[list[float], list[float]] | None:
        points = [(r["step"], r[metric]) for r in records if isinstance(r.get(metric), float)]
        return ([step for step, _ in points], [loss for _, loss in points]) if points else None

    losses = [key for key in dict.fromkeys(key for r in records for key in r) if key.startswith("loss/")]
    training = {f"{key.removeprefix('loss/')} loss": found for key in losses if (found := curve(key))}
    validation = {
        f"{key.removeprefix('loss/')} loss": found
        for key in losses
        if (found := curve(f"validation/{key.removeprefix('loss/')}"))
    }
    return plots.plot_losses(training, validation) if training else None


def _ledger_view(last: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the last ledger record as tables: FLOPs by component, tokens, totals."""
    model, hardware = last["model_flops"], last["hardware_flops"]
    total = sum(model.values())
    components = [
        (name.replace("_", " "), f"{model[name]:,}", f"{hardware[name]:,}", f"{model[name] / total:.1%}")
        for name in model
        if hardware[name]
    ]
    components.append(("total", f"{total:,}", f"{sum(hardware.values()):,}", "100.0%"))
    wall = last["wall"]
    mfu = (
        f"{wall['mfu']:.1%} of {wall['mfu_denominator']}" if wall["mfu"] is not None else f"none: {wall['mfu_reason']}"
    )
    facts = [
        ("steps", f"{last['step']:,}"),
        ("samples", f"{last['samples']:,}"),
        ("model FLOPs so far", f"{total / 1e15:,.3f} PFLOP ({last['zflops']:.3g} ZFLOP)"),
        ("training time, without validation and saving", f"{wall['seconds']:,.1f} s"),
        ("devices", f"{wall['num_devices']} x {wall['device_kind']}"),
        ("model FLOP utilisation (MFU), last step", mfu),
    ]
    tokens = [(stream.replace("_", " "), f"{count:,}") for stream, count in last["tokens"].items()]
    return {"components": components, "facts": facts, "tokens": tokens}


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted key, text) of nested JSON data; lists of plain values stay on one line."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, _plain(value)


def _plain(value: Any) -> str:
    """Returns a leaf as short text."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 300 else text[:297] + "..."


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
