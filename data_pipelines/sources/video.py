"""Frames of a video file by number: a table of its packets, and decoding from the nearest keyframe.

Owns frame numbering (``round(pts * time_base * fps)``, integers throughout, so that float timestamps of long files
cannot drift onto a neighbour), seeking and decoding with PyAV. Knows nothing of datasets or episodes.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from data_pipelines.sources.part_file import PartFile
from data_pipelines.sources.remote import RemotePath, read_at
from data_pipelines.sources.retry import retry_read

# Containers one thread keeps open; beyond it the least recently used is closed.
MAX_OPEN_CONTAINERS = 8


class VideoError(Exception):
    """A video file that cannot be opened, scanned or decoded; the dataset reader adds which episode it was for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchiveMember:
    """Where a video lies inside an uncompressed archive.

    Attributes:
      name: Of the member.
      offset: Of its first byte in the archive.
      size: In bytes.
    """

    name: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTable:
    """What a file holds, from its packets alone (nothing decoded).

    Attributes:
      path: The file, or the archive it lies in.
      member: Where in the archive, or None for a file of its own.
      fps: Frames per second the numbering rests on.
      height: Pixels.
      width: Pixels.
      num_frames: Frames n; their numbers are exactly 0 .. n-1.
      keyframes: int64, ascending: numbers of the frames decoding can start from; the first is 0.
      keyframe_pts: int64: their presentation timestamps in the stream's time base.
      first_pts: Presentation timestamp of frame 0.
    """

    path: Path
    member: ArchiveMember | None = None
    fps: Fraction
    height: int
    width: int
    num_frames: int
    keyframes: npt.NDArray[np.int64]
    keyframe_pts: npt.NDArray[np.int64]
    first_pts: int = 0

    @property
    def name(self) -> str:
        """The file for a message: its path, with the member's name behind a colon."""
        return _name(self.path, self.member)


def scan_video(path: Path, fps: float | None, member: ArchiveMember | None = None) -> VideoTable:
    """Reads all packets of a video without decoding.

    Args:
      path: Video file, or the archive it lies in.
      fps: Frames per second the dataset declares, counted from time 0; None for a file that stands alone: the average
        rate it declares itself, counted from its first frame.
      member: Where in the archive.

    Raises:
      VideoError: The file cannot be opened, has no video, has damaged packets, or its frames do not lie one by one
        at multiples of 1/fps.
    """
    name = _name(path, member)
    try:
        packets, time_base, own_rate, (height, width) = retry_read(lambda: _read_packets(path, member), name)
    except (FFmpegError, OSError) as error:
        raise VideoError(f"{name} cannot be read: {_reason(error)}") from error
    if not packets or time_base is None:
        raise VideoError(f"{name} holds no frames")
    damaged = sum(pts is None or corrupt for pts, _, corrupt in packets)
    if damaged:
        raise VideoError(f"{name} has {damaged} damaged of {len(packets)} packets")
    pts = np.array([p for p, _, _ in packets], np.int64)
    order = np.argsort(pts, kind="stable")
    pts, is_key = pts[order], np.array([k for _, k, _ in packets], np.bool_)[order]
    declared = own_rate if fps is None else fps
    if not declared:
        raise VideoError(f"{name} declares no frame rate")
    rate = Fraction(declared).limit_denominator(100_000)
    first_pts = int(pts[0]) if fps is None else 0
    numbers = frame_numbers(pts - first_pts, time_base, rate)
    if not np.array_equal(numbers, np.arange(len(numbers))):
        first = int(np.flatnonzero(numbers != np.arange(len(numbers)))[0])
        raise VideoError(
            f"{name}: frame {first} lies at {float((pts[first] - first_pts) * time_base):.4f} s, "
            f"not at {first}/{float(rate):g} s"
        )
    if not is_key[0]:
        raise VideoError(f"{name} does not begin with a keyframe")
    return VideoTable(
        path=path,
        member=member,
        fps=rate,
        height=height,
        width=width,
        num_frames=len(numbers),
        keyframes=np.flatnonzero(is_key).astype(np.int64),
        keyframe_pts=pts[is_key],
        first_pts=first_pts,
    )


def _read_packets(
    path: Path, member: ArchiveMember | None
) -> tuple[list[tuple[Any, bool, bool]], Fraction | None, Fraction | None, tuple[int, int]]:
    """Returns (timestamp, is keyframe, is damaged) of every packet, time base, declared rate, height and width."""
    name = _name(path, member)
    with _open_container(path, member) as container:
        if not container.streams.video:
            raise VideoError(f"{name} has no video stream")
        stream = container.streams.video[0]
        if getattr(stream, "codec_context", None) is None:  # what a cut-off header leaves of a stream
            raise VideoError(f"{name} has a video stream of no known codec: its header is damaged")
        packets = [
            (packet.pts, packet.is_keyframe, packet.is_corrupt)
            for packet in container.demux(stream)
            if packet.size  # the last packet of a demuxer is an empty flush
        ]
        return packets, stream.time_base, stream.average_rate, (stream.height, stream.width)


def frame_numbers(pts: npt.NDArray[np.int64], time_base: Fraction, fps: Fraction) -> npt.NDArray[np.int64]:
    """Returns ``round(pts * time_base * fps)`` in integer arithmetic (exact for any length of file)."""
    return _round_frames(pts, time_base * fps)


def _round_frames(pts: Any, scale: Fraction) -> Any:
    """Returns ``round(pts * scale)`` of an integer or an array of them, halves upwards."""
    return (2 * pts * scale.numerator + scale.denominator) // (2 * scale.denominator)


