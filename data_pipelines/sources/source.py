"""``Source``: what the index, the windows, the normalisation and the inspection need of a dataset of any format.

Owns the contract, the description of one episode and of one feature, and the notes on what cannot be read. Does not
own any file format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from absl import logging

from data_pipelines.sources.video import VideoTable
from wamjax.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """One episode as its dataset declares it.

    Attributes:
      index: Episode index of the dataset (not its position in a list).
      length: Steps; a step has one frame of every camera, one state and one action. 0 where a file cannot even tell.
      task: What the robot was told, or what the video shows, in words; empty where nothing says.
    """

    index: int
    length: int
    task: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """What one step has of a feature.

    Attributes:
      dtype: Name of the stored type: ``video`` and ``image`` are cameras, the others NumPy's names.
      shape: Of one step's value.
    """

    dtype: str
    shape: tuple[int, ...]


class Source(Protocol):
    """A dataset of episodes at random access. Reading is safe from several threads."""

    @property
    def path(self) -> Path:
        """Folder or file the dataset lies in, for messages."""
        ...

    @property
    def format(self) -> str:
        """Name of the format and its version, as people write it."""
        ...

    @property
    def fps(self) -> float | None:
        """Steps per second; None where neither the format nor we know it."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """All cameras of the dataset, asked for or not."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The numeric features that ``column`` reads; empty for video without actions."""
        ...

    @property
    def features(self) -> Mapping[str, Feature]:
        """All features the dataset declares, by name."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """All task strings in the dataset's own order."""
        ...

    @property
    def episodes(self) -> Sequence[EpisodeRecord]:
        """All declared episodes by ascending index, broken ones too."""
        ...

    @property
    def keeps_frames(self) -> bool:
        """Whether decoded frames are kept in memory."""
        ...

    def find_broken(self) -> dict[int, str]:
        """Returns, for each episode index that cannot be read whole, the reason in one line naming the file."""
        ...

    def column(self, key: str, episode: int) -> npt.NDArray[np.float32]:
        """Returns feature ``key`` of every step of an episode, ``[length, dims]``."""
        ...

    def frames(self, camera: str, episode: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Returns the camera's frames ``[len(steps), h, w, 3]`` at ascending, distinct ``steps`` of an episode."""
        ...

    def fingerprint(self) -> str:
        """Returns a hash that changes when the dataset's content does."""
        ...


@runtime_checkable
class VideoSource(Protocol):
    """A source whose frames lie in video files: an index can keep their tables, so that nobody scans them again."""

    def find_video(self, camera: str, episode: int) -> tuple[VideoTable, int] | None:
        """Returns the video of a sound episode's camera and the number of its first frame there.

        None where this camera's frames do not lie in a video.
        """
        ...

    def frames_into(self, camera: str, episode: int, steps: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        """Writes the frames that ``Source.frames`` would return to ``out``, whose shape is theirs."""
        ...


class Quarantine:
    """The episodes that cannot be read, each with the reasons found, in the order they were found."""

    def __init__(self) -> None:
        self._reasons: dict[int, list[str]] = {}

    def note(self, episode: int, reason: str) -> None:
        """Adds a reason, one line naming the file within the dataset."""
        self._reasons.setdefault(episode, []).append(reason)

    def first_reasons(self) -> dict[int, str]:
        """Returns the first reason of each noted episode by ascending index."""
        return {index: reasons[0] for index, reasons in sorted(self._reasons.items())}


class OpenedSource:
    """What the readers of all formats answer alike, once they have opened their dataset.

    Attributes:
      path: See ``Source``.
      features: See ``Source``; filled while opening.
      columns: See ``Source``; empty until it is chosen.
      episodes: See ``Source``; empty until they are listed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.features: dict[str, Feature] = {}
        self.columns: tuple[str, ...] = ()
        self.episodes: tuple[EpisodeRecord, ...] = ()
        self._broken = Quarantine()
        self._values: dict[int, dict[str, npt.NDArray[np.float32]]] = {}  # episode -> feature -> [length, dims]

    @property
    def cameras(self) -> tuple[str, ...]:
        """All video and image features, asked for or not."""
        return tuple(name for name, feature in self.features.items() if feature.dtype in ("video", "image"))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Instructions in the order of the episodes, each once, those without steps left out."""
        return tuple(dict.fromkeys(episode.task for episode in self.episodes if episode.length))

    @property
    def keeps_frames(self) -> bool:
        """False: nothing decoded is kept, unless a reader says otherwise."""
        return False

    def find_broken(self) -> dict[int, str]:
        """Returns the first reason for each episode that cannot be read whole."""
        return self._broken.first_reasons()

    def column(self, key: str, episode: int) -> npt.NDArray[np.float32]:
        """Returns feature ``key`` of every step of an episode, ``[length, dims]``."""
        return self._values[episode][key]


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, or the name of its type where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def check_choice(
    path: Path,
    *,
    cameras: Sequence[str] | None,
    optional_cameras: Sequence[str],
    columns: Sequence[str] | None,
    source: Source,
    vectors: Sequence[str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the cameras and columns to read, all there are for None.

    Args:
      path: The dataset, for the message.
      cameras: Cameras asked for.
      optional_cameras: Cameras that are read where there are; those there are not are named in a warning.
      columns: Numeric features asked for.
      source: Has ``cameras`` and ``features`` already.
      vectors: Floating-point features that None reads.

    Raises:
      DataError: The dataset has no such camera, none of the optional ones either, or no such numeric feature.
    """
    present = [camera for camera in optional_cameras if camera in source.cameras]
    missing = [camera for camera in optional_cameras if camera not in source.cameras]
    if missing and not cameras and not present:
        there = ", ".join(source.cameras) or "none"
        raise DataError(f"dataset {path} has no camera of {', '.join(missing)} (config.data.views); it has {there}")
    if missing:
        logging.warning("dataset %s has no camera %s: black and masked in every window", path, ", ".join(missing))
    for camera in cameras or ():
        if camera not in source.cameras:
            there = ", ".join(source.cameras) or "none"
            raise DataError(f"dataset {path} has no camera {camera!r} (config.data.views); it has {there}")
    for key in columns or ():
        if key not in source.features or source.features[key].dtype in ("video", "image", "string"):
            raise DataError(
                f"dataset {path} has no numeric feature {key!r} (config.data.state_key, config.data.action_key or "
                f"config.data.embodiment); it has {', '.join(vectors) or 'none'}"
            )
    return (
        source.cameras if cameras is None else (*cameras, *present),
        tuple(vectors) if columns is None else tuple(columns),
    )
