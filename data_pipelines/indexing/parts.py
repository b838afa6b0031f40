"""One part of an index in the making: what was found in some episodes, in a folder of its own, whole or not at all.

Owns the folder of a part and its files. Parts are made in any order by any process; ``job`` puts them together.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.indexing.arrays import KEYFRAMES, PLACES, VIDEOS, column_name, map_array, pack_videos, write_array
from data_pipelines.sources.formats import open_source
from data_pipelines.sources.source import EpisodeRecord, Source, VideoSource
from data_pipelines.sources.video import VideoTable
from data_pipelines.survey import Survey, survey_episodes
from wamjax.config.schema import DataConfig
from wamjax.errors import DataError

_FINDINGS = "findings.json"
_IDLE = "idle"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartOrder:
    """What a process needs to know to make a part.

    Attributes:
      folder: Folder of the part; it exists when the part is whole.
      path: The dataset.
      config: Keys and filters.
      cameras: Cameras looked at.
      columns: Numeric features looked at.
      episodes: Positions of its episodes in the dataset's list.
    """

    folder: Path
    path: Path
    config: DataConfig
    cameras: tuple[str, ...]
    columns: tuple[str, ...]
    episodes: range


def make_part(order: PartOrder) -> int:
    """Opens the part's files alone, looks through its episodes, writes the part; returns how many episodes it has."""
    source = open_source(order.path, cameras=order.cameras, columns=order.columns, num_threads=1, part=order.episodes)
    write_part(order, source)
    return len(order.episodes)


def write_part(order: PartOrder, source: Source) -> None:
    """Looks through the part's episodes of an opened dataset and writes the part under its name in one step."""
    records = [source.episodes[position] for position in order.episodes]
    survey = survey_episodes(source, order.config, records)
    order.folder.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{order.folder.name}.", dir=order.folder.parent))
    try:
        _write(half, order, source, survey)
        os.replace(half, order.folder)
    except OSError as error:
        raise DataError(f"part {order.folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _write(folder: Path, order: PartOrder, source: Source, survey: Survey) -> None:
    wanted = survey.wanted
    for position, key in enumerate(order.columns):
        values = [source.column(key, record.index) for record in wanted]
        write_array(folder, column_name(position), np.concatenate(values) if values else np.zeros((0, 0), np.float32))
    idle = [survey.idle[record.index] for record in wanted if record.index in survey.idle]
    write_array(folder, _IDLE, np.concatenate([np.zeros(0, np.bool_), *idle]))
    tables, places = _find_videos(source, order.cameras, wanted)
    videos, keyframes = pack_videos(tables, order.path)
    write_array(folder, VIDEOS, videos)
    write_array(folder, KEYFRAMES, keyframes)
    write_array(folder, PLACES, places)
    findings = {
        "records": [(record.index, record.length, record.task) for record in survey.records],
        "broken": survey.broken,
        "unwanted": survey.unwanted,
    }
    (folder / _FINDINGS).write_text(json.dumps(findings), encoding="utf-8")


def _find_videos(
    source: Source, cameras: tuple[str, ...], wanted: list[EpisodeRecord]
) -> tuple[list[VideoTable], npt.NDArray[np.int64]]:
    """Returns the videos of the episodes, each once, and the ``PLACES`` of the episodes in them."""
    places = np.full((len(wanted), len(cameras), 2), -1, np.int64)
    if not isinstance(source, VideoSource):
        return [], places
    rows: dict[tuple[Any, Any], int] = {}
    tables = []
    for position, record in enumerate(wanted):
        for side, camera in enumerate(cameras):
            found = source.find_video(camera, record.index)
            if found is None:
                continue
            table, first = found
            row = rows.setdefault((table.path, table.member), len(tables))
            if row == len(tables):
                tables.append(table)
            places[position, side] = row, first
    return tables, places


class Part:
    """A part that is whole, opened to be put together with the others.

    Attributes:
      survey: What was found.
      videos: See ``arrays.VIDEOS``.
      keyframes: See ``arrays.KEYFRAMES``.
      places: See ``arrays.PLACES``, rows counted within the part.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the part.

        Raises:
          DataError: A file of it is missing or damaged.
        """
        self._folder = folder
        try:
            findings = json.loads((folder / _FINDINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"part {folder} cannot be read: {error}; delete it and start again") from error
        self.survey = Survey(
            records=tuple(EpisodeRecord(index=i, length=n, task=t) for i, n, t in findings["records"]),
            broken={int(index): reason for index, reason in findings["broken"].items()},
            unwanted={int(index): reason for index, reason in findings["unwanted"].items()},
            idle={},
        )
        idle = map_array(folder, _IDLE)
        if len(idle):
            ends = np.cumsum([record.length for record in self.survey.wanted])
            parts = np.split(np.asarray(idle), ends[:-1])
            self.survey.idle.update({r.index: part for r, part in zip(self.survey.wanted, parts, strict=True)})
        self.videos, self.keyframes = map_array(folder, VIDEOS), map_array(folder, KEYFRAMES)
        self.places = map_array(folder, PLACES)

    def column(self, position: int) -> npt.NDArray[np.float32]:
        """Returns a column of all wanted episodes, ``[steps, dims]``."""
        return map_array(self._folder, column_name(position))


def remove_halves(folder: Path) -> None:
    """Removes what processes left that were killed while they wrote a part of ``folder``."""
    for half in folder.glob(".*"):
        shutil.rmtree(half)
