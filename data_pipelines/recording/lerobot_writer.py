"""Writes episodes as a LeRobot v3.0 dataset: parquet tables, mp4 videos, metadata.

Owns the order of writing and the all-or-nothing appearance of the dataset's folder; does not own the format's constants
(lerobot_format.py), the encoding (video_encoder.py) or where episodes come from.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.recording import lerobot_format as fmt
from data_pipelines.recording.statistics import (
    FeatureStatistics,
    channel_histogram,
    image_statistics,
    vector_statistics,
)
from data_pipelines.recording.video_encoder import Mp4Appender, encode_clip
from wamjax.errors import DataError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded episode of f frames; frame n is what was seen before action n was executed.

    Attributes:
        images: uint8 [f, h, w, 3] for each camera.
        state: float32 [f, s].
        actions: float32 [f, u].
        success: bool [f], whether the task was solved after action n.
        prompt: The task in words.
    """

    images: Mapping[str, npt.NDArray[np.uint8]]
    state: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    success: npt.NDArray[np.bool_]
    prompt: str


class LeRobotWriter:
    """Context manager that writes a dataset into a hidden sibling folder and renames it into place when all is written.

    A recording that fails or is interrupted removes the hidden folder; one that is killed leaves it, but never anything
    under the dataset's own name.
    """

    def __init__(self, out: str | Path, spec: fmt.DatasetSpec) -> None:
        """Prepares the hidden folder.

        Args:
            out: Folder of the dataset; must not exist.
            spec: What all episodes share.

        Raises:
            DataError: `out` exists.
        """
        self._out = Path(out)
        if self._out.exists():
            raise DataError(f"dataset folder {self._out} already exists: choose another --out or delete it first")
        self._spec = spec
        self._out.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{self._out.name}.partial-"
        for leftover in sorted(self._out.parent.glob(f"{prefix}*")):
            _log.warning("unfinished recording in %s: delete it if no recording is running", leftover)
        self._root = Path(tempfile.mkdtemp(prefix=prefix, dir=self._out.parent))
        self._root.chmod(0o755)  # mkdtemp makes it private; the dataset is an ordinary folder
        self._schema = fmt.frame_schema(spec)
        self._data = _ParquetSeries(self._root, self._schema, limit_bytes=spec.data_file_bytes)
        self._videos = {camera: _VideoSeries(self._root, camera, spec) for camera in spec.cameras}
        self._episodes: list[dict[str, Any]] = []
        self._tasks: dict[str, int] = {}
        self._num_frames = 0
        self._histograms: dict[str, npt.NDArray[np.int64]] = {}
        self._columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in self._schema.names}

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._data.close()
            for series in self._videos.values():
                series.close()
            if kind is None:
                self._write_metadata()
                os.rename(self._root, self._out)
        finally:
            shutil.rmtree(self._root, ignore_errors=True)  # gone already after the rename

    def add_episode(self, episode: Episode) -> int:
        """Appends an episode.

        Args:
            episode: Its arrays must agree with each other and with the spec.

        Returns:
            Its episode index.

        Raises:
            DataError: Shapes or dtypes disagree, or state or actions are not finite.
        """
        self._check(episode)
        index, length = len(self._episodes), len(episode.actions)
        task_index = self._tasks.setdefault(episode.prompt, len(self._tasks))
        columns = self._frame_columns(episode, episode_index=index, task_index=task_index)
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [episode.prompt],
            "length": length,
            "dataset_from_index": self._num_frames,
            "dataset_to_index": self._num_frames + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            **self._data.append(columns),
        }
        for camera, series in self._videos.items():
            key, frames = fmt.image_key(camera), episode.images[camera]
            row |= series.append(frames)
            histogram = channel_histogram(frames)
            self._histograms[key] = self._histograms.get(key, 0) + histogram
            row |= _statistics_cells(key, image_statistics(histogram, num_frames=length))
        for name, values in columns.items():
            self._columns[name].append(values)
            row |= _statistics_cells(name, vector_statistics(values))
        self._episodes.append(row)
        self._num_frames += length
        return index

    def _frame_columns(self, episode: Episode, *, episode_index: int, task_index: int) -> dict[str, npt.NDArray[Any]]:
        length = len(episode.actions)
        frame_index = np.arange(length, dtype=np.int64)
        return {
            fmt.STATE: episode.state,
            fmt.ACTION: episode.actions,
            fmt.DONE: frame_index == length - 1,
            fmt.SUCCESS: episode.success,
            "timestamp": (frame_index / self._spec.video.fps).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.full(length, episode_index, np.int64),
            "index": self._num_frames + frame_index,
            "task_index": np.full(length, task_index, np.int64),
        }

    def _check(self, episode: Episode) -> None:
        spec, length = self._spec, len(episode.actions)
        if length == 0:
            raise DataError(f"episode {len(self._episodes)} has no frames: expected at least one")
        if set(episode.images) != set(spec.cameras):
            raise DataError(f"episode has cameras {sorted(episode.images)}: expected {sorted(spec.cameras)}")
        expected: dict[str, tuple[npt.NDArray[Any], tuple[int, ...], npt.DTypeLike]] = {
            "state": (episode.state, (length, len(spec.state_names)), np.float32),
            "actions": (episode.actions, (length, len(spec.action_names)), np.float32),
            "success": (episode.success, (length,), np.bool_),
        }
        for camera in spec.cameras:
            expected[camera] = (episode.images[camera], (length, spec.height, spec.width, 3), np.uint8)
        for name, (array, shape, dtype) in expected.items():
            if array.shape != shape or array.dtype != dtype:
                raise DataError(
                    f"episode {len(self._episodes)}: {name} is {array.dtype}{list(array.shape)}, "
                    f"expected {np.dtype(dtype)}{list(shape)}"
                )
        if not (np.isfinite(episode.state).all() and np.isfinite(episode.actions).all()):
            raise DataError(f"episode {len(self._episodes)}: state or actions hold values that are not finite")

    def _write_metadata(self) -> None:
        if not self._episodes:
            raise DataError(f"dataset {self._out} would hold no episode: nothing is written")
        root, spec = self._root, self._spec
        path = root / fmt.EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes, schema=fmt.episode_schema(spec)), path)
        # LeRobot reads this table with pandas and looks prompts up in its index, so pandas' index metadata is needed.
        tasks = pd.DataFrame({"task_index": list(self._tasks.values())}, index=pd.Index(list(self._tasks), name="task"))
        tasks.to_parquet(root / fmt.TASKS_PATH)
        info = fmt.info_object(
            spec, num_episodes=len(self._episodes), num_frames=self._num_frames, num_tasks=len(self._tasks)
        )
        _write_json(root / fmt.INFO_PATH, info)
        statistics = {
            key: image_statistics(histogram, num_frames=self._num_frames) for key, histogram in self._histograms.items()
        }
        statistics |= {name: vector_statistics(np.concatenate(parts)) for name, parts in self._columns.items()}
        _write_json(root / fmt.STATS_PATH, {k: {s: v.tolist() for s, v in st.items()} for k, st in statistics.items()})


