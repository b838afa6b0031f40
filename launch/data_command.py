"""``wamjax data``: record a dataset with the simulator's scripted experts, look into one, summarise its values.

Owns the flags and the printed tables; recording and reading belong to ``data_pipelines``.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from data_pipelines.recording.record import RecordConfig, record_dataset
from data_pipelines.sources.lerobot_v3 import LeRobotDataset, camera_features, read_info
from launch.command import Command, Verb
from wamjax.errors import ConfigError, DataError

QUANTILES = {"q01": 0.01, "q50": 0.5, "q99": 0.99}


def _define_record_flags() -> None:
    """Defines one flag for each field of ``RecordConfig``, with its type, default and documentation."""
    texts = _attribute_texts(RecordConfig)
    hints = typing.get_type_hints(RecordConfig)
    define = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
    for field in dataclasses.fields(RecordConfig):
        kind, text = hints[field.name], texts.get(field.name, "")
        default: Any = None if field.default is dataclasses.MISSING else field.default
        if typing.get_origin(kind) is tuple:
            flags.DEFINE_list(field.name, default and [str(item) for item in default], text)
        else:
            define[kind](field.name, default, text)
        if default is None:
            flags.mark_flag_as_required(field.name)


def _attribute_texts(documented: type) -> dict[str, str]:
    """Returns the text of each entry in the ``Attributes`` section of a class's docstring."""
    section = (documented.__doc__ or "").partition("Attributes:")[2]
    entries = re.split(r"\n\s+(\w+): ", section)
    return {name: " ".join(text.split()) for name, text in zip(entries[1::2], entries[2::2], strict=True)}


def _run_record(argv: list[str]) -> int:
    """Records the dataset that the flags describe and prints what was made."""
    _refuse_positional(argv)
    hints = typing.get_type_hints(RecordConfig)
    values = {name: _typed(name, hints[name], flags.FLAGS[name].value) for name in hints}
    print(record_dataset(RecordConfig(**values)))
    return 0


def _typed(name: str, kind: Any, value: Any) -> Any:
    """Returns a flag's value as the field's type; a list of numbers arrives as text."""
    if typing.get_origin(kind) is not tuple:
        return value
    item_kind = typing.get_args(kind)[0]
    try:
        return tuple(item_kind(item) for item in value)
    except ValueError as error:
        raise ConfigError(f"--{name}={','.join(value)} is not a list of whole numbers") from error


def _define_json_flag() -> None:
    flags.DEFINE_string("json", None, "File to write the same as JSON.")


def _run_inspect(argv: list[str]) -> int:
    """Prints what a dataset holds and which episodes cannot be read, by task."""
    dataset = _open(argv)
    summary = inspect_dataset(dataset)
    size = f"{summary['fps']:g} frames per second, {summary['bytes'] / 1e6:.2f} MB"
    lines = [
        f"{summary['path']}: {summary['format']}, {summary['episodes']} episodes, {summary['frames']} frames, {size}",
        "",
        *_table(
            ("feature", "kind", "shape"),
            [(name, entry["dtype"], "x".join(map(str, entry["shape"]))) for name, entry in summary["features"].items()],
        ),
        "",
        *_table(
            ("task", "episodes", "frames", "shortest", "longest", "quarantined"),
            [(task, *(str(value) for value in counts.values())) for task, counts in summary["tasks"].items()],
        ),
    ]
    lines.extend(["", f"quarantined: {len(summary['quarantined'])} of {summary['episodes']} episodes"])
    lines.extend(f"  episode {episode}: {reason}" for episode, reason in summary["quarantined"].items())
    _report(lines, summary)
    return 0


def inspect_dataset(dataset: LeRobotDataset) -> dict[str, Any]:
    """Returns counts, features, tasks and quarantined episodes of a dataset, in JSON types."""
    broken = find_unusable(dataset)
    tasks = {}
    for task in dataset.tasks:
        episodes = [episode for episode in dataset.episodes if episode.task == task]
        lengths = [episode.length for episode in episodes]
        tasks[task] = {
            "episodes": len(episodes),
            "frames": sum(lengths),
            "shortest": min(lengths, default=0),
            "longest": max(lengths, default=0),
            "quarantined": sum(episode.index in broken for episode in episodes),
        }
    features = dataset.info["features"]
    return {
        "path": str(dataset.path),
        "format": f"LeRobot {dataset.info['codebase_version']}",
        "fingerprint": dataset.fingerprint(),
        "bytes": sum(file.stat().st_size for file in dataset.path.rglob("*") if file.is_file()),
        "episodes": len(dataset.episodes),
        "frames": sum(episode.length for episode in dataset.episodes),
        "fps": dataset.fps,
        "cameras": list(camera_features(dataset.info)),
        "features": {name: {"dtype": entry["dtype"], "shape": entry["shape"]} for name, entry in features.items()},
        "tasks": tasks,
        "quarantined": {str(episode): reason for episode, reason in broken.items()},
    }


