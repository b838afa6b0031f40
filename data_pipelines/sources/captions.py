"""Captions beside videos: a text or JSON file of the same name, or a CSV table for a whole folder.

Owns the names under which a caption is looked for.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from data_pipelines.sources.source import first_line
from wamjax.errors import DataError

# Keys of a JSON object and columns of a CSV that hold a caption, and columns that name the video, by preference.
CAPTION_KEYS = ("caption", "text", "prompt", "description", "instruction")
VIDEO_KEYS = ("video", "file", "path", "filename", "video_path", "name")
CAPTION_SUFFIXES = (".txt", ".json")


class CaptionError(Exception):
    """A caption file that cannot be read; the reader adds which video it was for."""


def parse_caption(content: bytes, suffix: str) -> str:
    """Returns the caption in the content of a ``.txt`` or ``.json`` file.

    Raises:
      CaptionError: It is no UTF-8, no JSON, or has none of ``CAPTION_KEYS``.
    """
    try:
        text = content.decode("utf-8")
        entry = json.loads(text) if suffix == ".json" else text
    except ValueError as error:
        raise CaptionError(first_line(error)) from error
    if isinstance(entry, dict):
        entry = next((entry[key] for key in CAPTION_KEYS if key in entry), None)
    if not isinstance(entry, str):
        raise CaptionError(f"holds no caption under any of the keys {', '.join(CAPTION_KEYS)}")
    return " ".join(entry.split())


def read_caption_tables(path: Path) -> dict[str, str]:
    """Returns the captions of all CSV files directly in ``path``, by the video's name as the table gives it.

    Raises:
      DataError: A table cannot be read, lacks a column for the video or for the caption, or two rows disagree.
    """
    captions: dict[str, str] = {}
    for file in sorted(path.glob("*.csv")):
        try:
            with file.open(newline="", encoding="utf-8-sig") as stream:
                rows = csv.DictReader(stream)
                columns = rows.fieldnames or ()
                video = next((key for key in VIDEO_KEYS if key in columns), None)
                caption = next((key for key in CAPTION_KEYS if key in columns), None)
                if video is None or caption is None:
                    raise DataError(
                        f"dataset {path}: {file.name} has columns {', '.join(columns) or 'none'}: expected one of "
                        f"{', '.join(VIDEO_KEYS)} and one of {', '.join(CAPTION_KEYS)}"
                    )
                for row in rows:
                    text = " ".join((row[caption] or "").split())
                    if captions.setdefault(row[video], text) != text:
                        raise DataError(f"dataset {path}: {file.name} has two captions for {row[video]!r}")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"dataset {path}: {file.name} cannot be read: {first_line(error)}") from error
    return captions
