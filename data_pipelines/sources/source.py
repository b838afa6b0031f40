"""``EpisodeSource``: what the index, the windows and the normalisation need from a dataset, whatever its format.

Owns the contract and the description of one episode. Does not own any file format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """One episode as its dataset declares it.

    Attributes:
      index: Episode index of the dataset (not its position in a list).
      length: Steps; a step has one frame of every camera, one state and one action.
      task: What the robot was told, in words.
    """

    index: int
    length: int
    task: str


class EpisodeSource(Protocol):
    """A dataset of episodes at random access. Reading is safe from several threads."""

    @property
    def path(self) -> Path:
        """Folder or file the dataset lies in, for messages."""
        ...

    @property
    def fps(self) -> float:
        """Steps per second."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """All task strings in the dataset's own order."""
        ...

    @property
    def episodes(self) -> Sequence[EpisodeRecord]:
        """All declared episodes by ascending index, broken ones too."""
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
