"""What a dataset of any format holds, what of it cannot be read, and what in it looks wrong, without a configuration.

Owns the figures; printing them is the command line's. Values are judged in their own units, before any normalisation.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.sources.source import EpisodeRecord, Source
from data_pipelines.survey import find_not_finite
from data_pipelines.vector_statistics import OUTLIER_RANGES
from wamjax.errors import DataError

QUANTILES = {"q01": 0.01, "q50": 0.5, "q99": 0.99}
# Actions that are turned against the motion they cause: their correlation with it is below this. A sound dim that the
# robot does not follow well lies around 0.
FLIPPED_CORRELATION = -0.5
# A step is idle where no value moved by more than this share of its q01 - q99 range since the step before.
IDLE_SHARE = 1e-3
# Clips decoded for the throughput estimate, of each camera, and their length in frames.
NUM_CLIPS = 8
CLIP_FRAMES = 16


def inspect_source(source: Source) -> dict[str, Any]:
    """Returns counts, features, tasks, quarantined episodes, value checks and decode speed, in JSON types.

    A few clips are decoded; an episode whose clip cannot be is quarantined too.
    """
    broken = find_unusable(source)
    usable = [episode for episode in source.episodes if episode.index not in broken]
    throughput, undecodable = measure_decoding(source, usable)
    broken = dict(sorted((broken | undecodable).items()))
    usable = [episode for episode in usable if episode.index not in broken]
    values = summarise_values(source, usable) if usable else {}
    return {
        "path": str(source.path),
        "format": source.format,
        "fingerprint": source.fingerprint(),
        "bytes": sum(file.stat().st_size for file in source.path.rglob("*") if file.is_file()),
        "episodes": len(source.episodes),
        "frames": sum(episode.length for episode in source.episodes),
        "fps": source.fps,
        "cameras": list(source.cameras),
        "features": {name: {"dtype": f.dtype, "shape": list(f.shape)} for name, f in source.features.items()},
        "tasks": _count_tasks(source, broken),
        "quarantined_count": len(broken),
        "quarantined": [{"episode": index, "reason": reason} for index, reason in broken.items()],
        "values": values,
        "outliers": _count_outliers(source, usable, values),
        "idle_frames": _count_idle(source, usable, values),
        "duplicates": _find_duplicates(source, usable),
        "flips": find_flips(source, usable),
        "throughput": throughput,
    }


def find_unusable(source: Source) -> dict[int, str]:
    """Returns the reason for each episode that training would quarantine: broken files, or values not finite."""
    reasons = dict(source.find_broken())
    for episode in source.episodes:
        reason = reasons.get(episode.index) or find_not_finite(source, episode)
        if reason:
            reasons[episode.index] = reason
    return dict(sorted(reasons.items()))


def usable_episodes(source: Source) -> list[EpisodeRecord]:
    """Returns the episodes that can be read.

    Raises:
      DataError: There are none.
    """
    broken = find_unusable(source)
    usable = [episode for episode in source.episodes if episode.index not in broken]
    if not usable:
        raise DataError(f"dataset {source.path} has no episode that can be read; see wamjax data inspect {source.path}")
    return usable


def summarise_values(source: Source, episodes: Sequence[EpisodeRecord]) -> dict[str, dict[str, list[float]]]:
    """Returns min, quantiles, max, mean and standard deviation of each numeric feature, per dim, in its own unit."""
    stats = {}
    for name in source.columns:
        values = _concatenate(source, name, episodes).astype(np.float64)
        quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
        stats[name] = {
            "min": values.min(axis=0).tolist(),
            **{label: row.tolist() for label, row in zip(QUANTILES, quantiles, strict=True)},
            "max": values.max(axis=0).tolist(),
            "mean": values.mean(axis=0).tolist(),
            "std": values.std(axis=0).tolist(),
        }
    return stats


def measure_decoding(source: Source, episodes: Sequence[EpisodeRecord]) -> tuple[dict[str, Any], dict[int, str]]:
    """Decodes clips of evenly spread episodes from every camera, one after the other on one thread.

    Returns:
      Frames, seconds and frames per second (None where nothing could be decoded), and the reason for each episode
      whose clip could not be decoded.
    """
    chosen = sorted({int(i) for i in np.linspace(0, len(episodes) - 1, min(NUM_CLIPS, len(episodes)))})
    frames, seconds, reasons = 0, 0.0, {}
    for record in (episodes[i] for i in chosen):
        first = max(0, (record.length - CLIP_FRAMES) // 2)
        steps = np.arange(first, min(record.length, first + CLIP_FRAMES), dtype=np.int64)
        for camera in source.cameras:
            start = time.perf_counter()
            try:
                frames += len(source.frames(camera, record.index, steps))
            except DataError as error:
                reason = str(error).removeprefix(f"dataset {source.path}: episode {record.index}: ")
                reasons.setdefault(record.index, reason.replace(f"{source.path}/", ""))
                continue
            seconds += time.perf_counter() - start
    rate = frames / seconds if frames else None
    return {"frames": frames, "seconds": seconds, "frames_per_s": rate, "clip_frames": CLIP_FRAMES}, reasons


def _count_tasks(source: Source, broken: dict[int, str]) -> dict[str, dict[str, int]]:
    """Returns episodes, frames, shortest, longest and quarantined by task, in the dataset's order of tasks."""
    by_task: dict[str, list[EpisodeRecord]] = {task: [] for task in source.tasks}
    for episode in source.episodes:
        by_task.setdefault(episode.task, []).append(episode)
    return {
        task: {
            "episodes": len(episodes),
            "frames": sum(episode.length for episode in episodes),
            "shortest": min((episode.length for episode in episodes), default=0),
            "longest": max((episode.length for episode in episodes), default=0),
            "quarantined": sum(episode.index in broken for episode in episodes),
        }
        for task, episodes in by_task.items()
    }


