"""The scales of a run's actions and states, from one dataset's training episodes.

Owns what is counted: every step of the state; of the actions every step, or, where an action is relative to the state
at its chunk's start, every action of the chunks that start at each step, as far as they are real. Reads columns only,
episode by episode, and holds one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import logging

from data_pipelines.embodiments.spec import VectorField
from data_pipelines.normalisation import Kind, Normalisation, Scale
from data_pipelines.quantiles import Spread, measure_spread
from data_pipelines.sources.source import Source
from data_pipelines.vectors import VectorLayout
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import RunConfig
from wamjax.errors import DataError

LOW_QUANTILE, HIGH_QUANTILE = 0.01, 0.99
# A value further outside [q01, q99] than this many times their distance is a sensor's slip, not a rare motion.
OUTLIER_RANGES = 10.0

Pieces = Iterator[tuple[int, npt.NDArray[np.float32]]]  # (episode, [any number, dims])


def compute_normalisation(
    source: Source, episodes: Sequence[int], layout: VectorLayout, config: RunConfig, *, fingerprint: str
) -> Normalisation:
    """Computes the scales from all steps of ``episodes`` (training episodes only, or validation leaks).

    Args:
      source: The dataset.
      episodes: Those to read.
      layout: What vectors are made of the features.
      config: Says how vectors are scaled, and which actions a chunk has.
      fingerprint: Of the dataset.

    Raises:
      DataError: A value stands for no orientation.
    """
    kind = config.data.normalisation

    def states() -> Pieces:
        for episode in episodes:
            yield episode, _gather(source, episode, layout.gather_state, layout.state_keys)

    def actions() -> Pieces:
        for episode in episodes:
            yield from ((episode, piece) for piece in _episode_actions(source, episode, layout, config))

    lengths = {record.index: record.length for record in source.episodes}
    return Normalisation(
        actions=_measure(actions, layout.actions, layout.num_action_dims, kind, source, "action"),
        state=_measure(states, layout.states, layout.num_state_dims, kind, source, "state"),
        fingerprint=fingerprint,
        vectors=layout.fingerprint,
        episodes=len(episodes),
        steps=sum(lengths[episode] for episode in episodes),
    )


def _episode_actions(
    source: Source, episode: int, layout: VectorLayout, config: RunConfig
) -> Iterator[npt.NDArray[np.float32]]:
    """Yields the actions of an episode as its windows see them, ``[any number, dims]``."""
    if not layout.has_relative_actions:
        yield _gather(source, episode, lambda values: layout.gather_actions(values, {}), layout.action_keys)
        return
    stride = derive_geometry(config).action_stride
    actions = {key: source.column(key, episode) for key in layout.action_keys}
    states = {key: source.column(key, episode) for key in layout.state_keys}
    length = min(len(column) for column in actions.values())
    for offset in range(0, min(config.layout.actions_per_block * stride, length), stride):
        later = {key: column[offset:] for key, column in actions.items()}
        before = {key: column[: length - offset] for key, column in states.items()}
        try:
            yield layout.gather_actions(later, before)
        except ValueError as error:
            raise DataError(f"dataset {source.path}: episode {episode}: {error}") from error


def _gather(
    source: Source, episode: int, gather: Callable[..., npt.NDArray[np.float32]], keys: Sequence[str]
) -> npt.NDArray[np.float32]:
    try:
        return gather({key: source.column(key, episode) for key in keys})
    except ValueError as error:
        raise DataError(f"dataset {source.path}: episode {episode}: {error}") from error


def _measure(
    pieces: Callable[[], Pieces], fields: Sequence[VectorField], num_dims: int, kind: Kind, source: Source, what: str
) -> Scale:
    """Returns the scale of a vector; says which dims have values far outside their quantiles."""
    if not fields:
        return Scale(kind=kind, low=(), high=(), mean=(), clamped=(), outliers=())
    slots = sorted(slot for field in fields for slot in field.slots)  # between them there may be many that are empty

    def used() -> Pieces:
        return ((episode, rows[:, slots]) for episode, rows in pieces())

    spread = measure_spread(lambda: (rows for _, rows in used()), len(slots), (LOW_QUANTILE, HIGH_QUANTILE))
    low, high = _ends(spread, kind)
    clamped = (spread.below[0] + spread.above[1]) / spread.count if kind == "quantile" else np.zeros(len(slots))
    names = [f"{what} {field.name!r}, slot {s}" for s in slots for field in fields if s in field.slots]
    outliers = _count_outliers(used, spread, names, source)

    def spread_out(values: npt.NDArray[Any]) -> tuple[Any, ...]:
        """Returns the values at their slots, zero between them."""
        at_slots = np.zeros(num_dims, values.dtype)
        at_slots[slots] = values
        return tuple(at_slots.tolist())

    return Scale(
        kind=kind,
        low=spread_out(low),
        high=spread_out(high),
        mean=spread_out(spread.mean),
        clamped=spread_out(clamped),
        outliers=spread_out(outliers),
    )


def _ends(spread: Spread, kind: Kind) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns what maps to -1 and to 1."""
    if kind == "mean_std":
        return spread.mean - spread.std, spread.mean + spread.std
    if kind == "min_max":
        return spread.minimum, spread.maximum
    return spread.quantiles[0], spread.quantiles[1]


def _count_outliers(
    pieces: Callable[[], Pieces], spread: Spread, names: Sequence[str], source: Source
) -> npt.NDArray[np.int64]:
    """Returns how many values of each dim lie far outside, after a third pass if any do; names the first of them."""
    low, high = spread.quantiles
    margin = OUTLIER_RANGES * (high - low)
    # A dim that is constant but for rare events (a gripper that hardly ever closes) has no range to judge by.
    is_judged = margin > 0
    counts = np.zeros(len(low), np.int64)
    suspects = np.flatnonzero(is_judged & ((spread.minimum < low - margin) | (spread.maximum > high + margin)))
    if not len(suspects):
        return counts
    first: dict[int, tuple[int, float]] = {}
    for episode, rows in pieces():
        for dim in suspects:
            values = rows[:, dim]
            far = values[(values < low[dim] - margin[dim]) | (values > high[dim] + margin[dim])]
            counts[dim] += len(far)
            if len(far):
                first.setdefault(int(dim), (episode, float(far[0])))
    for dim, (episode, value) in first.items():
        logging.warning(
            "dataset %s: %s: %d values lie beyond q01=%.4g or q99=%.4g by more than %g times their distance, the first "
            "(%.4g) in episode %d",
            *(source.path, names[dim], counts[dim], low[dim], high[dim], OUTLIER_RANGES, value, episode),
        )
    return counts
