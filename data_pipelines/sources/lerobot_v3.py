"""LeRobot v3.0 datasets at random access: many episodes per parquet and per mp4 file.

Owns the reading of the format and the checks that an episode's files hold what its tables declare. Low-dimensional
columns are held in memory (4 bytes per value; an hour at 15 Hz with 16 values is 3.5 MB), frames are decoded on
demand. Source of the format: huggingface/lerobot, src/lerobot/datasets, codebase version v3.0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.sources.frame_reader import FrameReader
from data_pipelines.sources.source import EpisodeRecord
from data_pipelines.sources.video import VideoError, VideoTable, scan_video
from wamjax.errors import DataError

INFO_PATH = "meta/info.json"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_GLOB = "meta/episodes/*/*.parquet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """Where an episode lies: its parquet file, and for each camera its mp4 file and first frame number there."""

    data_file: str
    videos: dict[str, tuple[str, int]]


class LeRobotDataset:
    """A LeRobot v3.0 folder. Implements ``EpisodeSource``.

    Opening reads the metadata, the asked-for columns of every parquet file and the packet tables of every mp4 file.
    Metadata that cannot be used at all raises; what is wrong with single files or episodes is found and kept for
    ``find_broken``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        cameras: Sequence[str],
        columns: Sequence[str],
        keep_bytes: int = 0,
        num_threads: int = 4,
    ) -> None:
        """Opens the dataset.

        Args:
          path: Its folder.
          cameras: Video features that will be read.
          columns: Vector features that will be read.
          keep_bytes: See ``FrameReader``.
          num_threads: Files read at once while opening.

        Raises:
          DataError: The folder or its metadata is missing, unreadable or of another version, or a feature is missing.
        """
        self._path = Path(path)
        self.info = read_info(self._path)
        self._fps = float(self.info["fps"])
        self._cameras = tuple(cameras)
        self._columns = tuple(columns)
        self._check_features()
        self._tasks = _read_tasks(self._path)
        table = _read_episode_table(self._path)
        self._episodes, self._places = self._read_places(table)
        self._length = {episode.index: episode.length for episode in self._episodes}
        self._broken: dict[int, list[str]] = {}
        data_files = sorted({place.data_file for place in self._places.values()})
        video_files = sorted({name for place in self._places.values() for name, _ in place.videos.values()})
        with ThreadPoolExecutor(num_threads) as pool:
            self._values: dict[int, dict[str, npt.NDArray[np.float32]]] = {}
            for part in pool.map(self._read_data_file, data_files):
                self._values |= part
            scans = pool.map(self._scan_video_file, video_files)
            self._tables: dict[str, VideoTable] = {n: t for n, t in zip(video_files, scans, strict=True) if t}
        self._check_videos()
        self._reader = FrameReader(self._tables.values(), keep_bytes=keep_bytes)

    @property
    def path(self) -> Path:
        """Folder of the dataset."""
        return self._path

    @property
    def fps(self) -> float:
        """Steps per second."""
        return self._fps

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task strings by ascending task index."""
        return self._tasks

    @property
    def cameras(self) -> tuple[str, ...]:
        """All video features of the dataset, asked for or not."""
        return camera_features(self.info)

    @property
    def episodes(self) -> Sequence[EpisodeRecord]:
        """All declared episodes by ascending index."""
        return self._episodes

    @property
    def keeps_frames(self) -> bool:
        """Whether decoded frames are kept in memory."""
        return self._reader.keeps_frames

    def find_broken(self) -> dict[int, str]:
        """Returns the first reason for each episode whose files do not hold what its tables declare."""
        return {index: reasons[0] for index, reasons in sorted(self._broken.items())}

    def column(self, key: str, episode: int) -> npt.NDArray[np.float32]:
        """Returns feature ``key`` of every step of an episode, ``[length, dims]``."""
        return self._values[episode][key]

    def frames(self, camera: str, episode: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Returns the camera's frames ``[len(steps), h, w, 3]`` at ascending, distinct ``steps`` of an episode.

        Raises:
          DataError: The file can no longer be read as it was when the dataset was opened.
        """
        name, first = self._places[episode].videos[camera]
        try:
            return self._reader.read(self._tables[name], first + steps)
        except VideoError as error:
            raise DataError(f"dataset {self._path}: episode {episode}: {error}") from error

    def locate(self, camera: str, episode: int) -> tuple[Path, int]:
        """Returns the mp4 file of an episode's camera and the number of its first frame there."""
        name, first = self._places[episode].videos[camera]
        return self._path / name, first

    def fingerprint(self) -> str:
        """Returns a hash of metadata, episode table, parquet contents and video names and sizes (16 hex digits)."""
        digest = hashlib.sha256(json.dumps(self.info, sort_keys=True).encode())
        for episode in self._episodes:
            place = self._places[episode.index]
            digest.update(
                repr(
                    (episode.index, episode.length, episode.task, place.data_file, sorted(place.videos.items()))
                ).encode()
            )
        for name in sorted({place.data_file for place in self._places.values()}):
            file = self._path / name
            digest.update(name.encode() + (_file_digest(file) if file.is_file() else b"missing"))
        for name in sorted({name for place in self._places.values() for name, _ in place.videos.values()}):
            file = self._path / name
            digest.update(f"{name}:{file.stat().st_size if file.is_file() else -1}".encode())
        return digest.hexdigest()[:16]

    def _check_features(self) -> None:
        features, cameras = self.info["features"], camera_features(self.info)
        for camera in self._cameras:
            if camera not in cameras:
                raise DataError(
                    f"dataset {self._path} has no camera {camera!r} (config.data.views); it has {', '.join(cameras)}"
                )
        for key in self._columns:
            if key not in features or features[key]["dtype"] in ("video", "image", "string"):
                vectors = [k for k, f in features.items() if f["dtype"].startswith("float")]
                raise DataError(
                    f"dataset {self._path} has no numeric feature {key!r} (config.data.state_key, "
                    f"config.data.action_key); it has {', '.join(vectors)}"
                )

    def _read_places(self, table: dict[str, list[Any]]) -> tuple[tuple[EpisodeRecord, ...], dict[int, _Place]]:
        """Returns the declared episodes and where they lie, from the columns of the episode table."""
        needed = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
        for camera in self._cameras:
            needed += [f"videos/{camera}/{field}" for field in ("chunk_index", "file_index", "from_timestamp")]
        for name in needed:
            if name not in table:
                raise DataError(f"dataset {self._path}: the episode table meta/episodes has no column {name!r}")
        records, places = [], {}
        for row, index in enumerate(table["episode_index"]):
            tasks = table["tasks"][row]
            if not tasks or tasks[0] not in self._tasks:
                raise DataError(f"dataset {self._path}: task {tasks!r} of episode {index} is not in {TASKS_PATH}")
            records.append(EpisodeRecord(index=index, length=table["length"][row], task=tasks[0]))
            places[index] = _Place(
                data_file=self.info["data_path"].format(
                    chunk_index=table["data/chunk_index"][row], file_index=table["data/file_index"][row]
                ),
                videos={camera: self._video_place(table, row, camera) for camera in self._cameras},
            )
        if len(places) != len(records):
            raise DataError(f"dataset {self._path}: the episode table meta/episodes names an episode twice")
        if len(records) != self.info.get("total_episodes", len(records)):
            raise DataError(
                f"dataset {self._path}: {INFO_PATH} declares {self.info['total_episodes']} episodes, "
                f"the episode table meta/episodes has {len(records)}"
            )
        return tuple(sorted(records, key=lambda record: record.index)), places

    def _video_place(self, table: dict[str, list[Any]], row: int, camera: str) -> tuple[str, int]:
        name = self.info["video_path"].format(
            video_key=camera,
            chunk_index=table[f"videos/{camera}/chunk_index"][row],
            file_index=table[f"videos/{camera}/file_index"][row],
        )
        return name, round(table[f"videos/{camera}/from_timestamp"][row] * self._fps)

    def _read_data_file(self, name: str) -> dict[int, dict[str, npt.NDArray[np.float32]]]:
        """Returns the asked-for columns of the file's episodes; notes the episodes it does not hold whole."""
        expected = sorted(index for index, place in self._places.items() if place.data_file == name)
        try:
            table = pq.read_table(self._path / name, columns=["episode_index", "frame_index", *self._columns])
            episode_index = table["episode_index"].to_numpy()
            frame_index = table["frame_index"].to_numpy()
            columns = {key: _matrix(table[key]) for key in self._columns}
        except (OSError, KeyError, pa.ArrowException, ValueError) as error:
            for index in expected:
                self._note(index, f"{name} cannot be read: {_first_line(error)}".replace(f"{self._path}/", ""))
            return {}
        values = {}
        for index in expected:
            rows = np.flatnonzero(episode_index == index)
            length = self._length[index]
            if not np.array_equal(frame_index[rows], np.arange(length)):
                self._note(
                    index, f"{name} holds {len(rows)} rows of it, not frames 0 to {length - 1} once and in order"
                )
                continue
            values[index] = {key: np.ascontiguousarray(column[rows]) for key, column in columns.items()}
        return values

    def _scan_video_file(self, name: str) -> VideoTable | None:
        """Returns the file's packet table, or None after noting its episodes as broken."""
        try:
            return scan_video(self._path / name, self._fps)
        except VideoError as error:
            for index, place in self._places.items():
                if name in (video for video, _ in place.videos.values()):
                    self._note(index, str(error).replace(f"{self._path}/", ""))
            return None

    def _check_videos(self) -> None:
        """Notes every episode of a file whose frame count is not the sum of its episodes' lengths.

        All of them: where frames were lost or added inside the file, each later episode is shifted against its
        actions, and the count alone does not tell where.
        """
        users: dict[str, list[tuple[int, int]]] = {}
        for index, place in sorted(self._places.items()):
            for name, first in place.videos.values():
                users.setdefault(name, []).append((first, index))
        for name, episodes in users.items():
            table = self._tables.get(name)
            if table is None:
                continue
            total, end = sum(self._length[index] for _, index in episodes), 0
            for first, index in sorted(episodes):
                if table.num_frames != total:
                    self._note(
                        index, f"{name} holds {table.num_frames} frames, its {len(episodes)} episodes have {total}"
                    )
                elif first != end:
                    self._note(index, f"begins at frame {first} of {name}, the one before it ends at {end}")
                end = first + self._length[index]

    def _note(self, episode: int, reason: str) -> None:
        self._broken.setdefault(episode, []).append(reason)


