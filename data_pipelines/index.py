"""Which episodes and windows a run reads: checks, quarantine, train/validation split, window starts.

Owns every decision about what is left out, each with its reason, all of it before the stream starts: the stream
itself never skips. Reads low-dimensional columns only, decodes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from absl import logging

from data_pipelines.sources.source import EpisodeRecord, Source
from data_pipelines.vectors import vector_keys
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import DataConfig, RunConfig
from wamjax.errors import DataError

# Reasons quoted in a message; all of them are in the summary of run.json.
QUOTED_REASONS = 3


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
      records: Usable episodes by episode index.
      train_episodes: Episode indices of the training split, ascending.
      validation_episodes: Episode indices held out, ascending.
      train: Training windows.
      validation: Validation windows.
      quarantined: Reason by episode index for episodes that are broken.
      too_short: Usable episodes without room for one block, by length; they have no windows.
    """

    records: dict[int, EpisodeRecord]
    train_episodes: tuple[int, ...]
    validation_episodes: tuple[int, ...]
    train: WindowTable
    validation: WindowTable
    quarantined: dict[int, str]
    too_short: dict[int, int]


def build_index(source: Source, config: RunConfig) -> EpisodeIndex:
    """Checks every episode, splits by episode and lists the windows.

    Raises:
      DataError: More than ``data.broken_budget`` of the episodes are broken, or no training window is left.
    """
    quarantined = _find_quarantined(source, config.data)
    records = {record.index: record for record in source.episodes if record.index not in quarantined}
    train, validation = split_episodes(list(records.values()), config.data)
    steps = derive_geometry(config).steps_per_block
    too_short = {index: record.length for index, record in records.items() if record.length <= steps}
    for index, length in too_short.items():
        logging.warning(
            "dataset %s: episode %d has %d steps, no room for a block of %d", source.path, index, length, steps
        )
    windows = list_windows([records[index] for index in train], config)
    if not len(windows):
        raise DataError(
            f"dataset {source.path} has no training window: {len(records)} usable episodes, {len(too_short)} of them "
            f"not longer than the {steps} steps of a block (config.layout.frames_per_block x config.data.frame_stride)"
        )
    return EpisodeIndex(
        records=records,
        train_episodes=train,
        validation_episodes=validation,
        train=windows,
        validation=list_windows([records[index] for index in validation], config),
        quarantined=quarantined,
        too_short=too_short,
    )


def list_windows(episodes: Sequence[EpisodeRecord], config: RunConfig) -> WindowTable:
    """Returns all windows of ``episodes``: every ``window_stride``-th start that leaves one full block.

    The last frame of a window's first block lies ``steps_per_block`` steps after its start and must be real; what
    lies beyond the episode's end is masked.
    """
    steps, stride = derive_geometry(config).steps_per_block, config.data.window_stride
    starts = [np.arange(0, max(0, record.length - steps), stride, dtype=np.int32) for record in episodes]
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


def _split_rank(seed: int, task: str, episode: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{task}\0{episode}".encode()).digest()


def _find_quarantined(source: Source, config: DataConfig) -> dict[int, str]:
    """Returns the reason for each broken episode, or raises where they exceed the budget."""
    reasons, keys = source.find_broken(), vector_keys(config)
    for record in source.episodes:
        for key in keys:
            if record.index in reasons:
                break
            bad = np.argwhere(~np.isfinite(source.column(key, record.index)))
            if len(bad):
                step, dim = bad[0]
                reasons[record.index] = f"{key} is not finite at step {step}, dim {dim} ({len(bad)} such values)"
    total = len(source.episodes)
    if len(reasons) > config.broken_budget * total:
        raise DataError(
            f"dataset {source.path}: {len(reasons)} of {total} episodes are broken, more than "
            f"config.data.broken_budget={config.broken_budget:g} allows: {_quote(reasons)}"
        )
    if reasons:
        logging.warning("dataset %s: %d of %d episodes left out: %s", source.path, len(reasons), total, _quote(reasons))
    return dict(sorted(reasons.items()))


def _quote(reasons: Mapping[int, str]) -> str:
    """Returns the first reasons on one line, each with its first episode and how many more share it."""
    episodes: dict[str, list[int]] = {}
    for index, reason in sorted(reasons.items()):
        episodes.setdefault(reason, []).append(index)
    quoted = [
        f"episode {indices[0]}{f' and {len(indices) - 1} more' if len(indices) > 1 else ''}: {reason}"
        for reason, indices in list(episodes.items())[:QUOTED_REASONS]
    ]
    rest = len(episodes) - len(quoted)
    return "; ".join(quoted) + (f"; and {rest} more reasons" if rest > 0 else "")
