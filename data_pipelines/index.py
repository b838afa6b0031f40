"""Which episodes and windows a run reads: checks, quarantine, train/validation split, window starts.

Owns every decision about what is left out, each with its reason, all of it before the stream starts: the stream
itself never skips. Reads low-dimensional columns only, decodes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from absl import logging

from data_pipelines.filters import is_moving
from data_pipelines.sources.source import EpisodeRecord, Source
from data_pipelines.survey import Survey, quote_reasons, survey_episodes
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import DataConfig, RunConfig
from wamjax.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowTable:
    """Windows of one split, ordered by episode and start.

    Attributes:
      episodes: int32 ``[windows]``: episode index of the dataset.
      starts: int32 ``[windows]``: dataset step of the window's first frame.
    """

    episodes: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.starts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeIndex:
    """What of a dataset a run reads.

    Attributes:
      records: Episodes that are read, by episode index.
      train_episodes: Episode indices of the training split, ascending.
      validation_episodes: Episode indices held out, ascending.
      train: Training windows.
      validation: Validation windows.
      quarantined: Reason by episode index for episodes that are broken.
      unwanted: Reason by episode index for sound episodes that ``config.data.filters`` leave out.
      too_short: Usable episodes without room for one block, by length; they have no windows.
      idle_windows: Windows of both splits that are left out because too many of their steps are idle.
      task_episodes: Of each task that is read, its ``train_episodes`` and ``validation_episodes``, counted.
      steps: Of all episodes that are read.
    """

    records: Mapping[int, EpisodeRecord]
    train_episodes: Sequence[int]
    validation_episodes: Sequence[int]
    train: WindowTable
    validation: WindowTable
    quarantined: dict[int, str]
    unwanted: dict[int, str]
    too_short: dict[int, int]
    idle_windows: int
    task_episodes: dict[str, dict[str, int]]
    steps: int


def build_index(source: Source, config: RunConfig) -> EpisodeIndex:
    """Checks every episode, splits by episode and lists the windows.

    Raises:
      ConfigError: A filter needs a feature that the dataset does not have.
      DataError: More than ``data.broken_budget`` of the episodes are broken, or no training window is left.
    """
    return assemble_index(survey_episodes(source, config.data, source.episodes), config, source.path)


def assemble_index(survey: Survey, config: RunConfig, path: Path) -> EpisodeIndex:
    """Returns the index that follows from what was found in the dataset at ``path``. Errors as ``build_index``."""
    _check_budget(survey, config.data, path)
    records = {record.index: record for record in survey.wanted}
    train, validation = split_episodes(list(records.values()), config.data)
    steps = derive_geometry(config).steps_per_block
    too_short = {index: record.length for index, record in records.items() if record.length <= steps}
    if too_short:
        logging.warning(
            "dataset %s: %d episodes have no room for a block of %d steps, first episode %d of %d",
            *(path, len(too_short), steps, *next(iter(too_short.items()))),
        )
    splits = {"train": [records[i] for i in train], "validation": [records[i] for i in validation]}
    windows = {name: list_windows(episodes, config, survey.idle) for name, episodes in splits.items()}
    listed = sum(len(list_windows(episodes, config)) for episodes in splits.values()) if survey.idle else None
    idle_windows = 0 if listed is None else listed - sum(map(len, windows.values()))
    if not len(windows["train"]):
        raise DataError(
            f"dataset {path} has no training window: {len(records)} usable episodes, {len(too_short)} of them "
            f"not longer than the {steps} steps of a block (config.layout.frames_per_block x config.data.frame_stride)"
            f", {len(survey.unwanted)} left out by config.data.filters"
            + f", whose max_idle leaves out {idle_windows} windows"
            * bool(idle_windows)
        )
    return EpisodeIndex(
        records=records,
        train_episodes=train,
        validation_episodes=validation,
        train=windows["train"],
        validation=windows["validation"],
        quarantined=dict(sorted(survey.broken.items())),
        unwanted=dict(sorted(survey.unwanted.items())),
        too_short=too_short,
        idle_windows=idle_windows,
        task_episodes=_count_tasks(records, {"train_episodes": train, "validation_episodes": validation}),
        steps=sum(record.length for record in records.values()),
    )


def list_windows(
    episodes: Sequence[EpisodeRecord],
    config: RunConfig,
    idle: Mapping[int, npt.NDArray[np.bool_]] | None = None,
) -> WindowTable:
    """Returns all windows of ``episodes``: every ``window_stride``-th start that leaves one full block.

    The last frame of a window's first block lies ``steps_per_block`` steps after its start and must be real; what
    lies beyond the episode's end is masked. Of an episode in ``idle``, windows with too many idle steps are left out.
    """
    geometry, stride = derive_geometry(config), config.data.window_stride
    starts = [np.arange(0, max(0, r.length - geometry.steps_per_block), stride, dtype=np.int32) for r in episodes]
    if idle:
        limits = {"window_steps": geometry.window_steps, "max_idle": config.data.filters.max_idle}
        starts = [
            part[is_moving(part, idle[r.index], **limits)] if r.index in idle else part
            for part, r in zip(starts, episodes, strict=True)
        ]
    indices = [np.full(len(part), record.index, np.int32) for part, record in zip(starts, episodes, strict=True)]
    empty = np.zeros(0, np.int32)
    return WindowTable(episodes=np.concatenate([empty, *indices]), starts=np.concatenate([empty, *starts]))


def split_episodes(records: Sequence[EpisodeRecord], config: DataConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Splits episodes into training and validation, task by task.

    Of each task, ``validation_fraction`` of its episodes (rounded, at least one, and never all of them) are held out:
    those whose hash of (seed, task, episode) is smallest. So what is held out of one task does not depend on the
    other tasks, and an episode that is added or quarantined moves at most one other.

    Returns:
      Episode indices of training and of validation, each ascending.
    """
    by_task: dict[str, list[int]] = {}
    for record in records:
        by_task.setdefault(record.task, []).append(record.index)
    held_out: set[int] = set()
    for task, indices in by_task.items():
        wanted = max(1, math.floor(config.validation_fraction * len(indices) + 0.5))
        count = min(wanted, len(indices) - 1) if config.validation_fraction > 0 else 0
        if config.validation_fraction > 0 and count == 0:
            logging.warning("task %r has one episode: it is trained on and nothing of it is held out", task)
        held_out |= set(sorted(indices, key=lambda index: _split_rank(config.split_seed, task, index))[:count])
    indices = sorted(record.index for record in records)
    return tuple(i for i in indices if i not in held_out), tuple(i for i in indices if i in held_out)