def read_info(path: Path) -> dict[str, Any]:
    """Returns ``meta/info.json`` of a LeRobot v3.0 folder.

    Raises:
      DataError: The folder or file is missing, is not JSON, lacks a key, or declares another version.
    """
    if not path.is_dir():
        raise DataError(
            f"dataset {path} does not exist (config.data.path): expected the folder of a LeRobot v3.0 dataset"
        )
    try:
        info = json.loads((path / INFO_PATH).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"dataset {path} has no {INFO_PATH}: not a LeRobot dataset (config.data.path)") from error
    except ValueError as error:
        raise DataError(f"dataset {path}: {INFO_PATH} is not JSON: {_first_line(error)}") from error
    version = str(info.get("codebase_version", "none"))
    if not version.startswith("v3."):
        raise DataError(f"dataset {path} has codebase_version {version}: expected v3.x (config.data.path)")
    for key in ("fps", "features", "data_path", "video_path"):
        if key not in info:
            raise DataError(f"dataset {path}: {INFO_PATH} has no key {key!r}")
    if not (isinstance(info["fps"], int | float) and math.isfinite(info["fps"]) and info["fps"] > 0):
        raise DataError(f"dataset {path}: {INFO_PATH} has fps {info['fps']!r}: expected a positive number")
    return info


