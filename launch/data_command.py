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

from absl import flags

from data_pipelines.inspection import QUANTILES, inspect_source, summarise_values, usable_episodes
from data_pipelines.inspection_pictures import contact_sheet, histograms, replay, spread
from data_pipelines.latents.inspection import inspect_latents
from data_pipelines.latents.manifest import MANIFEST_FILE as LATENTS_MANIFEST
from data_pipelines.recording.record import RecordConfig, record_dataset
from data_pipelines.sources.formats import open_source
from data_pipelines.sources.remote import dataset_path, refuse_address
from data_pipelines.sources.source import Source
from launch.command import Command, Verb
from launch.output import check_writable
from launch.page import page_template
from wamjax.errors import ConfigError

REPLAYS = 2  # episodes whose actions are drawn below their frames
# Tasks and quarantined episodes printed; --json has all of them.
MAX_PRINTED = 20


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
    refuse_address(flags.FLAGS.out, "--out")
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


def _define_inspect_flags() -> None:
    _define_json_flag()
    flags.DEFINE_string("html", None, "File to write the same as HTML, with frames and histograms.")


def _run_inspect(argv: list[str]) -> int:
    """Prints what a dataset holds, which episodes cannot be read, and what in its values looks wrong."""
    check_writable("json", flags.FLAGS.json)
    check_writable("html", flags.FLAGS.html)
    if len(argv) == 1 and (dataset_path(argv[0]) / LATENTS_MANIFEST).is_file():
        return _inspect_latents(dataset_path(argv[0]))
    source = _open(argv)
    summary = inspect_source(source)
    rate = "unknown frame rate" if summary["fps"] is None else f"{summary['fps']:g} frames per second"
    size = f"{rate}, {summary['bytes'] / 1e6:.2f} MB"
    tasks = [
        (task or "(none)", *(str(value) for value in counts.values())) for task, counts in summary["tasks"].items()
    ]
    lines = [
        f"{summary['path']}: {summary['format']}, {summary['episodes']} episodes, {summary['frames']} frames, {size}",
        f"cameras: {', '.join(summary['cameras']) or 'none'}",
        "",
        *_table(
            ("feature", "kind", "shape"),
            [(name, entry["dtype"], "x".join(map(str, entry["shape"]))) for name, entry in summary["features"].items()],
        ),
        "",
        *_table(("task", "episodes", "frames", "shortest", "longest", "quarantined"), tasks[:MAX_PRINTED]),
        *_say_rest(len(tasks), "tasks"),
        "",
        *_checks(summary),
        "",
        f"quarantined: {summary['quarantined_count']} of {summary['episodes']} episodes",
    ]
    lines.extend(f"  episode {entry['episode']}: {entry['reason']}" for entry in summary["quarantined"][:MAX_PRINTED])
    lines.extend(_say_rest(summary["quarantined_count"], "episodes"))
    _report(lines, summary)
    if flags.FLAGS.html:
        _write("html", _inspection_page(source, summary, lines))
    return 0


def _inspect_latents(folder: Path) -> int:
    """Prints what a folder of cached latents holds and which of its records cannot be read."""
    if flags.FLAGS.html:
        raise ConfigError(f"--html={flags.FLAGS.html}: {folder} holds cached latents, of which there are no pictures")
    found = inspect_latents(folder)
    windows = ", ".join(f"{count:,} {split}" for split, count in found["windows"].items())
    lines = [
        f"{folder}: {found['format']} of {found['dataset']}, {found['episodes']} episodes",
        f"windows: {windows}, of {found['record_bytes']:,} bytes; {found['frames']} latent frames",
        f"prompts: {found['prompts']}",
        f"encoders: {', '.join(f'{name} {digest[:16]}' for name, digest in found['encoders'].items())}",
        f"quarantined when they were made: {found['quarantined_count']} episodes",
        f"windows with values that are not finite: {found['windows_not_finite']}",
        f"records that cannot be read: {len(found['damaged'])}",
        *(f"  {reason}" for reason in found["damaged"][:MAX_PRINTED]),
        *_say_rest(len(found["damaged"]), "records"),
    ]
    _report(lines, found)
    return 0