def find_unusable(dataset: LeRobotDataset) -> dict[int, str]:
    """Returns the reason for each episode that training would quarantine: broken files, or values not finite."""
    reasons = dict(dataset.find_broken())
    for episode in dataset.episodes:
        for name in _vector_features(dataset.info):
            if episode.index not in reasons and not np.isfinite(dataset.column(name, episode.index)).all():
                reasons[episode.index] = f"{name} holds values that are not finite"
    return dict(sorted(reasons.items()))


def _run_stats(argv: list[str]) -> int:
    """Prints the spread of every vector feature, dim by dim, over all episodes that can be read."""
    dataset = _open(argv)
    stats = summarise_values(dataset)
    columns = ("min", *QUANTILES, "max", "mean", "std")
    rows = [
        (f"{name}[{dim}]", *(f"{values[column][dim]:.4g}" for column in columns))
        for name, values in stats.items()
        for dim in range(len(values["mean"]))
    ]
    _report(_table(("feature", *columns), rows), {"path": str(dataset.path), "features": stats})
    return 0


def summarise_values(dataset: LeRobotDataset) -> dict[str, dict[str, list[float]]]:
    """Returns min, quantiles, max, mean and standard deviation of each vector feature, per dim, in its own unit."""
    broken = find_unusable(dataset)
    usable = [episode.index for episode in dataset.episodes if episode.index not in broken]
    if not usable:
        raise DataError(
            f"dataset {dataset.path} has no episode that can be read; see wamjax data inspect {dataset.path}"
        )
    stats = {}
    for name in _vector_features(dataset.info):
        values = np.concatenate([dataset.column(name, episode) for episode in usable]).astype(np.float64)
        quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
        stats[name] = {
            "min": values.min(axis=0).tolist(),
            **{label: row.tolist() for label, row in zip(QUANTILES, quantiles, strict=True)},
            "max": values.max(axis=0).tolist(),
            "mean": values.mean(axis=0).tolist(),
            "std": values.std(axis=0).tolist(),
        }
    return stats


def _open(argv: list[str]) -> LeRobotDataset:
    """Opens the dataset named on the command line with all its cameras and vector features."""
    if len(argv) != 1:
        raise ConfigError(f"expected the folder of one dataset, got {len(argv)} ({' '.join(argv) or 'nothing'})")
    info = read_info(Path(argv[0]))
    return LeRobotDataset(Path(argv[0]), cameras=camera_features(info), columns=_vector_features(info))


def _vector_features(info: dict[str, Any]) -> tuple[str, ...]:
    """Returns the floating-point features other than the clock: states, actions and their like."""
    return tuple(
        name
        for name, entry in info["features"].items()
        if str(entry["dtype"]).startswith("float") and name != "timestamp"
    )


def _report(lines: list[str], content: dict[str, Any]) -> None:
    """Prints ``lines``; writes ``content`` where ``--json`` says."""
    print("\n".join(lines))
    if flags.FLAGS.json:
        try:
            Path(flags.FLAGS.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--json={flags.FLAGS.json} cannot be written: {error.strerror}") from error


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Returns the lines of a table, the first column left-aligned and the others right-aligned."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]


def _refuse_positional(argv: list[str]) -> None:
    """Raises ``ConfigError`` for words that belong to no flag (often a list with a space after its comma)."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; lists are written without spaces: --tasks=a,b")


SUBCOMMANDS: dict[str, Command | Verb] = {
    "record": Command(
        summary="record scripted experts in the simulator (needs the sim extra)",
        description="Writes a LeRobot v3.0 dataset of Meta-World episodes; the same flags give the same episodes.",
        define_flags=_define_record_flags,
        run=_run_record,
    ),
    "inspect": Command(
        summary="what a dataset holds, and which of its episodes cannot be read",
        description="Usage: wamjax data inspect DIR [--json=FILE]\n\nChecks every file against the tables.",
        define_flags=_define_json_flag,
        run=_run_inspect,
    ),
    "stats": Command(
        summary="the spread of a dataset's states and actions",
        description="Usage: wamjax data stats DIR [--json=FILE]\n\nOver all episodes that can be read, dim by dim.",
        define_flags=_define_json_flag,
        run=_run_stats,
    ),
    "cache": Verb("launch.cache_command", "encode windows and prompts once, for a backbone to train on"),
}
