"""A set of videos without actions, one episode each, at random access: what folder trees and tar shards have in common.

Owns the frame rate of the set, the checks of each video and the reading of frames. Where the videos and captions lie
is ``video_folder``'s and ``webdataset``'s.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipelines.sources.frame_reader import FrameReader
from data_pipelines.sources.source import EpisodeRecord, Feature, OpenedSource, check_choice
from data_pipelines.sources.video import ArchiveMember, VideoError, VideoTable, scan_video
from wamjax.errors import DataError

CAMERA = "video"  # the one camera of such a set, for config.data.views
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """One video as its folder or shard holds it.

    Attributes:
      name: Within the dataset, for messages.
      path: The file, or the archive it lies in.
      member: Where in the archive, or None.
      caption: What it shows, in words; empty where nothing says.
      problem: Why it cannot be used, where that is known before it is opened.
    """

    name: str
    path: Path
    member: ArchiveMember | None = None
    caption: str = ""
    problem: str | None = None


class ClipSource(OpenedSource):
    """Videos of one frame rate. Implements ``Source``.

    The rate is the one most videos declare; those of another rate, and those whose frames do not come at a constant
    one, are quarantined: they are not resampled.
    """

    def __init__(
        self,
        path: Path,
        clips: Sequence[Clip],
        *,
        format_name: str,
        cameras: Sequence[str] | None = None,
        optional_cameras: Sequence[str] = (),
        columns: Sequence[str] | None = None,
        keep_bytes: int = 0,
        num_threads: int = 4,
    ) -> None:
        """Reads the packet tables of all videos.

        Args:
          path: The dataset's folder.
          clips: Its videos in their final order; the position is the episode index.
          format_name: See ``Source.format``.
          cameras: ``("video",)`` or None for the same.
          optional_cameras: Read as well where the dataset has them.
          columns: There are none: empty or None.
          keep_bytes: See ``FrameReader``.
          num_threads: Files read at once while opening.

        Raises:
          DataError: There are no videos, none of them can be read, or a feature is asked for that there is not.
        """
        super().__init__(path)
        self._format, self._clips = format_name, tuple(clips)
        if not clips:
            raise DataError(f"dataset {path} is empty: it holds no video ({', '.join(VIDEO_SUFFIXES)})")
        with ThreadPoolExecutor(num_threads) as pool:
            scanned = list(pool.map(self._scan, range(len(clips))))
        self._tables = {index: table for index, table in enumerate(scanned) if table is not None}
        if not self._tables:
            reason = next(iter(self._broken.first_reasons().values()))
            raise DataError(f"dataset {path}: none of its {len(clips)} videos can be read: {reason}")
        self._fps = self._choose_rate()
        self.episodes = tuple(
            EpisodeRecord(
                index=index,
                length=self._tables[index].num_frames if index in self._tables else 0,
                task=clip.caption,
            )
            for index, clip in enumerate(self._clips)
        )
        sizes = {(table.height, table.width) for table in self._tables.values()}
        shape = (*sizes.pop(), 3) if len(sizes) == 1 else ()
        self.features = {CAMERA: Feature(dtype="video", shape=shape)}
        check_choice(path, cameras=cameras, optional_cameras=optional_cameras, columns=columns, source=self, vectors=())
        self._reader = FrameReader(self._tables.values(), keep_bytes=keep_bytes)

    @property
    def format(self) -> str:
        """Name of the format."""
        return self._format

    @property
    def fps(self) -> float:
        """Frames per second of most videos."""
        return float(self._fps)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All captions in the order of the videos, each once."""
        return tuple(dict.fromkeys(episode.task for episode in self.episodes))

    @property
    def keeps_frames(self) -> bool:
        """Whether decoded frames are kept in memory."""
        return self._reader.keeps_frames

    def column(self, key: str, episode: int) -> npt.NDArray[np.float32]:
        """Raises ``DataError``: there are no numeric features."""
        raise DataError(f"dataset {self.path} is {self._format}: it has no numeric feature {key!r}")

    def frames(self, camera: str, episode: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Returns frames ``[len(steps), h, w, 3]`` at ascending, distinct ``steps`` of a video.

        Raises:
          DataError: The file can no longer be read as it was when the dataset was opened.
        """
        return self._read(camera, episode, steps, None)

    def frames_into(self, camera: str, episode: int, steps: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        """As ``frames``, written to ``out`` ``[len(steps), h, w, 3]``."""
        self._read(camera, episode, steps, out)

    def _read(
        self, camera: str, episode: int, steps: npt.NDArray[np.int64], out: npt.NDArray[np.uint8] | None
    ) -> npt.NDArray[np.uint8]:
        assert camera == CAMERA, camera
        try:
            return self._reader.read(self._tables[episode], steps, out)
        except VideoError as error:
            raise DataError(f"dataset {self.path}: episode {episode}: {error}") from error

    def find_video(self, camera: str, episode: int) -> tuple[VideoTable, int]:
        """Returns an episode's video, which begins with it."""
        assert camera == CAMERA, camera
        return self._tables[episode], 0

    def fingerprint(self) -> str:
        """Returns a hash of names, sizes, lengths and captions (16 hex digits)."""
        digest = hashlib.sha256(self._format.encode())
        for clip, episode in zip(self._clips, self.episodes, strict=True):
            size = clip.member.size if clip.member else clip.path.stat().st_size if clip.path.is_file() else -1
            digest.update(repr((clip.name, size, episode.length, clip.caption)).encode())
        return digest.hexdigest()[:16]

    def _scan(self, index: int) -> VideoTable | None:
        """Returns a video's packet table, or None after noting why there is none."""
        clip = self._clips[index]
        if clip.problem is not None:
            self._broken.note(index, clip.problem)
            return None
        try:
            return scan_video(clip.path, None, clip.member)
        except VideoError as error:
            self._broken.note(index, str(error).replace(f"{self.path}/", ""))
            return None

    def _choose_rate(self) -> Fraction:
        """Returns the rate of most videos (of equally many, the higher) and notes the videos of another."""
        counts = collections.Counter(table.fps for table in self._tables.values())
        rate = max(counts, key=lambda fps: (counts[fps], fps))
        for index, table in self._tables.items():
            if table.fps != rate:
                self._broken.note(
                    index,
                    f"{self._clips[index].name} runs at {float(table.fps):g} frames per second, "
                    f"most of the dataset at {float(rate):g}",
                )
        return rate