def _count_outliers(source: Source, episodes: Sequence[EpisodeRecord], values: dict[str, Any]) -> dict[str, int]:
    """Returns, for each numeric feature, the values beyond q01 or q99 by ``OUTLIER_RANGES`` times their distance."""
    counts = {}
    for name, stats in values.items():
        low, high = np.array(stats["q01"]), np.array(stats["q99"])
        margin = OUTLIER_RANGES * (high - low)
        found = _concatenate(source, name, episodes)
        is_outlier = (found < low - margin) | (found > high + margin)
        # A dim that is constant but for rare events (a success flag) has no range to judge by.
        counts[name] = int(is_outlier[:, margin > 0].sum())
    return counts


def _count_idle(source: Source, episodes: Sequence[EpisodeRecord], values: dict[str, Any]) -> int | None:
    """Returns the steps at which nothing moved, or None where the dataset has no numeric features."""
    if not values:
        return None
    idle = 0
    for episode in episodes:
        moved = np.zeros(max(0, episode.length - 1), np.bool_)
        for name, stats in values.items():
            threshold = IDLE_SHARE * (np.array(stats["q99"]) - np.array(stats["q01"]))
            moved |= (np.abs(np.diff(source.column(name, episode.index), axis=0)) > threshold).any(axis=1)
        idle += int((~moved).sum())
    return idle


def _find_duplicates(source: Source, episodes: Sequence[EpisodeRecord]) -> list[list[int]] | None:
    """Returns groups of episodes whose numeric features are bit for bit the same, or None where there are none."""
    if not source.columns:
        return None
    groups: dict[bytes, list[int]] = {}
    for episode in episodes:
        digest = hashlib.sha256()
        for name in source.columns:
            digest.update(np.ascontiguousarray(source.column(name, episode.index)).tobytes())
        groups.setdefault(digest.digest(), []).append(episode.index)
    return [group for group in groups.values() if len(group) > 1]


def find_flips(source: Source, episodes: Sequence[EpisodeRecord]) -> list[dict[str, Any]]:
    """Returns the action dims that go against the motion of the state: a sign is turned, or a gripper closes upwards.

    Dim i of an action is compared with dim i of the state of its kind (``_pair_features``): an action that commands a
    change with the state's change in the same step, one that commands a place by its own change. Of the two
    correlations the stronger counts, so that nobody needs to say which it is.
    """
    flips = []
    for action_name, state_name in _pair_features(source, episodes):
        commands, motions, new, later = [], [], [], []
        for episode in episodes:
            action = source.column(action_name, episode.index).astype(np.float64)
            motion = np.diff(source.column(state_name, episode.index).astype(np.float64), axis=0)
            commands.append(action[:-1])
            motions.append(motion)
            new.append(np.diff(action, axis=0)[:-1])
            later.append(motion[1:])
        pairs = [(np.concatenate(x), np.concatenate(y)) for x, y in ((commands, motions), (new, later))]
        for dim in range(pairs[0][0].shape[1]):
            strongest = max((_correlate(x[:, dim], y[:, dim]) for x, y in pairs), key=abs)
            if strongest < FLIPPED_CORRELATION:
                names = {"action": f"{action_name}[{dim}]", "state": f"{state_name}[{dim}]"}
                flips.append({**names, "correlation": strongest})
    return flips


def _correlate(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Returns the correlation of two columns; 0 where one of them is constant or there are none."""
    if not len(x) or not np.ptp(x) or not np.ptp(y):
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _pair_features(source: Source, episodes: Sequence[EpisodeRecord]) -> list[tuple[str, str]]:
    """Returns the actions of which there is a state of as many dims and the same rest of the name."""
    if not episodes:
        return []
    dims = {name: source.column(name, episodes[0].index).shape[1] for name in source.columns}
    # What is left of `action.joint_position` and `observation.state.joint_position`, or of `action` and `state`.
    rests = {name: re.sub(r"(observation|obs|action|state)(s|_dict)?[./]?", "", name) for name in dims}
    actions = [name for name in dims if name.startswith("action")]
    return [
        (action, state)
        for action in actions
        for state in dims
        if state not in actions and rests[state] == rests[action] and dims[state] == dims[action]
    ]


def _concatenate(source: Source, name: str, episodes: Sequence[EpisodeRecord]) -> npt.NDArray[np.float32]:
    return np.concatenate([source.column(name, episode.index) for episode in episodes])
