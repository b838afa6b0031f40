"""Blocks over a schedule: which size a block-sparse kernel should have, and what it then executes.

A kernel computes every block that holds a visible pair, whole. Owns the count of those pairs and the choice of the
blocks. What each kernel makes of them is in ``layout.kernels``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from wamjax.layout.schedule import Schedule, Span

LANES = 128  # lengths and blocks of TPU kernels are multiples of it
MAX_BLOCK = 1024

# What a block costs besides its pairs, in tokens of its side: per pair, static schedules of the splash kernel for TPU
# v5p (jax 0.10.2) have 0.96 as many instructions at 896 as at 512, which 1 + 64 / side fits.
_OVERHEAD = 64


def touched_blocks(schedule: Schedule, block: int, key_block: int | None = None) -> np.ndarray:
    """Returns bool ``[rows columns]``: which blocks of queries x keys hold a visible pair.

    Args:
      schedule: The rectangles.
      block: Queries of a block; the last blocks of a sequence may be smaller.
      key_block: Keys of a block; None for as many.
    """
    width = block if key_block is None else key_block
    rows, columns = math.ceil(schedule.num_queries / block), math.ceil(schedule.num_keys / width)
    touched = np.zeros((rows, columns), dtype=bool)
    for rectangle in schedule.rectangles:
        seen = _touched(rectangle.keys, columns, width)
        for start, stop in rectangle.queries:
            touched[start // block : math.ceil(stop / block)] |= seen
        if rectangle.diagonal:
            first = rectangle.diagonal[0]
            offset = 0
            for start, stop in rectangle.queries:
                for row in range(start // block, math.ceil(stop / block)):
                    last = offset + min(stop, (row + 1) * block) - 1 - start  # of the row's queries, in the diagonal
                    touched[row, first // width : (first + last) // width + 1] = True
                offset += stop - start
    return touched


def executed_pairs(schedule: Schedule, block: int) -> int:
    """Returns the pairs in blocks of ``block`` x ``block`` tokens that hold a visible pair."""
    touched = touched_blocks(schedule, block)
    rows, columns = touched.shape
    heights = np.minimum(block, schedule.num_queries - block * np.arange(rows))
    widths = np.minimum(block, schedule.num_keys - block * np.arange(columns))
    return int(heights @ touched @ widths)


@functools.lru_cache(maxsize=64)
def choose_block(schedule: Schedule) -> int | None:
    """Returns the side, a multiple of 128 up to 1024 that divides both sequences, at which attention costs least.

    The cost of a side is its executed pairs times 1 + 64 / side. None where no multiple of 128 divides.
    """
    whole = math.gcd(schedule.num_queries, schedule.num_keys)
    sides = [side for side in range(LANES, min(MAX_BLOCK, whole) + 1, LANES) if whole % side == 0]
    if not sides:
        return None
    return min(sides, key=lambda side: (executed_pairs(schedule, side) * (side + _OVERHEAD) / side, -side))


def _touched(spans: Sequence[Span], count: int, block: int) -> np.ndarray:
    touched = np.zeros(count, dtype=bool)
    for start, stop in spans:
        touched[start // block : math.ceil(stop / block)] = True
    return touched
