"""``Layout``: segments and a visibility table, and what follows from them.

Everything the rest of the library needs to know about a formulation is derived here: pair counts, block schedules,
positions, timestep slots, what carries a loss, and what a key-value cache may hold between chunks.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from wamjax.layout.schedule import Schedule, build_schedule
from wamjax.layout.segments import CAUSAL, SAME, UP_TO, RelationKind, Role, Rotary, Segment, Visibility


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

    def embedded_slots(
        self, *groups: Sequence[Role]
    ) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, int], ...]]:
        """Returns which timestep slots are embedded where each group of roles has an embedding of its own.

        Args:
          groups: Roles; every token that is not padding is of one of them.

        Returns:
          The slots of each group, ascending; and (index, number of tokens) in sequence order, where the index counts
          through the slots of all groups one after the other. Padding takes the index before it.
        """
        slots = [sorted({s.timestep_slot for s in self.segments if s.role in roles}) for roles in groups]
        index = {
            (role, slot): place
            for place, (roles, slot) in enumerate(
                (roles, slot) for roles, own in zip(groups, slots, strict=True) for slot in own
            )
            for role in roles
        }
        runs: list[tuple[int, int]] = []
        for segment in self.segments:
            before = runs[-1][0] if runs else 0
            place = before if segment.role is Role.PADDING else index[segment.role, segment.timestep_slot]
            if runs and runs[-1][0] == place:
                runs[-1] = (place, runs[-1][1] + segment.num_tokens)
            else:
                runs.append((place, segment.num_tokens))
        return tuple(tuple(own) for own in slots), tuple(runs)

    def positions(self) -> np.ndarray:
        """Returns fp64 ``[n 3]`` coordinates: (latent frame, row, column) for video, (index, 0, 0) for a sequence.

        With ``Rotary.FRAME`` token k of n is at (latent frame + k / (n + 1), -1, -1), k from 1.
        """
        return np.concatenate([_segment_positions(s) for s in self.segments])

    def is_video(self) -> np.ndarray:
        """Returns bool ``[n]``: whether a token's coordinates are three-dimensional."""
        return np.concatenate([np.full(s.num_tokens, s.rotary is not Rotary.SEQUENCE) for s in self.segments])

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the sets of weights that process the tokens, in order of first appearance."""
        return tuple(dict.fromkeys(s.expert for s in self.segments))

    def of_expert(self, name: str) -> Pass:
        """Returns the part of one expert: its segments alone, under the schedule of all."""
        return dataclasses.replace(self, segments=tuple(s for s in self.segments if s.expert == name))


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
        """Timestep slots: the clean one and one per time."""
        return 1 + max(s.timestep_slot for s in self.segments)

    def slots_of(self, roles: Sequence[Role]) -> tuple[int, ...]:
        """Returns the timestep slots that tokens of ``roles`` carry, ascending."""
        return tuple(sorted({s.timestep_slot for s in self.segments if s.role in roles}))

    def with_prefix(self, num_tokens: int, *, is_causal: bool) -> Layout:
        """Returns the layout with text tokens in front, which see each other alone and which all others see.

        Args:
          num_tokens: Text tokens, of the expert ``prefix``.
          is_causal: Whether a text token sees only text up to itself.
        """
        text = Segment(role=Role.TEXT, order=0, num_tokens=num_tokens, expert="prefix")
        # Text is of order 0, before or beside everything: no relation looks ahead, so that text can be cached.
        seen = {(role, Role.TEXT): UP_TO for role in self.roles if role is not Role.PADDING}
        own = {(Role.TEXT, Role.TEXT): CAUSAL if is_causal else SAME}
        return Layout((text, *self.segments), {**self.visibility, **seen, **own})

    def with_experts(self, experts: Mapping[Role, str]) -> Layout:
        """Returns the layout whose roles are processed by ``experts``; padding by that of the tokens before it."""
        segments: list[Segment] = []
        for segment in self.segments:
            is_padding = segment.role is Role.PADDING and segments
            expert = segments[-1].expert if is_padding else experts.get(segment.role, segment.expert)
            segments.append(dataclasses.replace(segment, expert=expert))
        return Layout(tuple(segments), self.visibility)

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
    """Returns fp64 ``[n 3]`` coordinates of one segment's tokens."""
    if segment.rotary is Rotary.VIDEO:
        assert segment.grid is not None
        frames, rows, columns = segment.grid
        grid = np.stack(np.meshgrid(*map(np.arange, (frames, rows, columns)), indexing="ij"), axis=-1)
        return (grid.reshape(-1, 3) + np.array([segment.first_frame, 0, 0])).astype(np.float64)
    if segment.rotary is Rotary.FRAME:
        count = segment.num_tokens
        steps = segment.first_frame + np.arange(1, count + 1, dtype=np.float64) / (count + 1)
        return np.stack([steps, np.full(count, -1.0), np.full(count, -1.0)], axis=-1)
    index = np.arange(segment.start, segment.start + segment.num_tokens, dtype=np.float64)
    return np.stack([index, np.zeros_like(index), np.zeros_like(index)], axis=-1)
