"""Which source, and which of its samples, sample i of a mixture is: a pure function of the seed and i.

Owns the shares and the order. Nothing is drawn and nothing remembered: hosts and resumed runs that ask for sample i get
the same answer, whatever was asked before.

Samples are dealt in blocks of ``BLOCK``. In each block a source has a fixed number of places (its share, rounded so
that they add up), and the places are permuted by a hash of (seed, stage, block, place). So the shares are exact over
blocks, and sample counts before any i are sums of integers.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wamjax.errors import ConfigError

BLOCK = 2**16  # samples; shares are multiples of 1 / BLOCK
_KEPT_BLOCKS = 4  # 330 kB each; a host reads one or two at a time
# Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014): SplitMix64.
_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class MixtureOrder:
    """The endless order of a mixture.

    Attributes:
      shares: Of each stage, the places of each source in a block of ``BLOCK``.
    """

    def __init__(self, stages: Sequence[tuple[int, Sequence[float]]], *, names: Sequence[str], seed: int) -> None:
        """Prepares the order; see ``shares_of``.

        Args:
          stages: Global sample at which each begins (the first at 0, ascending), and the weight of every source there.
          names: Of the sources as a message calls them.
          seed: Of the order.

        Raises:
          ConfigError: A weight above 0 is too small for a place in a block.
        """
        assert stages[0][0] == 0, stages
        self._starts = [start for start, _ in stages]
        self._seed = seed
        self.shares = [shares_of(weights, names) for _, weights in stages]
        self._block = functools.lru_cache(_KEPT_BLOCKS)(self._deal)
        self._before: list[npt.NDArray[np.int64]] = [
            np.zeros(len(names), np.int64)
        ]  # samples of each source before each stage
        for stage, (begin, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            self._before.append(self._before[-1] + self._count(stage, end - begin))

    def locate(self, sample: int) -> tuple[int, int]:
        """Returns the source of a global sample, and how many samples of that source come before it."""
        stage = self._stage(sample)
        block, place = divmod(sample - self._starts[stage], BLOCK)
        sources, ranks = self._block(stage, block)
        source = int(sources[place])
        before = int(self._before[stage][source]) + block * int(self.shares[stage][source])
        return source, before + int(ranks[place])

    def count_before(self, sample: int) -> tuple[int, ...]:
        """Returns how many of the global samples before ``sample`` come from each source."""
        stage = self._stage(sample)
        return tuple((self._before[stage] + self._count(stage, sample - self._starts[stage])).tolist())

    def _stage(self, sample: int) -> int:
        return bisect.bisect_right(self._starts, sample) - 1

    def _count(self, stage: int, samples: int) -> npt.NDArray[np.int64]:
        """Returns how many of the first ``samples`` of a stage come from each source."""
        blocks, rest = divmod(samples, BLOCK)
        counts = blocks * self.shares[stage]
        if rest:
            counts = counts + np.bincount(self._block(stage, blocks)[0][:rest], minlength=len(counts))
        return counts

    def _deal(self, stage: int, block: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Returns the source of each place of a block, and how many of its places in the block come before."""
        shares = self.shares[stage]
        keys = _hash(np.arange(BLOCK, dtype=np.uint64), self._seed, stage, block)
        sources = np.repeat(np.arange(len(shares), dtype=np.int32), shares)[np.argsort(keys, kind="stable")]
        ranks = np.empty(BLOCK, np.int32)
        for source in range(len(shares)):
            places = np.flatnonzero(sources == source)
            ranks[places] = np.arange(len(places), dtype=np.int32)
        return sources, ranks


def shares_of(weights: Sequence[float], names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Returns integers proportional to ``weights`` that add up to ``BLOCK``, by largest remainders.

    Raises:
      ConfigError: A weight above 0 gets nothing.
    """
    exact = np.asarray(weights, np.float64) / sum(weights) * BLOCK
    shares = np.floor(exact).astype(np.int64)
    largest_first = np.argsort(shares - exact, kind="stable")
    shares[largest_first[: BLOCK - int(shares.sum())]] += 1
    for name, weight, share in zip(names, weights, shares, strict=True):
        if weight > 0 and share == 0:
            raise ConfigError(
                f"{name} has a share of {weight / sum(weights):.3g}, less than one in {BLOCK}: raise its weight, or "
                "leave it out"
            )
    return shares


def _hash(values: npt.NDArray[np.uint64], *keys: int) -> npt.NDArray[np.uint64]:
    """Returns SplitMix64 of ``values`` under ``keys``; NumPy's own generators may change between versions."""
    state = np.zeros(1, np.uint64)  # arrays, whose sums and products wrap around in silence: that is meant
    for key in keys:
        state = _mix(state + np.array([key], np.uint64))
    return _mix(values + state)


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = state + np.uint64(_GAMMA)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX_1)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX_2)
    return state ^ (state >> np.uint64(31))
