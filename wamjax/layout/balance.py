"""Token order under context parallelism: which pieces of a sequence each part holds, so that all parts work equally.

Where the queries of a part stay and keys come to it, the layout decides how much a part has to do: in temporal order
the last one attends to the whole past, the first one to next to nothing. Owns the measure of that, and the order.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import numpy as np

from wamjax.layout.blocks import LANES, choose_block, executed_pairs
from wamjax.layout.parts import cut, even_parts
from wamjax.layout.schedule import Schedule, Span

MAX_PIECES = 16  # of a part: with more, blocks at their edges cost more than the balance gains

Exchange = Literal["ring", "all_gather"]


@dataclasses.dataclass(frozen=True)
class TokenOrder:
    """An order of the tokens of a sequence that is split into equal parts.

    Attributes:
      ways: Parts.
      pieces: Equal pieces of the sequence, by their number in it, in the order in which the parts hold them.
    """

    ways: int
    pieces: tuple[int, ...]

    @property
    def is_natural(self) -> bool:
        """Whether the tokens stay where they are."""
        return self.pieces == tuple(range(len(self.pieces)))

    def inverse(self) -> TokenOrder:
        """Returns the order that undoes this one."""
        return TokenOrder(self.ways, tuple(int(place) for place in np.argsort(self.pieces)))

    def spans(self, num_tokens: int) -> tuple[Span, ...]:
        """Returns the pieces of a sequence, in this order."""
        even = even_parts(num_tokens, len(self.pieces))
        return tuple(even[piece] for piece in self.pieces)

    def apply(self, schedule: Schedule) -> Schedule:
        """Returns the schedule of the sequence in this order."""
        if self.is_natural:
            return schedule
        return cut(schedule, self.spans(schedule.num_queries), self.spans(schedule.num_keys))


def natural_order(ways: int) -> TokenOrder:
    """Returns the order in which the tokens stay where they are."""
    return TokenOrder(ways, tuple(range(ways)))


@functools.lru_cache(maxsize=64)
def balance_order(schedule: Schedule, ways: int, exchange: Exchange, multiple: int = 1) -> TokenOrder:
    """Returns the order at which attention over ``ways`` parts costs least.

    Candidates cut the sequence into ``ways`` times 1, 2, 4, ... pieces and deal them out: heaviest first, each to the
    lightest part that has room (LPT), or one after the other, back and forth. What a candidate costs is what the part
    with most to do executes in blocks (in a ring: at every step, for which the others wait).

    Args:
      schedule: Of the sequence in its own order, attending to itself.
      ways: Parts.
      exchange: How keys come to the queries.
      multiple: Pieces of a part are a multiple of this (devices that share a part).
    """
    best, lowest = TokenOrder(ways, natural_order(ways * multiple).pieces), _cost(schedule, ways, exchange)
    length, weights = schedule.num_queries, _pairs_of_queries(schedule)
    for count in (multiple * 2**power for power in range(int(math.log2(MAX_PIECES / multiple)) + 1)):
        size, rest = divmod(length, ways * count)
        # Where parts hold whole blocks of a TPU, so do pieces.
        if rest or count == 1 or (length % (ways * LANES) == 0 and size % LANES):
            continue
        pieces = weights.reshape(-1, size).sum(axis=1)
        for deal in (_deal_by_weight, _deal_back_and_forth):
            order = TokenOrder(ways, deal(pieces, ways))
            cost = _cost(order.apply(schedule), ways, exchange)
            if cost < lowest:
                best, lowest = order, cost
    return best


def pairs_of_parts(schedule: Schedule, ways: int) -> np.ndarray:
    """Returns int ``[ways ways]``: pairs between the queries of each part and the keys of each."""
    queries, keys = even_parts(schedule.num_queries, ways), even_parts(schedule.num_keys, ways)
    return np.array([[cut(schedule, (q,), (k,)).num_pairs for k in keys] for q in queries])


def imbalance(schedule: Schedule, ways: int, exchange: Exchange) -> float:
    """Returns how much longer attention takes than with equal parts: 1 where they are equal.

    Most pairs of a part / mean pairs of a part. In a ring the parts wait for one another at every step: the sum over
    steps of the most pairs of a part / mean pairs of a part.
    """
    return _longest(pairs_of_parts(schedule, ways), exchange) * ways / schedule.num_pairs


def _longest(pairs: np.ndarray, exchange: Exchange) -> float:
    """Returns what the busiest part has to do, of what each part has to do with each other's keys."""
    if exchange == "all_gather":
        return float(pairs.sum(axis=1).max())
    ways = len(pairs)
    parts = np.arange(ways)
    return float(sum(pairs[parts, (parts - step) % ways].max() for step in range(ways)))


def _cost(schedule: Schedule, ways: int, exchange: Exchange) -> float:
    """Returns what the busiest part executes: whole blocks, where blocks divide the parts."""
    queries, keys = even_parts(schedule.num_queries, ways), even_parts(schedule.num_keys, ways)
    if exchange == "all_gather":
        keys = ((0, schedule.num_keys),)
    costs = np.array([[_executed(cut(schedule, (q,), (k,))) for k in keys] for q in queries])
    return _longest(costs, exchange)


def _executed(part: Schedule) -> float:
    side = choose_block(part) if part.rectangles else None
    return float(part.num_pairs if side is None else executed_pairs(part, side))


def _pairs_of_queries(schedule: Schedule) -> np.ndarray:
    """Returns int ``[n]``: how many keys each query sees."""
    counts = np.zeros(schedule.num_queries, int)
    for rectangle in schedule.rectangles:
        width = rectangle.num_keys - (rectangle.num_queries if rectangle.diagonal else 0)
        place = 0
        for start, stop in rectangle.queries:
            counts[start:stop] = width
            if rectangle.diagonal:
                counts[start:stop] += np.arange(place, place + stop - start) + 1
            place += stop - start
    return counts


def _deal_by_weight(weights: np.ndarray, ways: int) -> tuple[int, ...]:
    """Returns pieces by part: heaviest first, each to the lightest part with room; in a part in their own order."""
    room, held = len(weights) // ways, [[] for _ in range(ways)]
    for piece in np.argsort(-weights, kind="stable"):
        open_parts = [part for part in range(ways) if len(held[part]) < room]
        lightest = min(open_parts, key=lambda part: sum(weights[other] for other in held[part]))
        held[lightest].append(int(piece))
    return tuple(piece for part in held for piece in sorted(part))


def _deal_back_and_forth(weights: np.ndarray, ways: int) -> tuple[int, ...]:
    """Returns pieces by part, dealt in order: to the first part, ..., the last, the last, ..., the first, and again."""
    rounds = np.arange(len(weights)).reshape(-1, ways)
    rounds[1::2] = rounds[1::2, ::-1]
    return tuple(int(piece) for piece in rounds.T.reshape(-1))