class VideoDecoder:
    """Decodes frames by number. Each thread has containers of its own, opened when first needed."""

    def __init__(self) -> None:
        self._local = threading.local()

    def decode(
        self, table: VideoTable, numbers: npt.NDArray[np.int64], out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Returns frames ``[len(numbers), h, w, 3]`` in RGB.

        Decoding starts at the last keyframe at or before a wanted frame and skips ahead to a later keyframe when one
        lies before the next wanted frame; only wanted frames are converted to RGB.

        Args:
          table: From ``scan_video``.
          numbers: Ascending, distinct, within ``0 .. num_frames - 1``.
          out: Where the frames are written, of their shape; None for an array of their own.

        Raises:
          VideoError: The file cannot be opened or decoded, or lacks a frame.
        """
        assert len(numbers) == 0 or (numbers[0] >= 0 and numbers[-1] < table.num_frames), (table.path, numbers)
        assert np.all(np.diff(numbers) > 0), numbers
        if out is None:
            out = np.empty((len(numbers), table.height, table.width, 3), np.uint8)
        assert out.shape == (len(numbers), table.height, table.width, 3), (table.path, out.shape)
        try:
            retry_read(lambda: self._decode_all(table, numbers, out), table.name)
        except (FFmpegError, OSError) as error:
            raise VideoError(f"{table.name} cannot be decoded: {_reason(error)}") from error
        return out

    def _decode_all(self, table: VideoTable, numbers: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        """Fills ``out``; a container that failed is not used again."""
        try:
            opened, row = self._open(table), 0
            while row < len(numbers):
                row = self._decode_run(opened, table, numbers, row, out)
        except OSError:
            self._local.containers.pop((table.path, table.member), None)
            raise

    def _decode_run(
        self,
        opened: _OpenVideo,
        table: VideoTable,
        numbers: npt.NDArray[np.int64],
        row: int,
        out: npt.NDArray[np.uint8],
    ) -> int:
        """Decodes from the keyframe of ``numbers[row]`` until a seek is cheaper; returns the next row to decode."""
        key = int(np.searchsorted(table.keyframes, numbers[row], side="right")) - 1
        for number, frame in _frames_from(opened, table, key):
            if number < numbers[row]:
                continue
            if number > numbers[row]:
                raise VideoError(f"{table.name}: frame {numbers[row]} is missing, decoding gave {number} instead")
            rgb = opened.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            if rgb.shape != out.shape[1:]:
                raise VideoError(f"{table.name}: frame {number} is {rgb.shape}, the file began with {out.shape[1:]}")
            out[row] = rgb
            row += 1
            if row == len(numbers):
                return row
            next_key = int(np.searchsorted(table.keyframes, numbers[row], side="right")) - 1
            if table.keyframes[next_key] > number + 1:
                return row
        raise VideoError(f"{table.name} ends before frame {numbers[row]} of {table.num_frames}")

    def _open(self, table: VideoTable) -> _OpenVideo:
        """Returns this thread's container of the table's video."""
        containers: collections.OrderedDict[tuple[Path, ArchiveMember | None], _OpenVideo] | None = getattr(
            self._local, "containers", None
        )
        if containers is None:
            containers = self._local.containers = collections.OrderedDict()
        key = (table.path, table.member)
        if key in containers:
            containers.move_to_end(key)
            return containers[key]
        container = _open_container(*key)
        stream = container.streams.video[0]
        # Parallelism comes from reading several windows at once. Threads inside FFmpeg only add hand-overs: decoding in
        # slices, and colour conversion on all cores (its default since PyAV 17, 2.5 times the CPU time at 96x96).
        stream.codec_context.thread_count = 1
        containers[key] = _OpenVideo(container, stream, VideoReformatter())
        if len(containers) > MAX_OPEN_CONTAINERS:
            containers.popitem(last=False)[1].container.close()
        return containers[key]


@dataclasses.dataclass(frozen=True)
class _OpenVideo:
    """A container of one thread, its video stream, and the colour converter (which keeps its tables)."""

    container: Any
    stream: Any
    reformatter: VideoReformatter


def _frames_from(opened: _OpenVideo, table: VideoTable, key: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields ``(number, frame)`` from keyframe ``key`` on."""
    opened.container.seek(int(table.keyframe_pts[key]), stream=opened.stream, backward=True)
    scale = opened.stream.time_base * table.fps  # once: fractions cost more than a small frame's conversion
    for frame in opened.container.decode(opened.stream):
        if frame.pts is None:
            raise VideoError(f"{table.name}: a frame has no timestamp")
        yield _round_frames(frame.pts - table.first_pts, scale), frame


def _reason(error: Exception) -> str:
    """The operating system's or FFmpeg's words for what went wrong, without paths and numbers."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _open_member(path: Path, member: ArchiveMember) -> PartFile:
    """Opens a member of an archive by ``pread``."""
    if isinstance(path, RemotePath):
        return PartFile(lambda offset, size: read_at(path, offset, size), begin=member.offset, size=member.size)
    descriptor = os.open(path, os.O_RDONLY)
    return PartFile(
        lambda offset, size: os.pread(descriptor, size, offset),
        begin=member.offset,
        size=member.size,
        close=lambda: os.close(descriptor),
    )


def _open_container(path: Path, member: ArchiveMember | None) -> Any:
    return av.open(os.fspath(path)) if member is None else av.open(_open_member(path, member))


def _name(path: Path, member: ArchiveMember | None) -> str:
    return str(path) if member is None else f"{path}:{member.name}"
