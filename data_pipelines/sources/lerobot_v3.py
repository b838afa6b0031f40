"""The metadata tables of LeRobot v3.0: parquet, one row for each task and each episode.

Source of the format: huggingface/lerobot, src/lerobot/datasets, codebase version v3.0.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.sources.lerobot_tables import EpisodeTables, Place, collect_tables, video_features
from data_pipelines.sources.retry import retry_read
from data_pipelines.sources.source import EpisodeRecord, Quarantine, first_line
from wamjax.errors import DataError

TASKS_PATH = "meta/tasks.parquet"
EPISODES_GLOB = "meta/episodes/*/*.parquet"
_VIDEO_FIELDS = ("chunk_index", "file_index", "from_timestamp")


def read_tables(path: Path, info: dict[str, Any], cameras: tuple[str, ...], quarantine: Quarantine) -> EpisodeTables:
    """Returns the declared episodes and where they lie.

    Args:
      path: The dataset.
      info: Its info.json.
      cameras: Those that will be read.
      quarantine: Receives what is wrong with single episodes.

    Raises:
      DataError: A table is missing, unreadable, lacks a column or has no rows.
    """
    table = _read_episode_table(path)
    cameras = tuple(camera for camera in cameras if camera in video_features(info))
    needed = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    for camera in cameras:
        needed += [f"videos/{camera}/{field}" for field in _VIDEO_FIELDS]
    for name in needed:
        if name not in table:
            raise DataError(f"dataset {path}: the episode table meta/episodes has no column {name!r}")
    episodes = []
    for row, index in enumerate(table["episode_index"]):
        videos = {}
        for camera in cameras:
            chunk, file, start = (table[f"videos/{camera}/{f}"][row] for f in _VIDEO_FIELDS)
            name = info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=file)
            videos[camera] = (name, round(start * float(info["fps"])))
        data_file = info["data_path"].format(
            chunk_index=table["data/chunk_index"][row], file_index=table["data/file_index"][row]
        )
        task = (table["tasks"][row] or [""])[0]
        record = EpisodeRecord(index=index, length=table["length"][row], task=task)
        episodes.append((record, Place(data_file=data_file, videos=videos)))
    return collect_tables(
        path,
        info,
        tasks=_read_tasks(path),
        episodes=episodes,
        episode_table="meta/episodes",
        task_table=TASKS_PATH,
        quarantine=quarantine,
    )


def _read_tasks(path: Path) -> dict[int, str]:
    """Returns task strings by task index.

    The string is pandas' index: a column ``task`` or, where the index had no name, ``__index_level_0__``.
    """
    try:
        table = retry_read(lambda: pq.read_table(path / TASKS_PATH), f"dataset {path}: {TASKS_PATH}")
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"dataset {path}: {TASKS_PATH} cannot be read: {first_line(error)}") from error
    names = [name for name in ("task", "__index_level_0__") if name in table.column_names]
    if not names or "task_index" not in table.column_names:
        raise DataError(f"dataset {path}: {TASKS_PATH} has columns {table.column_names}: expected task and task_index")
    return dict(zip(table["task_index"].to_pylist(), table[names[0]].to_pylist(), strict=True))


def _read_episode_table(path: Path) -> dict[str, list[Any]]:
    """Returns the columns of all files of the episode table, without the statistics."""
    files = sorted(path.glob(EPISODES_GLOB))
    if not files:
        raise DataError(f"dataset {path} has no episode table {EPISODES_GLOB}")
    columns: dict[str, list[Any]] = {}
    for file in files:
        try:
            names, table = retry_read(functools.partial(_read_without_statistics, file), f"dataset {path}: {file.name}")
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"dataset {path}: {file.relative_to(path)} cannot be read: {first_line(error)}") from error
        for name in names:
            columns.setdefault(name, []).extend(table[name].to_pylist())
    return columns


def _read_without_statistics(file: Path) -> tuple[list[str], pa.Table]:
    """Returns the names and values of the columns of an episode table, those of statistics left out."""
    names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
    return names, pq.read_table(file, columns=names)
