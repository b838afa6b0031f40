"""Fast-WAM's formulation: one clip denoised as a whole from its clean first frame, beside its actions.

What the actions see of the clip is the family of the system: its first frame alone (representation only: no video is
denoised to act), all of it while it is denoised (joint), or a second copy of the clip (inverse dynamics).
"""

from __future__ import annotations

from typing import Literal

from wamjax.layout.layout import Layout
from wamjax.layout.segments import ALL, SAME, UP_TO, Role, Rotary, Segment, Visibility

Family = Literal["representation", "joint", "inverse_dynamics"]

_SEEN_BY_ACTIONS: dict[Family, tuple[Role, ...]] = {
    "representation": (Role.CLEAN_VIDEO,),
    "joint": (Role.CLEAN_VIDEO, Role.NOISY_VIDEO),
    "inverse_dynamics": (Role.CONDITION_VIDEO,),
}
_VIDEO_TIME, _ACTION_TIME, _CONDITION_TIME = range(3)


def first_frame_layout(
    *, frames: int, grid: tuple[int, int], num_actions: int, family: Family, noisy_condition: bool = False
) -> Layout:
    """Returns Fast-WAM's layout: first frame | other frames, noisy | copy of the clip, if any | actions.

    The first frame sees itself, the others the whole clip; the copy likewise, within itself. Actions see each other and
    what ``family`` says; video never sees actions. Video and actions have one timestep each.

    Args:
      frames: Latent frames, the first included.
      grid: Rows and columns of tokens in one latent frame.
      num_actions: Action tokens.
      family: What actions see.
      noisy_condition: Whether the copy's frames after the first have a timestep of their own, at which noise may be
        added to them.

    Source: Fast-WAM (arXiv 2603.16666) and its released code.
    """
    if frames < 2 or num_actions < 1:
        raise ValueError(f"frames={frames} and num_actions={num_actions}; expected 2 frames or more, 1 action or more")

    def video(role: Role, first: int, count: int, *, start: int = 0, time: int | None = None) -> Segment:
        return Segment(
            role=role,
            order=min(first, 1),
            num_tokens=count * grid[0] * grid[1],
            start=start * grid[0] * grid[1],
            grid=(count, *grid),
            first_frame=first,
            rotary=Rotary.VIDEO,
            noised=time is not None,
            time=time,
            has_loss=role is Role.NOISY_VIDEO,
        )

    clip = [video(Role.CLEAN_VIDEO, 0, 1), video(Role.NOISY_VIDEO, 1, frames - 1, time=_VIDEO_TIME)]
    copy = []
    if family == "inverse_dynamics":
        time = _CONDITION_TIME if noisy_condition else None
        copy = [
            video(Role.CONDITION_VIDEO, 0, 1),
            video(Role.CONDITION_VIDEO, 1, frames - 1, start=1, time=time),
        ]
    actions = Segment(role=Role.ACTION, order=1, num_tokens=num_actions, noised=True, time=_ACTION_TIME, has_loss=True)
    visibility: Visibility = {
        (Role.CLEAN_VIDEO, Role.CLEAN_VIDEO): SAME,
        (Role.NOISY_VIDEO, Role.CLEAN_VIDEO): ALL,
        (Role.NOISY_VIDEO, Role.NOISY_VIDEO): ALL,
        (Role.ACTION, Role.ACTION): ALL,
        **{(Role.ACTION, key): ALL for key in _SEEN_BY_ACTIONS[family]},
    }
    if copy:
        visibility[Role.CONDITION_VIDEO, Role.CONDITION_VIDEO] = UP_TO
    return Layout((*clip, *copy, actions), visibility)
