"""Block schedules: which dense rectangles of the score matrix a layout needs, and nothing else.

A schedule is what attention kernels consume. It is exact: the union of its rectangles is the visible set of pairs,
except that a causal rectangle holds a triangle. Derived from segments and visibility alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from wamjax.layout.segments import RelationKind, Role, Segment, Visibility

Span = tuple[int, int]  # half-open range of token indices


@dataclasses.dataclass(frozen=True)
class Rectangle:
    """Queries that all see the same keys.

    Attributes:
      queries: Spans of the query sequence, ascending.
      keys: Spans of the key sequence, ascending.
      diagonal: Span of keys, none of ``keys``, of which the j-th query sees the first j + 1; None if there is none. Its
        length equals the number of queries.
    """

    queries: tuple[Span, ...]
    keys: tuple[Span, ...]
    diagonal: Span | None = None

    @property
    def num_queries(self) -> int:
        """Queries in the rectangle."""
        return span_length(self.queries)

    @property
    def num_keys(self) -> int:
        """Keys in the rectangle, the diagonal included."""
        return span_length(self.keys) + (self.diagonal[1] - self.diagonal[0] if self.diagonal else 0)

    @property
    def num_pairs(self) -> int:
        """Query-key pairs that are attended, exactly."""
        n = self.num_queries
        triangle = n * (n + 1) // 2 if self.diagonal else 0
        return n * span_length(self.keys) + triangle


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The rectangles of one attention call.

    Attributes:
      num_queries: Length of the query sequence (padding included).
      num_keys: Length of the key sequence (padding included).
      rectangles: Disjoint in their queries; a query in none of them is padding and its output is zero.
    """

    num_queries: int
    num_keys: int
    rectangles: tuple[Rectangle, ...]

    @property
    def num_pairs(self) -> int:
        """Query-key pairs that are attended, exactly."""
        return sum(r.num_pairs for r in self.rectangles)

    @property
    def num_executed_pairs(self) -> int:
        """Pairs the rectangles span: what a kernel without finer skipping computes."""
        return sum(r.num_queries * r.num_keys for r in self.rectangles)

    def dense_mask(self) -> np.ndarray:
        """Returns the boolean mask ``[queries keys]``. For tests and pictures: it grows as N^2."""
        mask = np.zeros((self.num_queries, self.num_keys), dtype=bool)
        for rectangle in self.rectangles:
            rows = np.concatenate([np.arange(*span) for span in rectangle.queries])
            columns = np.concatenate([np.arange(*span) for span in rectangle.keys] or [np.zeros(0, int)])
            mask[np.ix_(rows, columns)] = True
            if rectangle.diagonal:
                mask[np.ix_(rows, np.arange(*rectangle.diagonal))] = np.tri(len(rows), dtype=bool)
        return mask


def span_length(spans: Sequence[Span]) -> int:
    """Returns the number of tokens in ``spans``."""
    return sum(stop - start for start, stop in spans)


def build_schedule(queries: Sequence[Segment], keys: Sequence[Segment], visibility: Visibility) -> Schedule:
    """Derives the rectangles between ``queries`` and ``keys``, both in sequence order.

    Query segments that see the same keys share one rectangle, neighbouring spans are merged.

    Raises:
      ValueError: A query segment that is not padding sees no key at all (its softmax would be undefined).
    """
    key_spans, grouped, diagonals = _spans(keys), {}, []
    for query, query_span in zip(queries, _spans(queries), strict=True):
        if query.role is Role.PADDING:
            continue
        full, diagonal = [], None
        for key, key_span in zip(keys, key_spans, strict=True):
            relation = visibility.get((query.role, key.role))
            if relation is None or not relation.admits(query.order, key.order):
                continue
            if relation.kind is RelationKind.CAUSAL and key == query and not query.is_whole:
                diagonal = key_span
            else:
                full.append(key_span)
        if not full and diagonal is None:
            raise ValueError(f"segment {query.role} of order {query.order} sees no key; check the visibility table")
        merged = merge_spans(full)
        if diagonal is None:
            grouped.setdefault(merged, []).append(query_span)
        else:
            diagonals.append(Rectangle((query_span,), merged, diagonal))
    rectangles = [Rectangle(merge_spans(spans), seen) for seen, spans in grouped.items()]
    ordered = sorted(rectangles + diagonals, key=lambda r: r.queries)
    num_queries, num_keys = (sum(s.num_tokens for s in part) for part in (queries, keys))
    return Schedule(num_queries, num_keys, tuple(ordered))


def _spans(segments: Sequence[Segment]) -> list[Span]:
    """Returns the token span of each segment in the sequence they form."""
    spans, offset = [], 0
    for segment in segments:
        spans.append((offset, offset + segment.num_tokens))
        offset += segment.num_tokens
    return spans


def merge_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Returns ``spans`` in ascending order, those that touch joined."""
    merged: list[Span] = []
    for start, stop in sorted(spans):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)