def _count_tasks(
    records: Mapping[int, EpisodeRecord], splits: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, int]]:
    """Returns how many episodes of each split every task has."""
    counts: dict[str, dict[str, int]] = {}
    for name, episodes in splits.items():
        for episode in episodes:
            of_task = counts.setdefault(records[episode].task, dict.fromkeys(splits, 0))
            of_task[name] += 1
    return counts


def _split_rank(seed: int, task: str, episode: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{task}\0{episode}".encode()).digest()


def _check_budget(survey: Survey, config: DataConfig, path: Path) -> None:
    """Raises ``DataError`` where more episodes are broken than the budget allows; tells of those left out."""
    broken, total = survey.broken, len(survey.records)
    if len(broken) > config.broken_budget * total:
        raise DataError(
            f"dataset {path}: {len(broken)} of {total} episodes are broken, more than "
            f"config.data.broken_budget={config.broken_budget:g} allows: {quote_reasons(broken)}"
        )
    if broken:
        logging.warning("dataset %s: %d of %d episodes left out: %s", path, len(broken), total, quote_reasons(broken))
    if survey.unwanted:
        quoted = quote_reasons(survey.unwanted)
        logging.info("dataset %s: %d of %d episodes filtered: %s", path, len(survey.unwanted), total, quoted)
