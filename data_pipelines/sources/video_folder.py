"""Folder trees of video files with captions beside them: human video as it is downloaded.

Owns where videos and captions are looked for. A caption is, in this order: the text or JSON file of the video's name,
or the row of a CSV table in the top folder that names the video by its path within the dataset, its file name, or its
name without suffix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.sources.captions import CAPTION_SUFFIXES, CaptionError, parse_caption, read_caption_tables
from data_pipelines.sources.clips import VIDEO_SUFFIXES, Clip, ClipSource


def open_video_folder(path: Path, **options: Any) -> ClipSource:
    """Opens a folder tree of videos; ``options`` as ``ClipSource``.

    Raises:
      DataError: As ``ClipSource``, or a caption table cannot be read.
    """
    tables = read_caption_tables(path)
    clips = [_find_clip(path, file, tables) for file in find_videos(path)]
    return ClipSource(path, clips, format_name="video folder", **options)


def find_videos(path: Path) -> list[Path]:
    """Returns all video files under ``path``, sorted; hidden files and folders are not looked into."""
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in VIDEO_SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def _find_clip(path: Path, file: Path, tables: dict[str, str]) -> Clip:
    """Returns a video with its caption, or with what is wrong with it."""
    name = file.relative_to(path).as_posix()
    for suffix in CAPTION_SUFFIXES:
        beside = file.with_suffix(suffix)
        if beside.is_file():
            try:
                return Clip(name=name, path=file, caption=parse_caption(beside.read_bytes(), suffix))
            except (CaptionError, OSError) as error:
                problem = f"its caption {beside.relative_to(path).as_posix()} cannot be read: {error}"
                return Clip(name=name, path=file, problem=problem)
    caption = next((tables[key] for key in (name, file.name, file.stem) if key in tables), "")
    return Clip(name=name, path=file, caption=caption)
