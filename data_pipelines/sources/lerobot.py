"""LeRobot datasets, v2.0, v2.1 and v3.0, at random access: columns from parquet, frames from mp4 or from parquet.

Owns the reading of data and video files and the checks that they hold what the tables declare; the versions differ in
their tables only (``lerobot_v2``, ``lerobot_v3``). Low-dimensional columns are held in memory (4 bytes per value; an
hour at 15 Hz with 16 values is 3.5 MB), frames are decoded on demand. Source of the format: huggingface/lerobot,
src/lerobot/datasets, codebase versions v2.1 (package 0.3.2) and v3.0 (0.4.4).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.sources import lerobot_v2, lerobot_v3
from data_pipelines.sources.frame_reader import FrameReader
from data_pipelines.sources.lerobot_tables import read_info, video_features
from data_pipelines.sources.parquet_images import ImageError, ParquetImages
from data_pipelines.sources.remote import dataset_path
from data_pipelines.sources.retry import retry_read
from data_pipelines.sources.source import Feature, OpenedSource, check_choice, first_line
from data_pipelines.sources.video import VideoError, VideoTable, scan_video
from wamjax.errors import DataError

# Distance of a timestamp from frame_index / fps, in frames, beyond which it belongs to a neighbouring frame.
MAX_TIMESTAMP_OFFSET = 0.5
# Columns that say which step of which episode a row is; the first two must be there.
_NUMBERS = ("episode_index", "frame_index", "timestamp", "task_index")


class LeRobotDataset(OpenedSource):
    """A LeRobot folder. Implements ``Source``.

    Opening reads the metadata, the asked-for columns of every parquet file and the packet tables of every mp4 file.
    Metadata that cannot be used at all raises; what is wrong with single files or episodes is found and kept for
    ``find_broken``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        cameras: Sequence[str] | None = None,
        optional_cameras: Sequence[str] = (),
        columns: Sequence[str] | None = None,
        keep_bytes: int = 0,
        num_threads: int = 4,
        part: range | None = None,
    ) -> None:
        """Opens the dataset.

        Args:
          path: Its folder.
          cameras: Video and image features that will be read; None for all.
          optional_cameras: Read as well where the dataset has them.
          columns: Numeric features that will be read; None for all floating-point ones but the clock.
          keep_bytes: See ``FrameReader``.
          num_threads: Files read at once while opening.
          part: Positions in ``episodes`` of those that will be read; only their files are opened, and only of them
            ``find_broken`` tells. None for all.

        Raises:
          DataError: The folder or its metadata is missing, unreadable, empty or of another version, or a feature is
            missing.
        """
        super().__init__(dataset_path(path))
        self._info = read_info(self.path)
        self._fps = float(self._info["fps"])
        self.features = {
            name: Feature(dtype=str(entry["dtype"]), shape=tuple(entry.get("shape") or ()))
            for name, entry in self._info["features"].items()
        }
        vectors = [n for n, f in self.features.items() if f.dtype.startswith("float") and n != "timestamp"]
        self._cameras, self.columns = check_choice(
            self.path,
            cameras=cameras,
            optional_cameras=optional_cameras,
            columns=columns,
            source=self,
            vectors=vectors,
        )
        self._in_videos = video_features(self._info)
        tables = lerobot_v3 if str(self._info["codebase_version"]).startswith("v3") else lerobot_v2
        declared = tables.read_tables(self.path, self._info, self._cameras, self._broken)
        self._tasks, self._task_indices = declared.tasks, declared.task_indices
        self.episodes, self._places = declared.records, declared.places
        self._length = {episode.index: episode.length for episode in self.episodes}
        self._part = {record.index for record in (self.episodes if part is None else self.episodes[_slice(part)])}
        self._of_data_file: dict[str, list[int]] = {}  # of the part
        self._of_video_file: dict[str, list[tuple[int, int]]] = {}  # (first frame, episode), of the part's files
        videos = {name for index in self._part for name, _ in self._places[index].videos.values()}
        for index, place in sorted(self._places.items()):
            if index in self._part:
                self._of_data_file.setdefault(place.data_file, []).append(index)
            for name, first in place.videos.values():
                if name in videos:
                    self._of_video_file.setdefault(name, []).append((first, index))
        self._rows: dict[int, npt.NDArray[np.int64]] = {}  # of each episode in its data file
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(self._read_data_file, sorted(self._of_data_file)))
            video_files = sorted(self._of_video_file)
            scans = pool.map(self._scan_video_file, video_files)
            self._tables: dict[str, VideoTable] = {n: t for n, t in zip(video_files, scans, strict=True) if t}
        self._check_videos()
        self._reader = FrameReader(self._tables.values(), keep_bytes=keep_bytes)
        self._images = ParquetImages()

    @property
    def format(self) -> str:
        """``LeRobot`` and the codebase version."""
        return f"LeRobot {self._info['codebase_version']}"

    @property
    def fps(self) -> float:
        """Steps per second."""
        return self._fps

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task strings by ascending task index."""
        return self._tasks

    @property
    def keeps_frames(self) -> bool:
        """Whether decoded frames are kept in memory."""
        return self._reader.keeps_frames

    def find_broken(self) -> dict[int, str]:
        """Returns the first reason for each episode of the part that cannot be read whole."""
        return {index: reason for index, reason in self._broken.first_reasons().items() if index in self._part}

    def frames(self, camera: str, episode: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Returns the camera's frames ``[len(steps), h, w, 3]`` at ascending, distinct ``steps`` of an episode.

        Raises:
          DataError: The file can no longer be read as it was when the dataset was opened.
        """
        return self._read(camera, episode, steps, None)

    def frames_into(self, camera: str, episode: int, steps: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        """As ``frames``, written to ``out`` ``[len(steps), h, w, 3]``."""
        found = self._read(camera, episode, steps, out)
        if found is not out:
            out[:] = found

    def _read(
        self, camera: str, episode: int, steps: npt.NDArray[np.int64], out: npt.NDArray[np.uint8] | None
    ) -> npt.NDArray[np.uint8]:
        """Returns frames; those of a video are in ``out`` if given."""
        place = self._places[episode]
        try:
            if camera not in self._in_videos:
                return self._images.decode(self.path / place.data_file, camera, self._rows[episode][steps])
            name, first = place.videos[camera]
            return self._reader.read(self._tables[name], first + steps, out)
        except (VideoError, ImageError) as error:
            raise DataError(f"dataset {self.path}: episode {episode}: {error}") from error

    def locate(self, camera: str, episode: int) -> tuple[Path, int]:
        """Returns the mp4 file of an episode's camera and the number of its first frame there."""
        name, first = self._places[episode].videos[camera]
        return self.path / name, first

    def find_video(self, camera: str, episode: int) -> tuple[VideoTable, int] | None:
        """Returns the video of an episode's camera and the number of its first frame there; None for images."""
        if camera not in self._in_videos:
            return None
        name, first = self._places[episode].videos[camera]
        return self._tables[name], first

    def fingerprint(self) -> str:
        """Returns a hash of metadata, episode table, parquet contents and video names and sizes (16 hex digits)."""
        digest = hashlib.sha256(json.dumps(self._info, sort_keys=True).encode())
        for episode in self.episodes:
            place = self._places[episode.index]
            digest.update(
                repr(
                    (episode.index, episode.length, episode.task, place.data_file, sorted(place.videos.items()))
                ).encode()
            )
        for name in sorted({place.data_file for place in self._places.values()}):
            file = self.path / name
            digest.update(name.encode() + (_file_digest(file) if file.is_file() else b"missing"))
        for name in sorted({name for place in self._places.values() for name, _ in place.videos.values()}):
            file = self.path / name
            digest.update(f"{name}:{file.stat().st_size if file.is_file() else -1}".encode())
        return digest.hexdigest()[:16]

    def _read_data_file(self, name: str) -> None:
        """Reads the asked-for columns of the file's episodes; notes the episodes it does not hold whole."""
        expected = self._of_data_file[name]
        try:
            table = retry_read(lambda: self._read_table(self.path / name), f"dataset {self.path}: {name}")
            there = [key for key in _NUMBERS if key in table.column_names]
            numbers = {key: table[key].to_numpy() for key in there}
            columns = {key: _matrix(table[key]) for key in self.columns}
        except (OSError, KeyError, pa.ArrowException, ValueError) as error:
            for index in expected:
                self._broken.note(index, f"{name} cannot be read: {first_line(error)}".replace(f"{self.path}/", ""))
            return
        order = np.argsort(numbers["episode_index"], kind="stable")  # rows of one episode side by side, in their order
        owners, indices = numbers["episode_index"][order], np.array(expected)
        begins, ends = np.searchsorted(owners, indices), np.searchsorted(owners, indices + 1)
        for index, begin, end in zip(expected, begins, ends, strict=True):
            rows = order[begin:end]
            problem = self._find_problem(index, {key: values[rows] for key, values in numbers.items()})
            if problem:
                self._broken.note(index, f"{name} {problem}")
                continue
            self._rows[index] = rows
            self._values[index] = {key: np.ascontiguousarray(column[rows]) for key, column in columns.items()}

    def _read_table(self, path: Path) -> pa.Table:
        """Returns the columns that are read of a data file.

        Raises:
          ValueError: It lacks one.
        """
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            needed = [*_NUMBERS[:2], *self.columns, *self._image_cameras()]
            missing = [column for column in needed if column not in there]
            if missing:
                raise ValueError(f"it has no column {missing[0]!r}")
            return file.read(columns=[*[key for key in _NUMBERS if key in there], *self.columns])

    def _image_cameras(self) -> list[str]:
        return [camera for camera in self._cameras if camera not in self._in_videos]

    def _find_problem(self, index: int, numbers: dict[str, npt.NDArray[np.generic]]) -> str | None:
        """Returns what is wrong with an episode's rows, or None."""
        length, frames = self._length[index], numbers["frame_index"]
        if not np.array_equal(frames, np.arange(length)):
            return f"holds {len(frames)} rows of it, not frames 0 to {length - 1} once and in order"
        if "task_index" in numbers:
            unknown = sorted(set(numbers["task_index"].tolist()) - self._task_indices)
            if unknown:
                return f"has task_index {unknown[0]}, which the task table does not list"
        if "timestamp" in numbers:
            offset = np.abs(numbers["timestamp"].astype(np.float64) * self._fps - np.arange(length))
            off = np.flatnonzero(~(offset < MAX_TIMESTAMP_OFFSET))
            if len(off):
                stamp = float(numbers["timestamp"][off[0]])  # pyright: ignore[reportArgumentType] - a number
                return f"has frame {off[0]} at {stamp:.4f} s, not at {off[0]}/{self._fps:g} s ({len(off)} such frames)"
        return None

    def _scan_video_file(self, name: str) -> VideoTable | None:
        """Returns the file's packet table, or None after noting its episodes as broken."""
        try:
            return scan_video(self.path / name, self._fps)
        except VideoError as error:
            for _, index in self._of_video_file[name]:
                self._broken.note(index, str(error).replace(f"{self.path}/", ""))
            return None

    def _check_videos(self) -> None:
        """Notes every episode of a file whose frame count is not the sum of its episodes' lengths.

        All of them: where frames were lost or added inside the file, each later episode is shifted against its
        actions, and the count alone does not tell where.
        """
        for name, episodes in self._of_video_file.items():
            table = self._tables.get(name)
            if table is None:
                continue
            total, end = sum(self._length[index] for _, index in episodes), 0
            for first, index in sorted(episodes):
                if table.num_frames != total:
                    users = f"its {len(episodes)} episodes have" if len(episodes) > 1 else "its episode has"
                    self._broken.note(index, f"{name} holds {table.num_frames} frames, {users} {total}")
                elif first != end:
                    self._broken.note(index, f"begins at frame {first} of {name}, the one before it ends at {end}")
                end = first + self._length[index]


def _slice(part: range) -> slice:
    return slice(part.start, part.stop, part.step)


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
    def digest() -> bytes:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    return retry_read(digest, str(path))
