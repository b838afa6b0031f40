"""LingBot-VA's formulation: chunks of video and of actions take turns, each denoised from all that came before.

Chunk c of the video has order 2c and the actions that follow it order 2c + 1, so one rule says both that actions are
read from the video they belong to (inverse dynamics) and that later video is generated from the actions before it.
"""

from __future__ import annotations

from wamjax.layout.layout import Layout
from wamjax.layout.segments import (
    BEFORE,
    SAME,
    UP_TO,
    Relation,
    Role,
    Rotary,
    Segment,
    Visibility,
    window,
    window_before,
)


def alternating_layout(
    *,
    num_chunks: int,
    frames_per_chunk: int,
    grid: tuple[int, int],
    actions_per_frame: int,
    window_orders: int = 0,
    noisy_history: bool = False,
) -> Layout:
    """Returns LingBot-VA's layout: noisy video | clean video | noisy actions | clean actions.

    Clean tokens see clean tokens up to their own order, noisy ones the clean ones before it and their own chunk. Every
    latent frame, and the actions of every latent frame, have a timestep of their own.

    Args:
      num_chunks: Chunks of the sample.
      frames_per_chunk: Latent frames of one chunk.
      grid: Rows and columns of tokens in one latent frame.
      actions_per_frame: Action tokens of one latent frame; they are placed between it and the next one.
      window_orders: How many orders (half chunks) back a token sees; 0 for all.
      noisy_history: Whether clean frames have timesteps of their own too, at which noise may be added to them.

    Source: LingBot-VA (arXiv 2601.21998) and its released code. What differs: chunk size and window are fixed, where
    the released training draws them anew for every batch.
    """
    if num_chunks < 1 or frames_per_chunk < 1 or actions_per_frame < 1:
        raise ValueError(
            f"num_chunks={num_chunks}, frames_per_chunk={frames_per_chunk} and actions_per_frame={actions_per_frame} "
            "must all be 1 or more"
        )
    per_frame, frames = grid[0] * grid[1], num_chunks * frames_per_chunk

    def video(role: Role, frame: int) -> Segment:
        is_target = role is Role.NOISY_VIDEO
        return Segment(
            role=role,
            order=2 * (frame // frames_per_chunk),
            num_tokens=per_frame,
            start=frame * per_frame,
            grid=(1, *grid),
            first_frame=frame,
            rotary=Rotary.VIDEO,
            noised=is_target or noisy_history,
            time=frame if is_target else 2 * frames + frame,
            has_loss=is_target,
        )

    def actions(role: Role, frame: int) -> Segment:
        is_target = role is Role.ACTION
        return Segment(
            role=role,
            order=2 * (frame // frames_per_chunk) + 1,
            num_tokens=actions_per_frame,
            start=frame * actions_per_frame,
            first_frame=frame,
            rotary=Rotary.FRAME,
            noised=is_target,
            time=frames + frame,
            has_loss=is_target,
        )

    segments = [
        *(video(role, frame) for role in (Role.NOISY_VIDEO, Role.CLEAN_VIDEO) for frame in range(frames)),
        *(actions(role, frame) for role in (Role.ACTION, Role.CLEAN_ACTION) for frame in range(frames)),
    ]
    return Layout(tuple(segments), _visibility(window_orders))


def _visibility(window_orders: int) -> Visibility:
    clean: Relation = window(window_orders) if window_orders else UP_TO
    past: Relation = window_before(window_orders) if window_orders else BEFORE
    kept, targets = (Role.CLEAN_VIDEO, Role.CLEAN_ACTION), (Role.NOISY_VIDEO, Role.ACTION)
    return (
        {(query, key): clean for query in kept for key in kept}
        | {(query, key): past for query in targets for key in kept}
        | {(role, role): SAME for role in targets}
    )
