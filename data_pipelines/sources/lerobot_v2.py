"""The metadata tables of LeRobot v2.0 and v2.1: JSON lines, and one parquet and one mp4 file per episode.

The two versions differ in their statistics only (v2.0: one meta/stats.json, v2.1: one line per episode), which are
not read here. Source of the format: huggingface/lerobot 0.3.2, src/lerobot/datasets/{utils,lerobot_dataset}.py,
codebase version v2.1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipelines.sources.lerobot_tables import EpisodeTables, Place, collect_tables, video_features
from data_pipelines.sources.retry import retry_read
from data_pipelines.sources.source import EpisodeRecord, Quarantine, first_line
from wamjax.errors import DataError

TASKS_PATH = "meta/tasks.jsonl"
EPISODES_PATH = "meta/episodes.jsonl"
DEFAULT_CHUNKS_SIZE = 1000  # lerobot 0.3.2, datasets/utils.py


def read_tables(path: Path, info: dict[str, Any], cameras: tuple[str, ...], quarantine: Quarantine) -> EpisodeTables:
    """Returns the declared episodes and where they lie; see ``lerobot_v3.read_tables``."""
    chunks_size = int(info.get("chunks_size", DEFAULT_CHUNKS_SIZE))
    videos = tuple(camera for camera in cameras if camera in video_features(info))
    episodes = []
    for entry in _read_lines(path, EPISODES_PATH, {"episode_index": int, "tasks": list, "length": int}):
        index = entry["episode_index"]
        numbers = {"episode_chunk": index // chunks_size, "episode_index": index}
        place = Place(
            data_file=info["data_path"].format(**numbers),
            videos={camera: (info["video_path"].format(video_key=camera, **numbers), 0) for camera in videos},
        )
        task = str((entry["tasks"] or [""])[0])
        episodes.append((EpisodeRecord(index=index, length=entry["length"], task=task), place))
    tasks = _read_lines(path, TASKS_PATH, {"task_index": int, "task": str})
    return collect_tables(
        path,
        info,
        tasks={entry["task_index"]: entry["task"] for entry in tasks},
        episodes=episodes,
        episode_table=EPISODES_PATH,
        task_table=TASKS_PATH,
        quarantine=quarantine,
    )


def _read_lines(path: Path, name: str, keys: dict[str, type]) -> list[dict[str, Any]]:
    """Returns the objects of a JSON-lines file, each of which has ``keys`` of the given types."""
    try:
        text = retry_read(lambda: (path / name).read_text(encoding="utf-8"), f"dataset {path}: {name}")
        lines = text.splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"dataset {path}: {name} cannot be read: {reason}") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"dataset {path}: line {number} of {name} is not JSON: {first_line(error)}") from error
        for key, kind in keys.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise DataError(f"dataset {path}: line {number} of {name} has no {key!r} of type {kind.__name__}")
        entries.append(entry)
    return entries
