"""A dataset as its index knows it: opened in a moment, whatever its size, and read through memory maps.

Owns ``StoredSource``, which answers as the dataset's own reader would, and ``open_index``. Columns come from the index;
frames of videos from the videos, by the tables of the index; other frames from the dataset's reader, opened when first
needed.
"""

from __future__ import annotations

import bisect
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from absl import logging

from data_pipelines.index import EpisodeIndex, WindowTable
from data_pipelines.indexing.arrays import (
    EPISODES,
    KEYFRAMES,
    PLACES,
    VIDEOS,
    column_name,
    map_array,
    split_name,
    unpack_video,
    windows_name,
)
from data_pipelines.indexing.job import TRAIN, VALIDATION
from data_pipelines.indexing.manifest import IndexManifest, check_settings, folder_stamp
from data_pipelines.sources.formats import open_source, opens_in_parts
from data_pipelines.sources.frame_reader import FrameReader
from data_pipelines.sources.remote import dataset_path, refuse_address
from data_pipelines.sources.source import EpisodeRecord, Feature, Source
from data_pipelines.sources.video import VideoError, VideoTable
from wamjax.config.schema import RunConfig
from wamjax.errors import DataError

_TABLES_KEPT = 1024  # video tables in memory: a few kB each


class StoredEpisodes(Sequence[EpisodeRecord]):
    """The episodes of an index by ascending index; each record is made when it is asked for."""

    def __init__(self, rows: npt.NDArray[Any], tasks: Sequence[str]) -> None:
        """Wraps the rows of ``arrays.EPISODES``."""
        self._rows, self._tasks = rows, tasks

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, position: int) -> EpisodeRecord: ...
    @overload
    def __getitem__(self, position: slice) -> StoredEpisodes: ...
    def __getitem__(self, position: int | slice) -> EpisodeRecord | StoredEpisodes:
        if isinstance(position, slice):
            return StoredEpisodes(self._rows[position], self._tasks)
        row = self._rows[position]
        return EpisodeRecord(index=int(row["index"]), length=int(row["length"]), task=self._tasks[int(row["task"])])

    def find(self, episode: int) -> int:
        """Returns the position of an episode index.

        Raises:
          KeyError: The index does not have it.
        """
        indices = self._rows["index"]
        position = bisect.bisect_left(indices, episode)  # np.searchsorted would copy all of a field of a record first
        if position == len(indices) or indices[position] != episode:
            raise KeyError(episode)
        return position


class _Records(Mapping[int, EpisodeRecord]):
    """The same by episode index."""

    def __init__(self, episodes: StoredEpisodes) -> None:
        self._episodes = episodes

    def __getitem__(self, episode: int) -> EpisodeRecord:
        return self._episodes[self._episodes.find(episode)]

    def __len__(self) -> int:
        return len(self._episodes)

    def __iter__(self) -> Iterator[int]:
        return (record.index for record in self._episodes)


