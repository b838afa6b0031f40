"""Frames of many videos, decoded when asked for, or decoded once and kept where all of them fit into memory.

Owns the decision to keep decoded frames and their memory. Decoding itself is ``sources.video``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from data_pipelines.sources.video import VideoDecoder, VideoTable


class FrameReader:
    """Reads frames of the given videos.

    Training meets every frame in random order and many times. Where the decoded frames of *all* videos fit into
    ``keep_bytes``, each group of pictures is decoded once, when first touched, and kept; otherwise nothing is kept,
    because a cache smaller than its randomly read content mostly misses, and only wanted frames are converted.
    """

    def __init__(self, tables: Iterable[VideoTable], *, keep_bytes: int) -> None:
        """Declares the videos; decodes nothing yet.

        Args:
          tables: The videos that will be read.
          keep_bytes: Largest size of all decoded frames together at which they are kept; 0 never keeps any.
        """
        self._decoder = VideoDecoder()
        tables = list(tables)
        self.decoded_bytes = sum(table.num_frames * table.height * table.width * 3 for table in tables)
        self.keeps_frames = 0 < self.decoded_bytes <= keep_bytes
        self._kept = {(table.path, table.member): _KeptVideo(table) for table in tables} if self.keeps_frames else {}

    def read(
        self, table: VideoTable, numbers: npt.NDArray[np.int64], out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Returns frames ``[len(numbers), h, w, 3]`` of ascending, distinct ``numbers``, written to ``out`` if given.

        Raises:
          VideoError: As ``VideoDecoder.decode``.
        """
        if not self.keeps_frames:
            return self._decoder.decode(table, numbers, out)
        frames = self._kept[table.path, table.member].read(numbers, self._decoder)
        if out is None:
            return frames
        out[:] = frames
        return out


class _KeptVideo:
    """The decoded frames of one file, filled group by group."""

    def __init__(self, table: VideoTable) -> None:
        self._table = table
        self._lock = threading.Lock()
        self._filled = np.zeros(len(table.keyframes), np.bool_)
        # Pages are only backed by memory once written, so this costs nothing until frames arrive.
        self._frames = np.empty((table.num_frames, table.height, table.width, 3), np.uint8)

    def read(self, numbers: npt.NDArray[np.int64], decoder: VideoDecoder) -> npt.NDArray[np.uint8]:
        keyframes = self._table.keyframes
        groups = np.unique(np.searchsorted(keyframes, numbers, side="right") - 1)
        if not self._filled[groups].all():
            with self._lock:  # one thread decodes a file at a time; the others find the group filled
                missing = groups[~self._filled[groups]]
                if len(missing):
                    ends = np.append(keyframes[1:], self._table.num_frames)
                    wanted = np.concatenate([np.arange(int(keyframes[g]), int(ends[g])) for g in missing])
                    self._frames[wanted] = decoder.decode(self._table, wanted)
                    self._filled[missing] = True
        return self._frames[numbers]
