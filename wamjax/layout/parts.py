"""Schedules of parts of a sequence: what some queries see of some keys, in the order in which they lie there.

Owns the cut of a schedule. One function serves context parallelism (a device's queries against another's keys) and
another order of the tokens (all pieces, in that order).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

from wamjax.layout.schedule import Rectangle, Schedule, Span, merge_spans, span_length

# (first token in the part, first token in the whole sequence, tokens) of what lies together in both.
_Run = tuple[int, int, int]


@functools.lru_cache(maxsize=4096)
def cut(schedule: Schedule, queries: tuple[Span, ...], keys: tuple[Span, ...]) -> Schedule:
    """Returns what ``queries`` see of ``keys``, exactly.

    Args:
      schedule: The whole.
      queries: Disjoint spans of its queries, in the order in which the part holds them.
      keys: Disjoint spans of its keys, likewise.

    Returns:
      The schedule of the part. A query that sees none of ``keys`` is in no rectangle.
    """
    seen_by: dict[tuple[Span, ...], list[Span]] = {}
    triangles: list[Rectangle] = []
    for rectangle in schedule.rectangles:
        full = _merge_runs(_runs(keys, rectangle.keys))
        if rectangle.diagonal is None:
            rows = [(start, start + count) for start, _, count in _runs(queries, rectangle.queries)]
            if full and rows:
                seen_by.setdefault(full, []).extend(rows)
            continue
        for rows, seen, triangle in _cut_diagonal(rectangle, queries, keys):
            merged = _merge_runs([*((start, start, stop - start) for start, stop in full), *seen])
            if triangle is not None:
                triangles.append(Rectangle((rows,), merged, triangle))
            elif merged:
                seen_by.setdefault(merged, []).append(rows)
    rectangles = [Rectangle(merge_spans(rows), seen) for seen, rows in seen_by.items()]
    ordered = sorted(rectangles + triangles, key=lambda r: r.queries)
    return Schedule(span_length(queries), span_length(keys), tuple(ordered))


def even_parts(length: int, ways: int) -> tuple[Span, ...]:
    """Returns ``ways`` spans of equal length, in order; ``length`` is a multiple of ``ways``."""
    assert length % ways == 0, f"{length} tokens in {ways} parts"
    size = length // ways
    return tuple((part * size, (part + 1) * size) for part in range(ways))


def ring_schedules(schedule: Schedule, ways: int, step: int) -> tuple[Schedule, ...]:
    """Returns, for the queries of each of ``ways`` parts, what they see of the keys that are with them at ``step``.

    Part i has the keys of part i - step then.
    """
    queries, keys = even_parts(schedule.num_queries, ways), even_parts(schedule.num_keys, ways)
    return tuple(cut(schedule, (queries[part],), (keys[(part - step) % ways],)) for part in range(ways))


def ring_steps(schedule: Schedule, ways: int) -> tuple[int, ...]:
    """Returns the steps of a ring of ``ways`` parts at which some part sees something, and the first of them, 0."""
    return (0, *(n for n in range(1, ways) if any(part.num_pairs for part in ring_schedules(schedule, ways, n))))


def gathered_schedules(schedule: Schedule, ways: int) -> tuple[Schedule, ...]:
    """Returns what the queries of each of ``ways`` parts see of all keys."""
    everything = ((0, schedule.num_keys),)
    return tuple(cut(schedule, (queries,), everything) for queries in even_parts(schedule.num_queries, ways))


def _cut_diagonal(
    rectangle: Rectangle, queries: tuple[Span, ...], keys: tuple[Span, ...]
) -> Iterable[tuple[Span, list[_Run], Span | None]]:
    """Yields (queries, runs of the triangle's keys they all see, triangle) of the part of a causal rectangle.

    The j-th query sees the diagonal's keys up to the j-th: of a run of keys that ends before j all, of the run that
    holds j a triangle, of a later one none.
    """
    assert rectangle.diagonal is not None
    first_key = rectangle.diagonal[0]
    columns = sorted(
        (whole - first_key, whole - first_key + count, start)
        for start, whole, count in _runs(keys, [rectangle.diagonal])
    )
    bounds = sorted({bound for first, last, _ in columns for bound in (first, last)})
    place = 0  # of the span's first query along the diagonal
    for span in rectangle.queries:
        for start, whole, count in _runs(queries, [span]):
            first = place + whole - span[0]
            inner = [bound for bound in bounds if first < bound < first + count]
            edges = [first, *inner, first + count]
            for low, high in itertools.pairwise(edges):
                rows = (start + low - first, start + high - first)
                seen = [(at, at, last - begin) for begin, last, at in columns if last <= low]
                triangle = None
                for begin, last, at in columns:
                    if begin <= low < last:
                        seen.append((at, at, low - begin))
                        triangle = (at + low - begin, at + high - begin)
                yield rows, seen, triangle
        place += span[1] - span[0]


def _runs(part: Iterable[Span], spans: Iterable[Span]) -> list[_Run]:
    """Returns the runs of ``spans`` of the whole that lie in ``part``."""
    runs, offset, wanted = [], 0, tuple(spans)
    for first, last in part:
        for start, stop in wanted:
            low, high = max(first, start), min(last, stop)
            if low < high:
                runs.append((offset + low - first, low, high - low))
        offset += last - first
    return runs


def _merge_runs(runs: Iterable[_Run]) -> tuple[Span, ...]:
    """Returns where ``runs`` lie in the part, neighbours joined."""
    return merge_spans((start, start + count) for start, _, count in runs if count)
