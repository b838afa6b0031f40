"""Exact quantiles, moments and ends of more rows than fit into memory, in two passes over them.

Owns the counting. A float32 read as an integer keeps its order once the bits of negative numbers are turned, so that a
first pass counts values by their upper 16 bits and a second one, within the few bins where the wanted ranks lie, by the
lower 16: the ranks' values are then known to the last bit, whatever the distribution (radix selection). Memory is
half a MB for each column and does not grow with the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

_BINS = 1 << 16
# Rows counted together: far more than bins would be wasted on fewer.
_BATCH_ROWS = 1 << 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """What the values of each column are, float64 ``[columns]``.

    Attributes:
      count: Rows.
      minimum: Smallest value.
      maximum: Largest value.
      mean: Mean.
      std: Standard deviation (of the rows themselves: divided by their number).
      quantiles: ``[shares, columns]``: as ``np.quantile`` has them, interpolated between neighbouring values.
      below: ``[shares, columns]``: how many values are smaller than the quantile.
      above: ``[shares, columns]``: how many are larger.
    """

    count: int
    minimum: npt.NDArray[np.float64]
    maximum: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    quantiles: npt.NDArray[np.float64]
    below: npt.NDArray[np.int64]
    above: npt.NDArray[np.int64]


def measure_spread(
    rows: Callable[[], Iterable[npt.NDArray[np.float32]]], num_columns: int, shares: tuple[float, ...]
) -> Spread:
    """Reads all rows twice.

    Args:
      rows: Gives the same rows at every call, in pieces float32 ``[any number, num_columns]``, all finite.
      num_columns: Columns of a row.
      shares: Shares in [0, 1] whose quantiles are wanted.

    Raises:
      ValueError: There are no rows.
    """
    moments = _Moments(num_columns)
    coarse = np.zeros((num_columns, _BINS), np.int64)
    for batch in _batches(rows()):
        moments.add(batch)
        for column, keys in enumerate(_sortable(batch)):
            coarse[column] += np.bincount(keys >> 16, minlength=_BINS)
    if not moments.count:
        raise ValueError("there are no rows to measure")
    ends = np.cumsum(coarse, axis=1)
    places = [share * (moments.count - 1) for share in shares]
    ranks = sorted({rank for place in places for rank in _neighbours(place, moments.count)})
    selections = [_Selection(ends[column], ranks) for column in range(num_columns)]
    for batch in _batches(rows()):
        for selection, keys in zip(selections, _sortable(batch), strict=True):
            selection.add(keys)
    quantiles = np.zeros((len(shares), num_columns))
    below, above = np.zeros((2, len(shares), num_columns), np.int64)
    for row, place in enumerate(places):
        lower, upper = _neighbours(place, moments.count)
        for column, selection in enumerate(selections):
            value = _interpolate(selection.value(lower), selection.value(upper), place - lower)
            quantiles[row, column] = value
            # Between two neighbouring values there are no others.
            below[row, column] = selection.num_below(lower) if value <= selection.value(lower) else lower + 1
            is_upper = value >= selection.value(upper)
            above[row, column] = moments.count - (selection.num_up_to(upper) if is_upper else upper)
    return Spread(
        count=moments.count,
        minimum=moments.minimum,
        maximum=moments.maximum,
        mean=moments.mean,
        std=np.sqrt(moments.squares / moments.count),
        quantiles=quantiles,
        below=below,
        above=above,
    )


class _Moments:
    """Running count, mean, squared deviation and ends; pieces are merged as Chan, Golub and LeVeque (1979) do."""

    def __init__(self, num_columns: int) -> None:
        self.count = 0
        self.mean = np.zeros(num_columns)
        self.squares = np.zeros(num_columns)
        self.minimum = np.full(num_columns, np.inf)
        self.maximum = np.full(num_columns, -np.inf)

    def add(self, batch: npt.NDArray[np.float32]) -> None:
        exact = batch.astype(np.float64)
        mean, size = exact.mean(axis=0), len(exact)
        total, shift = self.count + size, mean - self.mean
        self.squares += np.square(exact - mean).sum(axis=0) + np.square(shift) * (self.count * size / total)
        self.mean = self.mean + shift * (size / total)
        self.count = total
        self.minimum = np.minimum(self.minimum, exact.min(axis=0))
        self.maximum = np.maximum(self.maximum, exact.max(axis=0))


class _Selection:
    """Finds the values of some ranks of one column: ``ends`` says how many values lie up to each upper half."""

    def __init__(self, ends: npt.NDArray[np.int64], ranks: list[int]) -> None:
        bins = np.searchsorted(ends, ranks, side="right")
        self._bin_of = dict(zip(ranks, bins.tolist(), strict=True))
        self._before = {bin_: int(ends[bin_ - 1]) if bin_ else 0 for bin_ in set(bins.tolist())}
        self._fine = {bin_: np.zeros(_BINS, np.int64) for bin_ in self._before}

    def add(self, keys: npt.NDArray[np.uint32]) -> None:
        upper = keys >> 16
        for bin_, counts in self._fine.items():
            counts += np.bincount(keys[upper == bin_] & 0xFFFF, minlength=_BINS)

    def value(self, rank: int) -> float:
        """Returns the value of a rank, counted from 0."""
        bin_ = self._bin_of[rank]
        return _from_sortable((bin_ << 16) | self._find(rank)[0])

    def num_below(self, rank: int) -> int:
        """Returns how many values are smaller than that of the rank."""
        low, ends = self._find(rank)
        return self._before[self._bin_of[rank]] + (int(ends[low - 1]) if low else 0)

    def num_up_to(self, rank: int) -> int:
        """Returns how many values are no larger than that of the rank."""
        low, ends = self._find(rank)
        return self._before[self._bin_of[rank]] + int(ends[low])

    def _find(self, rank: int) -> tuple[int, npt.NDArray[np.int64]]:
        bin_ = self._bin_of[rank]
        ends = np.cumsum(self._fine[bin_])
        return int(np.searchsorted(ends, rank - self._before[bin_], side="right")), ends


def _batches(pieces: Iterable[npt.NDArray[np.float32]]) -> Iterator[npt.NDArray[np.float32]]:
    """Yields the rows in pieces of ``_BATCH_ROWS`` or a little more."""
    waiting: list[npt.NDArray[np.float32]] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _BATCH_ROWS:
            yield np.concatenate(waiting)
            waiting, size = [], 0
    if size:
        yield np.concatenate(waiting)


def _sortable(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Returns keys ``[columns, rows]`` in the order of the values; minus zero is zero."""
    bits = np.ascontiguousarray(batch.T + np.float32(0.0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


def _from_sortable(key: int) -> float:
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))


def _neighbours(place: float, count: int) -> tuple[int, int]:
    """Returns the ranks around a place between 0 and ``count - 1``."""
    lower = int(place)
    return lower, min(lower + 1, count - 1)


def _interpolate(low: float, high: float, share: float) -> float:
    """Returns the value between two, from the nearer end, to the last bit as NumPy does."""
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)
