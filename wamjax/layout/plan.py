"""Latent plans: who infers a plan from what, and what actions are decoded from.

Order 0 is the present and order 1 what follows, so that acting is the pass over order 0 (``present_segments``).
"""

from __future__ import annotations

from wamjax.layout.layout import Layout
from wamjax.layout.segments import ALL, SAME, UP_TO, Role, Rotary, Segment, Visibility


def plan_layout(*, frames: int, grid: tuple[int, int], num_states: int) -> Layout:
    """Returns what a plan is inferred from: first frame | state | prior | other frames | posterior, all clean.

    The first frame sees itself, the others the whole clip, the state the first frame. The prior sees both of these, the
    posterior the whole clip and the state. Nothing sees a query but itself.

    Args:
      frames: Latent frames, the first included.
      grid: Rows and columns of tokens in one latent frame.
      num_states: Tokens of the present's state; 0 for none.

    Source: Play-LMP (arXiv 1903.01973), plan proposal and plan recognition.
    """
    if frames < 2:
        raise ValueError(f"frames={frames}; expected 2 or more: a posterior reads what follows the first")
    present = (*_present(grid, num_states), Segment(role=Role.PRIOR, order=0, num_tokens=1))
    future = Segment(
        role=Role.CLEAN_VIDEO,
        order=1,
        num_tokens=(frames - 1) * grid[0] * grid[1],
        start=grid[0] * grid[1],
        grid=(frames - 1, *grid),
        first_frame=1,
        rotary=Rotary.VIDEO,
    )
    queries = (Role.PRIOR, Role.POSTERIOR)
    visibility: Visibility = {(Role.CLEAN_VIDEO, Role.CLEAN_VIDEO): UP_TO}
    visibility |= {(query, query): SAME for query in queries}
    visibility |= {(query, Role.CLEAN_VIDEO): UP_TO for query in queries}
    if num_states:
        visibility |= {(Role.STATE, Role.CLEAN_VIDEO): UP_TO, (Role.STATE, Role.STATE): SAME}
        visibility |= {(query, Role.STATE): UP_TO for query in queries}
    return Layout((*present, future, Segment(role=Role.POSTERIOR, order=1, num_tokens=1)), visibility)


def present_segments(layout: Layout) -> tuple[Segment, ...]:
    """Returns what acting computes of a ``plan_layout``: nothing that follows the present."""
    return tuple(s for s in layout.segments if s.order == 0 and s.role is not Role.PADDING)


def decoder_layout(*, grid: tuple[int, int], num_states: int, num_actions: int) -> Layout:
    """Returns what actions are decoded from: first frame | state | plan | actions, all seeing all."""
    segments = (
        *_present(grid, num_states),
        Segment(role=Role.PLAN, order=0, num_tokens=1),
        Segment(role=Role.ACTION, order=0, num_tokens=num_actions, has_loss=True),
    )
    roles = tuple(dict.fromkeys(s.role for s in segments))
    return Layout(segments, {(query, key): ALL for query in roles for key in roles})


def _present(grid: tuple[int, int], num_states: int) -> tuple[Segment, ...]:
    """Returns the first frame and the state."""
    frame = Segment(role=Role.CLEAN_VIDEO, order=0, num_tokens=grid[0] * grid[1], grid=(1, *grid), rotary=Rotary.VIDEO)
    return (frame, *((Segment(role=Role.STATE, order=0, num_tokens=num_states),) if num_states else ()))
