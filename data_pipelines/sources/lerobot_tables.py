"""The metadata that LeRobot v2 and v3 share: info.json, and where each episode lies once its tables are read.

Owns ``info.json`` and the description of an episode's place. The tables themselves are ``lerobot_v2`` and
``lerobot_v3``, the frames and columns ``lerobot``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from data_pipelines.sources.retry import retry_read
from data_pipelines.sources.source import EpisodeRecord, Quarantine, first_line
from wamjax.errors import DataError

INFO_PATH = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.")  # as info.json's codebase_version begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where an episode lies.

    Attributes:
      data_file: Its parquet file.
      videos: By camera, the mp4 file and the number of the episode's first frame there.
    """

    data_file: str
    videos: dict[str, tuple[str, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeTables:
    """What the metadata of a dataset declares.

    Attributes:
      tasks: Task strings by ascending task index.
      task_indices: The task indices that have a string.
      records: Declared episodes by ascending index.
      places: Where each of them lies.
    """

    tasks: tuple[str, ...]
    task_indices: frozenset[int]
    records: tuple[EpisodeRecord, ...]
    places: dict[int, Place]


def read_info(path: Path) -> dict[str, Any]:
    """Returns ``meta/info.json`` of a LeRobot folder.

    Raises:
      DataError: The folder or file is missing, is not JSON, lacks a key, or declares another version.
    """
    if not path.is_dir():
        raise DataError(f"dataset {path} does not exist (config.data.path): expected the folder of a LeRobot dataset")
    try:
        text = retry_read(lambda: (path / INFO_PATH).read_text(encoding="utf-8"), f"dataset {path}: {INFO_PATH}")
        info = json.loads(text)
    except FileNotFoundError as error:
        raise DataError(f"dataset {path} has no {INFO_PATH}: not a LeRobot dataset (config.data.path)") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise DataError(f"dataset {path}: {INFO_PATH} cannot be read: {reason}") from error
    except ValueError as error:
        raise DataError(f"dataset {path}: {INFO_PATH} is not JSON: {first_line(error)}") from error
    if not isinstance(info, dict):
        raise DataError(f"dataset {path}: {INFO_PATH} holds a {type(info).__name__}: expected an object")
    version = str(info.get("codebase_version", "none"))
    if not version.startswith(VERSIONS):
        raise DataError(
            f"dataset {path} has codebase_version {version}: expected v2.0, v2.1 or v3.x (config.data.path)"
        )
    for key in ("fps", "features", "data_path"):
        if key not in info:
            raise DataError(f"dataset {path}: {INFO_PATH} has no key {key!r}")
    if any(feature["dtype"] == "video" for feature in info["features"].values()) and not info.get("video_path"):
        raise DataError(f"dataset {path}: {INFO_PATH} has video features and no key 'video_path'")
    if not (isinstance(info["fps"], int | float) and math.isfinite(info["fps"]) and info["fps"] > 0):
        raise DataError(f"dataset {path}: {INFO_PATH} has fps {info['fps']!r}: expected a positive number")
    return info


def camera_features(info: dict[str, Any]) -> tuple[str, ...]:
    """Returns the names of the video and image features of an ``info.json`` in its own order."""
    return tuple(key for key, feature in info["features"].items() if feature["dtype"] in ("video", "image"))


def video_features(info: dict[str, Any]) -> frozenset[str]:
    """Returns the names of the cameras that lie in mp4 files."""
    return frozenset(key for key, feature in info["features"].items() if feature["dtype"] == "video")


def collect_tables(
    path: Path,
    info: dict[str, Any],
    *,
    tasks: dict[int, str],
    episodes: list[tuple[EpisodeRecord, Place]],
    episode_table: str,
    task_table: str,
    quarantine: Quarantine,
) -> EpisodeTables:
    """Checks declared episodes against each other, the tasks and info.json.

    An episode declared twice, or of a task the task table does not list, is noted: which of two declarations is right
    nobody can tell, and the others are not touched by it.

    Args:
      path: The dataset.
      info: Its info.json.
      tasks: Task string by task index.
      episodes: As declared, in any order.
      episode_table: File or folder of the declarations, for messages.
      task_table: File of the tasks, for messages.
      quarantine: Receives the notes.

    Raises:
      DataError: There are no episodes, or info.json declares another number of them.
    """
    if not episodes:
        raise DataError(f"dataset {path} is empty: {episode_table} declares no episode")
    known = set(tasks.values())
    records: dict[int, EpisodeRecord] = {}
    places: dict[int, Place] = {}
    for record, place in episodes:
        if record.index in records:
            quarantine.note(record.index, f"{episode_table} declares it twice")
            continue
        if record.task not in known:
            quarantine.note(record.index, f"its task {record.task!r} is not in {task_table}")
        records[record.index], places[record.index] = record, place
    if len(episodes) != info.get("total_episodes", len(episodes)):
        raise DataError(
            f"dataset {path}: {INFO_PATH} declares {info['total_episodes']} episodes, "
            f"the episode table {episode_table} has {len(episodes)}"
        )
    return EpisodeTables(
        tasks=tuple(task for _, task in sorted(tasks.items())),
        task_indices=frozenset(tasks),
        records=tuple(record for _, record in sorted(records.items())),
        places=places,
    )
