"""Segments, roles and relations: the vocabulary a layout is declared in.

A training sample is one sequence made of segments. Each has a role (what its tokens are), an order (its place in
time) and a number of tokens. A visibility table says which role may look at which other role, in which temporal
relation. Nothing here knows about arrays.
"""

from __future__ import annotations

import dataclasses
import enum


class Role(enum.StrEnum):
    """What the tokens of a segment are."""

    CLEAN_VIDEO = "clean_video"
    NOISY_VIDEO = "noisy_video"
    CONDITION_VIDEO = "condition_video"  # a second copy of the clip that actions are read from
    CLEAN_ACTION = "clean_action"
    ACTION = "action"  # noised
    STATE = "state"
    IMAGE = "image"  # tokens of a vision tower
    OBSERVATION = "observation"  # what one step shows: instruction, state, pictures
    QUERY = "query"  # learned queries of a later frame
    TEXT = "text"  # text and vision tokens of a language tower
    PRIOR = "prior"  # a learned query of a plan that reads the present
    POSTERIOR = "posterior"  # one that reads what follows too
    PLAN = "plan"  # a plan, as a decoder of actions reads it
    PADDING = "padding"


VIDEO_ROLES = (Role.CLEAN_VIDEO, Role.NOISY_VIDEO, Role.CONDITION_VIDEO)
ACTION_ROLES = (Role.CLEAN_ACTION, Role.ACTION)


class Rotary(enum.StrEnum):
    """How a segment's tokens are placed for rotary embedding."""

    VIDEO = "video"  # three coordinates: latent frame, row, column
    SEQUENCE = "sequence"  # one coordinate: index within the role's own stream
    FRAME = "frame"  # three coordinates: a part of the way from a latent frame to the next, row and column -1


class RelationKind(enum.StrEnum):
    """The temporal relations a visibility entry may state between query order q and key order k."""

    ALL = "all"
    SAME = "same"
    BEFORE = "before"
    BEFORE_WINDOW = "before_window"
    UP_TO = "up_to"
    WINDOW = "window"
    CAUSAL = "causal"


@dataclasses.dataclass(frozen=True)
class Relation:
    """A temporal relation between the order of a query and the order of a key.

    Attributes:
      kind: Which relation.
      size: For ``WINDOW`` and ``BEFORE_WINDOW``: how many orders back a query sees (besides its own, for the first).
    """

    kind: RelationKind
    size: int = 0

    def admits(self, query_order: int, key_order: int) -> bool:
        """Whether a query of ``query_order`` may see (some token of) a key segment of ``key_order``."""
        match self.kind:
            case RelationKind.ALL:
                return True
            case RelationKind.SAME:
                return key_order == query_order
            case RelationKind.BEFORE:
                return key_order < query_order
            case RelationKind.BEFORE_WINDOW:
                return query_order - self.size <= key_order < query_order
            case RelationKind.UP_TO | RelationKind.CAUSAL:
                return key_order <= query_order
            case RelationKind.WINDOW:
                return query_order - self.size <= key_order <= query_order

    @property
    def looks_ahead(self) -> bool:
        """Whether a query may see a later order."""
        return self.kind is RelationKind.ALL

    @property
    def looks_back(self) -> bool:
        """Whether a query may see an earlier order."""
        return self.kind is not RelationKind.SAME


ALL = Relation(RelationKind.ALL)
SAME = Relation(RelationKind.SAME)
BEFORE = Relation(RelationKind.BEFORE)
UP_TO = Relation(RelationKind.UP_TO)
CAUSAL = Relation(RelationKind.CAUSAL)


def window(size: int) -> Relation:
    """Returns the relation ``q - size <= k <= q``.

    Raises:
      ValueError: ``size`` is negative.
    """
    if size < 0:
        raise ValueError(f"window size {size} is negative; expected 0 or more orders back")
    return Relation(RelationKind.WINDOW, size)


def window_before(size: int) -> Relation:
    """Returns the relation ``q - size <= k < q``.

    Raises:
      ValueError: ``size`` is less than 1.
    """
    if size < 1:
        raise ValueError(f"window size {size} before a query; expected 1 or more orders back")
    return Relation(RelationKind.BEFORE_WINDOW, size)


Visibility = dict[tuple[Role, Role], Relation]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive tokens of one role at one place in time.

    Attributes:
      role: What the tokens are.
      order: Place in time: 0 is the first frame, block i has order i.
      num_tokens: Tokens in the segment.
      start: Index of the first token within the role's own stream.
      grid: For video: (latent frames, rows, columns); their product is ``num_tokens``.
      first_frame: For video, and with ``Rotary.FRAME``: index of the segment's first latent frame in the clip.
      rotary: How positions are assigned.
      noised: Whether the tokens carry noise at their own timestep (otherwise they are clean, t = 0).
      time: Which of the sample's times that is; None for the order's. Segments of equal time share a draw.
      has_loss: Whether the tokens are predicted and enter the loss.
      expert: Name of the set of weights that processes the tokens.
      is_whole: Whether under ``CAUSAL`` the segment's tokens see each other in both directions.
    """

    role: Role
    order: int
    num_tokens: int
    start: int = 0
    grid: tuple[int, int, int] | None = None
    first_frame: int = 0
    rotary: Rotary = Rotary.SEQUENCE
    noised: bool = False
    time: int | None = None
    has_loss: bool = False
    expert: str = "shared"
    is_whole: bool = False

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ValueError(
                f"segment {self.role} of order {self.order} has {self.num_tokens} tokens; expected 1 or more"
            )
        if self.grid is not None and self.grid[0] * self.grid[1] * self.grid[2] != self.num_tokens:
            raise ValueError(f"segment {self.role}: grid {self.grid} does not hold {self.num_tokens} tokens")
        if self.rotary is Rotary.VIDEO and self.grid is None:
            raise ValueError(f"segment {self.role} uses video positions and needs a grid (frames, rows, columns)")

    @property
    def timestep_slot(self) -> int:
        """Which timestep the tokens carry: slot 0 is t = 0 (clean), slot ``time + 1`` the timestep of that time."""
        if not self.noised:
            return 0
        return (self.order if self.time is None else self.time) + 1