def _inspection_page(source: Source, summary: dict[str, Any], lines: list[str]) -> str:
    """Returns the printed lines with frames of every camera and histograms of every numeric feature as HTML."""
    broken = {entry["episode"] for entry in summary["quarantined"]}
    usable = [episode for episode in source.episodes if episode.index not in broken]
    return page_template("inspect.html.j2").render(
        path=summary["path"],
        text="\n".join(lines),
        sheets=[(camera, contact_sheet(source, camera, usable)) for camera in source.cameras if usable],
        replays=[
            (f"episode {episode.index}: {episode.task or '(no task)'}", replay(source, source.cameras[0], episode))
            for episode in spread(usable, REPLAYS)
            if source.cameras and source.columns
        ],
        histograms=[(name, histograms(source, name, usable)) for name in source.columns if usable],
    )


def _checks(summary: dict[str, Any]) -> list[str]:
    """Returns the lines on values and decoding; a dataset without numeric features has none on values."""
    lines = []
    if summary["values"]:
        lines += [
            f"idle frames: {summary['idle_frames']} of {summary['frames']} (nothing moved since the frame before)",
            f"duplicate episodes: {'; '.join(map(str, summary['duplicates'])) or 'none'}",
            "actions against the state's motion: "
            + (
                ", ".join(f"{f['action']} and {f['state']} ({f['correlation']:.2f})" for f in summary["flips"])
                or "none"
            ),
            "values far outside q01 to q99: "
            + (", ".join(f"{name} {count}" for name, count in summary["outliers"].items() if count) or "none"),
        ]
    speed = summary["throughput"]
    if speed["frames_per_s"]:
        lines.append(
            f"decoding: {speed['frames_per_s']:.0f} frames per second on one thread "
            f"({speed['frames']} frames in clips of {speed['clip_frames']})"
        )
    return lines


def _say_rest(count: int, name: str) -> list[str]:
    return [f"  and {count - MAX_PRINTED} more {name} (--json has all)"] if count > MAX_PRINTED else []


def _run_stats(argv: list[str]) -> int:
    """Prints the spread of every vector feature, dim by dim, over all episodes that can be read."""
    dataset = _open(argv)
    stats = summarise_values(dataset, usable_episodes(dataset))
    columns = ("min", *QUANTILES, "max", "mean", "std")
    rows = [
        (f"{name}[{dim}]", *(f"{values[column][dim]:.4g}" for column in columns))
        for name, values in stats.items()
        for dim in range(len(values["mean"]))
    ]
    _report(_table(("feature", *columns), rows), {"path": str(dataset.path), "features": stats})
    return 0


def _open(argv: list[str]) -> Source:
    """Opens the dataset named on the command line with all its cameras and numeric features."""
    if len(argv) != 1:
        raise ConfigError(f"expected the folder of one dataset, got {len(argv)} ({' '.join(argv) or 'nothing'})")
    return open_source(argv[0])


def _report(lines: list[str], content: dict[str, Any]) -> None:
    """Prints ``lines``; writes ``content`` where ``--json`` says."""
    print("\n".join(lines))
    if flags.FLAGS.json:
        _write("json", json.dumps(content, indent=2) + "\n")


def _write(flag: str, text: str) -> None:
    """Writes ``text`` into the file that a flag names."""
    path = str(flags.FLAGS[flag].value)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--{flag}={path} cannot be written: {error.strerror}") from error


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
        description=(
            "Usage: wamjax data inspect DIR [--json=FILE] [--html=FILE]\n\nTells the format from the folder, checks "
            "every file against what the dataset declares, looks at the values and decodes a few clips."
        ),
        define_flags=_define_inspect_flags,
        run=_run_inspect,
    ),
    "stats": Command(
        summary="the spread of a dataset's states and actions",
        description="Usage: wamjax data stats DIR [--json=FILE]\n\nOver all episodes that can be read, dim by dim.",
        define_flags=_define_json_flag,
        run=_run_stats,
    ),
    "index": Verb("launch.index_command", "look through a dataset once, so that training starts in seconds"),
    "cache": Verb("launch.cache_command", "encode windows and prompts once, for a backbone to train on"),
}