def camera_features(info: dict[str, Any]) -> tuple[str, ...]:
    """Returns the names of the video features of an ``info.json`` in its own order."""
    return tuple(key for key, feature in info["features"].items() if feature["dtype"] == "video")


def _read_tasks(path: Path) -> tuple[str, ...]:
    """Returns task strings by ascending task index.

    The string is pandas' index: a column ``task`` or, where the index had no name, ``__index_level_0__``.
    """
    try:
        table = pq.read_table(path / TASKS_PATH)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"dataset {path}: {TASKS_PATH} cannot be read: {_first_line(error)}") from error
    names = [name for name in ("task", "__index_level_0__") if name in table.column_names]
    if not names or "task_index" not in table.column_names:
        raise DataError(f"dataset {path}: {TASKS_PATH} has columns {table.column_names}: expected task and task_index")
    pairs = zip(table["task_index"].to_pylist(), table[names[0]].to_pylist(), strict=True)
    return tuple(task for _, task in sorted(pairs))


def _read_episode_table(path: Path) -> dict[str, list[Any]]:
    """Returns the columns of all files of the episode table, without the statistics."""
    files = sorted(path.glob(EPISODES_GLOB))
    if not files:
        raise DataError(f"dataset {path} has no episode table {EPISODES_GLOB}")
    columns: dict[str, list[Any]] = {}
    for file in files:
        try:
            names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
            table = pq.read_table(file, columns=names)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"dataset {path}: {file.relative_to(path)} cannot be read: {_first_line(error)}") from error
        for name in names:
            columns.setdefault(name, []).extend(table[name].to_pylist())
    return columns


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Returns a scalar or list column as ``[rows, dims]``; null becomes NaN.

    Raises:
      ValueError: The rows have different lengths, or a row is null.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # an empty column keeps its chunks
        return np.zeros((0, 1), np.float32)
    if not isinstance(array, pa.FixedSizeListArray | pa.ListArray | pa.LargeListArray):
        return array.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, 1)
    lengths = np.unique(array.value_lengths().to_numpy(zero_copy_only=False))
    if array.null_count or len(lengths) > 1:
        raise ValueError(f"a vector column has {array.null_count} null rows and rows of lengths {lengths.tolist()}")
    return array.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(array), -1)


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
