"""The arrays of an index: NumPy files, mapped into memory, so that a host holds what it touches and no more.

Owns their names, dtypes and the form in which video tables are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.sources.video import ArchiveMember, VideoTable
from wamjax.errors import DataError

EPISODES = "episodes"  # one row per episode that is read, by ascending index
PLACES = "places"  # int64 [episodes, cameras, 2]: row of the video table, first frame there; -1 where there is no video
VIDEOS = "videos"  # one row per video file
KEYFRAMES = "keyframes"  # int64 [keyframes, 2]: frame number, presentation timestamp
EPISODE_DTYPE = np.dtype([("index", "<i4"), ("length", "<i4"), ("task", "<i4"), ("offset", "<i8")])
_VIDEO_NUMBERS = (
    *("rate_numerator", "rate_denominator", "height", "width", "num_frames", "first_pts"),
    *("first_keyframe", "num_keyframes", "member_offset", "member_size"),
)


def column_name(position: int) -> str:
    """Returns the name of the array of the manifest's ``position``-th column."""
    return f"column-{position}"


def windows_name(split: str) -> str:
    """Returns the name of the windows of a split: int32 ``[windows, 2]``, episode index and first step."""
    return f"windows-{split}"


def split_name(split: str) -> str:
    """Returns the name of the episode indices of a split: int32 ``[episodes]``."""
    return f"episodes-{split}"


def write_array(folder: Path, name: str, values: npt.NDArray[Any]) -> None:
    """Writes an array."""
    np.save(folder / f"{name}.npy", values)


def create_array(folder: Path, name: str, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Returns a new array that is written to disk as it is filled."""
    path = folder / f"{name}.npy"
    if 0 in shape:  # nothing to map
        np.save(path, np.zeros(shape, dtype))
        return np.zeros(shape, dtype)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def map_array(folder: Path, name: str) -> npt.NDArray[Any]:
    """Returns an array mapped into memory, to read.

    Raises:
      DataError: It is missing or cut short.
    """
    path = folder / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"index file {path} cannot be read: {error}; make the index again") from error


def pack_videos(tables: Iterable[VideoTable], root: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Returns the rows of video tables (files named within ``root``) and their keyframes one after the other."""
    keyframes: list[npt.NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
    rows, position = [], 0
    for table in tables:
        member = table.member or ArchiveMember(name="", offset=-1, size=-1)
        rows.append(
            (
                table.path.relative_to(root).as_posix().encode(),
                member.name.encode(),
                *(table.fps.numerator, table.fps.denominator, table.height, table.width, table.num_frames),
                *(table.first_pts, position, len(table.keyframes), member.offset, member.size),
            )
        )
        keyframes.append(np.stack([table.keyframes, table.keyframe_pts], axis=1))
        position += len(table.keyframes)
    return video_rows(rows), np.concatenate(keyframes)


def video_rows(rows: Sequence[tuple[Any, ...]]) -> npt.NDArray[Any]:
    """Returns rows (file, member, numbers) as a structured array whose texts have the width of the longest."""
    widths = [max((len(row[i]) for row in rows), default=1) or 1 for i in (0, 1)]
    dtype = [("file", f"S{widths[0]}"), ("member", f"S{widths[1]}"), *((name, "<i8") for name in _VIDEO_NUMBERS)]
    return np.array(list(rows), np.dtype(dtype))


def unpack_video(row: Any, keyframes: npt.NDArray[np.int64], root: Path) -> VideoTable:
    """Returns the table of one row of ``pack_videos``."""
    first, count = int(row["first_keyframe"]), int(row["num_keyframes"])
    member = None
    if row["member_offset"] >= 0:
        name, offset, size = row["member"].decode(), int(row["member_offset"]), int(row["member_size"])
        member = ArchiveMember(name=name, offset=offset, size=size)
    return VideoTable(
        path=root / row["file"].decode(),
        member=member,
        fps=Fraction(int(row["rate_numerator"]), int(row["rate_denominator"])),
        height=int(row["height"]),
        width=int(row["width"]),
        num_frames=int(row["num_frames"]),
        keyframes=np.ascontiguousarray(keyframes[first : first + count, 0]),
        keyframe_pts=np.ascontiguousarray(keyframes[first : first + count, 1]),
        first_pts=int(row["first_pts"]),
    )