class _ParquetSeries:
    """Data files, one row group for each episode, a new file when the next episode would pass the limit."""

    def __init__(self, root: Path, schema: pa.Schema, *, limit_bytes: int) -> None:
        self._root = root
        self._schema = schema
        self._limit_bytes = limit_bytes
        self._file = -1
        self._num_bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def append(self, columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
        arrays = []
        for field in self._schema:
            values = columns[field.name]
            flat = pa.array(values.ravel())
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat)
        table = pa.table(arrays, schema=self._schema)
        if self._writer is None or self._num_bytes + table.nbytes > self._limit_bytes:
            self.close()
            self._file += 1
            self._num_bytes = 0
            self._writer = pq.ParquetWriter(_file_path(self._root, fmt.DATA_PATH, self._file), self._schema)
        self._writer.write_table(table)
        self._num_bytes += table.nbytes
        chunk_index, file_index = divmod(self._file, fmt.CHUNKS_SIZE)
        return {"data/chunk_index": chunk_index, "data/file_index": file_index}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _VideoSeries:
    """The mp4 files of one camera, a new file when the next episode would pass the limit."""

    def __init__(self, root: Path, camera: str, spec: fmt.DatasetSpec) -> None:
        self._root = root
        self._key = fmt.image_key(camera)
        self._spec = spec
        self._file = -1
        self._writer: Mp4Appender | None = None

    def append(self, frames: npt.NDArray[np.uint8]) -> dict[str, int | float]:
        clip = encode_clip(frames, self._spec.video)
        if self._writer is None or self._writer.num_bytes + len(clip) > self._spec.video_file_bytes:
            self.close()
            self._file += 1
            path = _file_path(self._root, fmt.VIDEO_PATH, self._file, video_key=self._key)
            self._writer = Mp4Appender(path, self._spec.video)
        first = self._writer.num_frames
        self._writer.append(clip)
        assert self._writer.num_frames == first + len(frames)
        chunk_index, file_index = divmod(self._file, fmt.CHUNKS_SIZE)
        prefix, fps = f"videos/{self._key}", self._spec.video.fps
        return {
            f"{prefix}/chunk_index": chunk_index,
            f"{prefix}/file_index": file_index,
            # From integer frame counts, so that timestamps do not drift along a long file.
            f"{prefix}/from_timestamp": first / fps,
            f"{prefix}/to_timestamp": (first + len(frames)) / fps,
        }

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _file_path(root: Path, pattern: str, number: int, **keys: str) -> Path:
    chunk_index, file_index = divmod(number, fmt.CHUNKS_SIZE)
    path = root / pattern.format(chunk_index=chunk_index, file_index=file_index, **keys)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _statistics_cells(feature: str, statistics: FeatureStatistics) -> dict[str, Any]:
    return {f"stats/{feature}/{name}": value.tolist() for name, value in statistics.items()}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