class StoredSource:
    """A dataset read through its index. Implements ``Source``; holds only the episodes that are read."""

    def __init__(self, folder: Path, manifest: IndexManifest, path: Path, *, keep_bytes: int, num_threads: int) -> None:
        """Maps the arrays of the index in ``folder`` of the dataset at ``path``; reads none of them.

        Args:
          folder: The index.
          manifest: Its manifest.
          path: The dataset.
          keep_bytes: See ``FrameReader``.
          num_threads: Files read at once where the dataset's own reader must be opened.

        Raises:
          DataError: A file of the index is missing or cut short.
        """
        dataset = manifest.dataset
        self.path, self.format, self.fps = path, str(dataset["format"]), dataset["fps"]
        self.columns: tuple[str, ...] = tuple(dataset["columns"])
        self.tasks: tuple[str, ...] = tuple(dataset["tasks"])
        self.features: Mapping[str, Feature] = {
            name: Feature(dtype=entry["dtype"], shape=tuple(entry["shape"]))
            for name, entry in dataset["features"].items()
        }
        self._manifest, self._read_cameras, self._num_threads = manifest, tuple(dataset["cameras"]), num_threads
        self._rows = map_array(folder, EPISODES)
        self.episodes = StoredEpisodes(self._rows, self.tasks)
        self._columns = {key: map_array(folder, column_name(i)) for i, key in enumerate(self.columns)}
        self._places = map_array(folder, PLACES)
        self._videos, self._keyframes = map_array(folder, VIDEOS), map_array(folder, KEYFRAMES)
        self._table = functools.lru_cache(_TABLES_KEPT)(self._unpack)
        sizes = self._videos["num_frames"] * self._videos["height"] * self._videos["width"] * 3
        keeps = 0 < int(sizes.sum()) <= keep_bytes
        self._reader = FrameReader(map(self._unpack, range(len(sizes))) if keeps else (), keep_bytes=keep_bytes)
        self._lock = threading.Lock()
        self._opened: Source | None = None

    @property
    def cameras(self) -> tuple[str, ...]:
        """All cameras of the dataset, in the index or not."""
        return tuple(name for name, feature in self.features.items() if feature.dtype in ("video", "image"))

    @property
    def keeps_frames(self) -> bool:
        """Whether decoded frames are kept in memory."""
        return self._reader.keeps_frames

    def find_broken(self) -> dict[int, str]:
        """Returns the reason for each episode that was quarantined when the index was made."""
        return dict(self._manifest.quarantined)

    def column(self, key: str, episode: int) -> npt.NDArray[np.float32]:
        """Returns feature ``key`` of every step of an episode, ``[length, dims]``, mapped into memory."""
        row = self._rows[self.episodes.find(episode)]
        first = int(row["offset"])
        return np.asarray(self._columns[key][first : first + int(row["length"])])

    def frames(self, camera: str, episode: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Returns the camera's frames ``[len(steps), h, w, 3]`` at ascending, distinct ``steps`` of an episode.

        Raises:
          DataError: The file can no longer be read as it was when the index was made.
        """
        return self._read(camera, episode, steps, None)

    def find_video(self, camera: str, episode: int) -> tuple[VideoTable, int] | None:
        """Returns the video of an episode's camera and the number of its first frame there, where it has one."""
        side = self._read_cameras.index(camera)
        video, first = (int(value) for value in self._places[self.episodes.find(episode), side])
        return None if video < 0 else (self._table(video), first)

    def frames_into(self, camera: str, episode: int, steps: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        """As ``frames``, written to ``out`` ``[len(steps), h, w, 3]``."""
        found = self._read(camera, episode, steps, out)
        if found is not out:
            out[:] = found

    def _read(
        self, camera: str, episode: int, steps: npt.NDArray[np.int64], out: npt.NDArray[np.uint8] | None
    ) -> npt.NDArray[np.uint8]:
        """Returns frames; those of a video are in ``out`` if given."""
        place = self.find_video(camera, episode)
        if place is None:
            return self._open().frames(camera, episode, steps)
        table, first = place
        try:
            return self._reader.read(table, first + steps, out)
        except VideoError as error:
            raise DataError(f"dataset {self.path}: episode {episode}: {error}") from error

    def fingerprint(self) -> str:
        """Returns the hash of the dataset's content when the index was made."""
        return self._manifest.dataset["fingerprint"]

    def _unpack(self, video: int) -> VideoTable:
        return unpack_video(self._videos[video], self._keyframes, self.path)

    def _open(self) -> Source:
        """Returns the dataset's own reader, opened once."""
        with self._lock:
            if self._opened is None:
                self._opened = open_source(
                    self.path, cameras=self._read_cameras, columns=(), num_threads=self._num_threads
                )
            return self._opened


def open_index(config: RunConfig) -> tuple[StoredSource, EpisodeIndex]:
    """Opens ``config.data.index`` in place of the dataset and its survey.

    Raises:
      ConfigError: It was made with other settings; names the key.
      DataError: It is missing, damaged or incomplete, or the dataset is not the one it was made of.
    """
    refuse_address(config.data.index, "config.data.index")
    folder, path = Path(config.data.index), dataset_path(config.data.path)
    manifest = IndexManifest.load(folder)
    check_settings(manifest, config, folder)
    _check_dataset(manifest, path, folder, config.data.num_threads)
    keep_bytes = config.data.decoded_frames_mib * 2**20
    source = StoredSource(folder, manifest, path, keep_bytes=keep_bytes, num_threads=config.data.num_threads)
    tables = {split: _map_windows(folder, split) for split in (TRAIN, VALIDATION)}
    for split, table in tables.items():
        if len(table) != manifest.counts[split]["windows"]:
            raise DataError(
                f"index {folder} holds {len(table)} windows of {split}, its {manifest.counts[split]['windows']} are "
                "declared: it is damaged; make it again"
            )
    index = EpisodeIndex(
        records=_Records(source.episodes),
        train_episodes=map_array(folder, split_name(TRAIN)),  # pyright: ignore[reportArgumentType] - a sequence of int
        validation_episodes=map_array(folder, split_name(VALIDATION)),  # pyright: ignore[reportArgumentType] - the same
        train=tables[TRAIN],
        validation=tables[VALIDATION],
        quarantined=manifest.quarantined,
        unwanted=manifest.unwanted,
        too_short=manifest.too_short,
        idle_windows=manifest.counts["idle_windows"],
        task_episodes=manifest.counts["tasks"],
        steps=manifest.counts["steps"],
    )
    return source, index


def _map_windows(folder: Path, split: str) -> WindowTable:
    windows = map_array(folder, windows_name(split))
    return WindowTable(episodes=windows[:, 0], starts=windows[:, 1])


def _check_dataset(manifest: IndexManifest, path: Path, folder: Path, num_threads: int) -> None:
    """Raises ``DataError`` unless the dataset at ``path`` is the one the index was made of."""
    if not path.is_dir():
        raise DataError(f"dataset {path} does not exist (config.data.path): expected the folder of a dataset")
    if folder_stamp(path) == manifest.dataset["stamp"]:
        return
    logging.warning(
        "files of dataset %s have other times or sizes than when index %s was made: hashing their content (run "
        "wamjax data index again to be spared this)",
        *(path, folder),
    )
    names = {"cameras": manifest.dataset["cameras"], "columns": manifest.dataset["columns"]}
    part = range(0) if opens_in_parts(path) else None
    found = open_source(path, **names, num_threads=num_threads, part=part).fingerprint()
    if found != manifest.dataset["fingerprint"]:
        raise DataError(
            f"index {folder} was made of a dataset with fingerprint {manifest.dataset['fingerprint']} and {path} has "
            f"{found}: it changed since; make another with wamjax data index and name it in config.data.index"
        )
