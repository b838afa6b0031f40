"""What an evaluation writes: ``eval.json``, ``report.html``, pictures and films."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch.closed_loop import Rollouts
from launch.figures import FIGURES
from launch.film import write_film, write_strip
from launch.open_loop import OpenLoop, spread
from launch.report import write_report
from launch.workdir import WorkDir
from wamjax.errors import DataError
from wamjax.training.program import TrainProgram, describe_sharding

STRIP_WINDOWS = 4
FILM_FPS = 4  # a window spans a fraction of a second: shown several times slower, so that it can be followed


def choose_output(workdir: WorkDir) -> Path:
    """Returns the folder that ``wamjax eval`` writes to."""
    values = flags.FLAGS
    default = workdir.path / "eval" / values.source if values.source else workdir.path
    return Path(values.output) if values.output else default


def describe_evaluation(
    open_loop: OpenLoop, rollouts: Sequence[Rollouts] | None, reason: str | None, *, step: int, episodes: int
) -> dict[str, Any]:
    """Returns the content of ``eval.json``.

    Every figure is ``{"mean", "low", "high", "n"}`` (95 % interval, n episodes) or null. ``gains`` hold, for each
    baseline, how much better the model is on the same episodes. ``closed_loop`` is null with a reason when no rollout
    was made.
    """

    def table(figures: Mapping[str, Any]) -> dict[str, Any]:
        return {name: None if figure is None else figure.to_json() for name, figure in figures.items()}

    return {
        "step": step,
        "windows": open_loop.num_windows,
        "episodes": episodes,
        **table(open_loop.figures),
        "gains": table(open_loop.gains),
        "closed_loop": None if rollouts is None else {r.task: r.rate().to_json() for r in rollouts},
        "closed_loop_reason": reason,
        "closed_loop_solved_at": None
        if rollouts is None
        else {r.task: {str(seed): int(at) for seed, at in zip(r.seeds, r.solved_at, strict=True)} for r in rollouts},
        "action_error_by_dim": [table(figures) for figures in open_loop.by_dim],
        "video_psnr_by_frame": [table(figures) for figures in open_loop.by_frame],
        "by_task": {task: table(figures) for task, figures in open_loop.by_task.items()},
        "definitions": {name: meaning.definition for name, meaning in FIGURES.items()},
    }


def write_products(
    output: Path,
    program: TrainProgram,
    workdir: WorkDir,
    evaluation: dict[str, Any],
    open_loop: OpenLoop,
    rollouts: Sequence[Rollouts] | None,
) -> None:
    """Writes the pictures, the films, ``eval.json`` and, last, the report that shows them all."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        films = [example.frames for example in open_loop.examples]
        write_strip(output / "strip.png", spread(films, STRIP_WINDOWS))
        write_film(output / "predicted.mp4", films, fps=FILM_FPS)
        (output / "rollout.mp4").unlink(missing_ok=True)  # of an earlier evaluation
        if rollouts:
            write_film(output / "rollout.mp4", [r.film for r in rollouts], fps=2 * FILM_FPS)
        _write_json(output / "eval.json", evaluation)
        write_report(
            workdir.path,
            output=output,
            config=workdir.read_config(),
            evaluation=evaluation,
            examples=open_loop.examples,
            sharding=describe_sharding(program),
        )
    except OSError as error:
        raise DataError(f"cannot write to {error.filename or output}: {error.strerror}; free space there") from error


def _write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all; numbers that are not finite are refused."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
