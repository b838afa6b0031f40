"""``Layout``: segments and a visibility table, and what follows from them.

Everything the rest of the library needs to know about a formulation is derived here: pair counts, block schedules,
positions, timestep slots, what carries a loss, and what a key-value cache may hold between chunks.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from wamjax.layout.schedule import Schedule, build_schedule
from wamjax.layout.segments import RelationKind, Role, Rotary, Segment, Visibility


@dataclasses.dataclass(frozen=True)
class Pass:
    """One forward pass over some segments of a layout, with keys of earlier segments taken from a cache.

    Attributes:
      segments: Segments whose tokens are computed, in sequence order.
      past: Segments whose keys and values come from the cache, in sequence order; they precede the computed keys.
      schedule: Rectangles between the computed queries and the keys ``past + segments``.
    """

    segments: tuple[Segment, ...]
    past: tuple[Segment, ...]
    schedule: Schedule

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return sum(s.num_tokens for s in self.segments)

    def slot_runs(self) -> tuple[tuple[int, int], ...]:
        """Returns (timestep slot, number of tokens) for each maximal run of tokens with the same slot."""
        groups = itertools.groupby(self.segments, key=lambda s: s.timestep_slot)
        return tuple((slot, sum(s.num_tokens for s in run)) for slot, run in groups)

    def positions(self) -> np.ndarray:
        """Returns int32 ``[n 3]`` coordinates: (latent frame, row, column) for video, (index, 0, 0) otherwise."""
        return np.concatenate([_segment_positions(s) for s in self.segments])

    def is_video(self) -> np.ndarray:
        """Returns bool ``[n]``: whether a token's coordinates are three-dimensional."""
        return np.concatenate([np.full(s.num_tokens, s.rotary is Rotary.VIDEO) for s in self.segments])


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A formulation of one training sample.

    Attributes:
      segments: In the order of the packed sequence.
      visibility: (query role, key role) -> temporal relation; a missing entry means no attention.
    """

    segments: tuple[Segment, ...]
    visibility: Visibility

    def __post_init__(self) -> None:
        for (query, key), relation in self.visibility.items():
            if relation.kind is RelationKind.CAUSAL and query is not key:
                raise ValueError(f"CAUSAL is token by token within one stream; {query} -> {key} are two streams")
        for role in self.roles:
            stream = self.stream(role)
            if any(a.start + a.num_tokens != b.start for a, b in itertools.pairwise(stream)):
                raise ValueError(f"segments of {role} do not follow one another in the order of their stream")

    @property
    def num_tokens(self) -> int:
        """Length of the packed sequence, padding included."""
        return sum(s.num_tokens for s in self.segments)

    @functools.cached_property
    def roles(self) -> tuple[Role, ...]:
        """Roles that occur, in order of first appearance."""
        return tuple(dict.fromkeys(s.role for s in self.segments))

    @property
    def num_slots(self) -> int:
        """Timestep slots: the clean one and one per order."""
        return 2 + max(s.order for s in self.segments)

    def stream(self, role: Role) -> tuple[Segment, ...]:
        """Returns the segments of ``role`` in sequence order."""
        return tuple(s for s in self.segments if s.role is role)

    def tokens_by_stream(self) -> dict[str, int]:
        """Returns the number of tokens of each role that occurs, padding included."""
        return {role.value: sum(s.num_tokens for s in self.stream(role)) for role in self.roles}

    @functools.cached_property
    def num_pairs(self) -> int:
        """Attended query-key pairs of one sample, exactly."""
        return self.full_pass().schedule.num_pairs

    @property
    def num_dense_pairs(self) -> int:
        """Pairs of dense attention over the same tokens, without padding."""
        return sum(s.num_tokens for s in self.segments if s.role is not Role.PADDING) ** 2

    def full_pass(self) -> Pass:
        """Returns the pass of training: every segment at once, nothing cached."""
        return self.make_pass(self.segments, ())

    def make_pass(self, segments: Sequence[Segment], past: Sequence[Segment]) -> Pass:
        """Returns the pass that computes ``segments`` with the keys of ``past`` cached."""
        computed, cached = tuple(segments), tuple(past)
        return Pass(computed, cached, build_schedule(computed, cached + computed, self.visibility))

    def dense_mask(self) -> np.ndarray:
        """Returns the boolean mask ``[n n]`` (queries, keys). For tests and pictures: it grows as N^2."""
        return self.full_pass().schedule.dense_mask()

    def cacheable_roles(self) -> frozenset[Role]:
        """Returns the roles whose keys and values stay valid once computed.

        A role is cacheable if its tokens are clean, it never looks ahead in time, and everything it looks at is
        cacheable too.
        """
        candidates = {role for role in self.roles if not any(s.noised for s in self.stream(role))}
        candidates.discard(Role.PADDING)
        while True:
            kept = {q for q in candidates if all(self._is_settled(q, k, candidates) for k in self.roles)}
            if kept == candidates:
                return frozenset(kept)
            candidates = kept

    def context_roles(self) -> frozenset[Role]:
        """Returns the cacheable roles that some later order looks at: what a cache holds between chunks."""
        seen_later = {key for (_, key), relation in self.visibility.items() if relation.looks_back}
        return self.cacheable_roles() & seen_later

    def context_pass(self, first_order: int, last_order: int) -> Pass:
        """Returns the pass that fills the cache with orders ``first_order .. last_order``, earlier ones cached."""
        context = self._context_segments()
        computed = [s for s in context if first_order <= s.order <= last_order]
        return self.make_pass(computed, [s for s in context if s.order < first_order])

    def denoise_pass(self, order: int) -> Pass:
        """Returns the pass that denoises ``order`` with all earlier context cached."""
        roles = self.context_roles()
        computed = [s for s in self.segments if s.order == order and s.role not in roles and s.role is not Role.PADDING]
        if not any(s.noised for s in computed):
            raise ValueError(
                f"order {order} holds nothing to denoise; this layout denoises orders {self.denoised_orders()}"
            )
        return self.make_pass(computed, [s for s in self._context_segments() if s.order < order])

    def denoised_orders(self) -> tuple[int, ...]:
        """Returns the orders that hold noised segments, ascending."""
        return tuple(sorted({s.order for s in self.segments if s.noised}))

    def _context_segments(self) -> tuple[Segment, ...]:
        roles = self.context_roles()
        return tuple(sorted((s for s in self.segments if s.role in roles), key=lambda s: s.order))

    def _is_settled(self, query: Role, key: Role, candidates: set[Role]) -> bool:
        relation = self.visibility.get((query, key))
        return relation is None or (key in candidates and not relation.looks_ahead)


def _segment_positions(segment: Segment) -> np.ndarray:
    """Returns int32 ``[n 3]`` coordinates of one segment's tokens."""
    if segment.rotary is Rotary.VIDEO:
        assert segment.grid is not None
        frames, rows, columns = segment.grid
        grid = np.stack(np.meshgrid(*map(np.arange, (frames, rows, columns)), indexing="ij"), axis=-1)
        return (grid.reshape(-1, 3) + np.array([segment.first_frame, 0, 0])).astype(np.int32)
    index = np.arange(segment.start, segment.start + segment.num_tokens, dtype=np.int32)
    return np.stack([index, np.zeros_like(index), np.zeros_like(index)], axis=-1)
