"""Formulations: how each published system cuts a sample into segments, as data.

A formulation is a function from sizes to a ``Layout``. ``build_layout`` picks one from a configuration.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

from wamjax.config.clip import patch_grid, token_grid
from wamjax.config.geometry import derive_geometry
from wamjax.config.gpt import GptPolicyConfig
from wamjax.config.schema import RunConfig
from wamjax.config.vla import VlaConfig
from wamjax.errors import ConfigError
from wamjax.layout.alternating import alternating_layout
from wamjax.layout.first_frame import first_frame_layout
from wamjax.layout.layout import Layout
from wamjax.layout.plan import decoder_layout, plan_layout
from wamjax.layout.policy import policy_layout, query_layout
from wamjax.layout.segments import ACTION_ROLES, ALL, BEFORE, CAUSAL, SAME, UP_TO, Role, Rotary, Segment, Visibility
from wamjax.layout.windows import check_recurrence

JOINT_VISIBILITY: Visibility = {
    (Role.CLEAN_VIDEO, Role.CLEAN_VIDEO): UP_TO,
    (Role.NOISY_VIDEO, Role.CLEAN_VIDEO): BEFORE,
    (Role.NOISY_VIDEO, Role.NOISY_VIDEO): SAME,
    (Role.NOISY_VIDEO, Role.ACTION): SAME,
    (Role.NOISY_VIDEO, Role.STATE): SAME,
    (Role.ACTION, Role.CLEAN_VIDEO): BEFORE,
    (Role.ACTION, Role.NOISY_VIDEO): SAME,
    (Role.ACTION, Role.ACTION): SAME,
    (Role.ACTION, Role.STATE): SAME,
    (Role.STATE, Role.STATE): SAME,
}


def joint_layout(
    *,
    num_blocks: int,
    frames_per_block: int,
    grid: tuple[int, int],
    actions_per_block: int,
    states_per_block: int,
    noisy_first_frame: bool = True,
    clean_last_block: bool = True,
    order: Literal["natural", "grouped"] = "natural",
    pad_multiple: int = 1,
    pad_unit: int = 1,
    token_causal_context: bool = False,
    own_action_times: bool = False,
) -> Layout:
    """Returns DreamZero's layout: video and actions denoised together, with teacher forcing.

    Every frame appears clean (context) and noisy (target). A block's noisy frames and actions see the clean frames
    of earlier blocks and, within their block, each other and the state.

    Args:
      num_blocks: Temporal blocks after the first frame.
      frames_per_block: Latent frames of one block.
      grid: Rows and columns of tokens in one latent frame.
      actions_per_block: Action tokens of one block; 0 leaves the stream out.
      states_per_block: State tokens of one block; 0 leaves the stream out.
      noisy_first_frame: Whether the first frame also appears noisy.
      clean_last_block: Whether the last block also appears clean; nothing looks at it there.
      order: ``natural`` is clean | noisy | actions | states; ``grouped`` puts what one block denoises together.
      pad_multiple: Padding tokens are appended up to a multiple of this.
      pad_unit: Padding follows every unit (as ``LayoutConfig`` says), so that a kernel's blocks end where units do.
      token_causal_context: Clean video after the first frame sees clean video token by token instead of block by
        block, as DreamZero's released kernel does.
      own_action_times: Whether actions have a timestep apart from their block's video (DreamZero-Flash).

    Source: DreamZero, arXiv 2602.15922, and its released code.
    """
    if num_blocks < 1 or frames_per_block < 1:
        raise ValueError(f"num_blocks={num_blocks} and frames_per_block={frames_per_block} must both be 1 or more")

    def video(role: Role, block: int) -> Segment:
        return _frames_of_block(role, block, frames_per_block, grid, noisy_first_frame=noisy_first_frame)

    def vector(role: Role, block: int, count: int) -> list[Segment]:
        noised = role is Role.ACTION
        start = (block - 1) * count
        time = num_blocks + block if own_action_times else None
        own = {"order": block, "num_tokens": count, "start": start, "noised": noised, "has_loss": noised}
        return [Segment(role=role, time=time, **own)] if count else []

    blocks = range(1, num_blocks + 1)
    clean = [video(Role.CLEAN_VIDEO, b) for b in range(num_blocks + clean_last_block)]
    noisy = [[video(Role.NOISY_VIDEO, b)] for b in range(0 if noisy_first_frame else 1, num_blocks + 1)]
    actions = [vector(Role.ACTION, b, actions_per_block) for b in blocks]
    states = [vector(Role.STATE, b, states_per_block) for b in blocks]
    if order == "grouped":
        grouped = [
            [s for part in unit for s in part] for unit in zip(noisy[-num_blocks:], actions, states, strict=True)
        ]
        units = [*([segment] for segment in clean), *noisy[:-num_blocks], *grouped]
    else:
        units = [*([segment] for segment in clean), *noisy, *actions, *states]
    segments = _padded(units, pad_unit, pad_multiple)
    visibility = dict(JOINT_VISIBILITY)
    if token_causal_context:
        visibility[Role.CLEAN_VIDEO, Role.CLEAN_VIDEO] = CAUSAL
    return Layout(tuple(segments), visibility)


def _frames_of_block(
    role: Role, block: int, frames_per_block: int, grid: tuple[int, int], *, noisy_first_frame: bool
) -> Segment:
    """Returns the frames of one block of the joint layout; block 0 is the first frame."""
    per_frame = grid[0] * grid[1]
    first_frame, frames = (1 + (block - 1) * frames_per_block, frames_per_block) if block else (0, 1)
    skipped = 1 if role is Role.NOISY_VIDEO and not noisy_first_frame else 0
    noisy = role is Role.NOISY_VIDEO
    return Segment(
        role=role,
        order=block,
        num_tokens=frames * per_frame,
        start=(first_frame - skipped) * per_frame,
        grid=(frames, *grid),
        first_frame=first_frame,
        rotary=Rotary.VIDEO,
        noised=noisy,
        has_loss=noisy,
        is_whole=not block,
    )


def video_layout(grid: tuple[int, int, int], pad_multiple: int = 1) -> Layout:
    """Returns the layout of a plain video model: one noisy clip of ``grid`` (frames, rows, columns), all seeing all.

    Padding tokens are appended up to a multiple of ``pad_multiple``.
    """
    clip = Segment(
        role=Role.NOISY_VIDEO,
        order=0,
        num_tokens=grid[0] * grid[1] * grid[2],
        grid=grid,
        rotary=Rotary.VIDEO,
        noised=True,
        has_loss=True,
    )
    return Layout((clip, *_padding((clip,), pad_multiple, ())), {(Role.NOISY_VIDEO, Role.NOISY_VIDEO): ALL})


@functools.lru_cache(maxsize=32)
def build_layout(config: RunConfig) -> Layout:
    """Returns the layout that ``config`` describes, the same object for equal configurations."""
    layout = _build_layout(config)
    check_recurrence(config, layout)
    return layout


def _build_layout(config: RunConfig) -> Layout:
    sizes = config.layout
    if config.vla is not None:
        return _policy(config, config.vla)
    if config.gpt is not None:
        return _queries(config, config.gpt)
    if config.backbone is not None and sizes.is_plain_clip:
        return video_layout(token_grid(config), sizes.pad_multiple)
    if sizes.formulation == "plan":
        layout = plan_layout(
            frames=1 + sizes.frames_per_block, grid=_one_clip(config), num_states=sizes.states_per_block
        )
        return _padded_end(layout, sizes.pad_multiple)
    layout = {"joint": _joint, "alternating": _alternating, "first_frame": _first_frame}[sizes.formulation](config)
    if config.actions.modules == "expert":
        vectors = (*ACTION_ROLES, Role.STATE)
        layout = layout.with_experts({role: "action" if role in vectors else "video" for role in layout.roles})
    if config.prefix.width:
        return layout.with_prefix(config.clip.text_tokens, is_causal=config.prefix.is_causal)
    return layout


def _joint(config: RunConfig) -> Layout:
    sizes = config.layout
    grid = derive_geometry(config).grid if config.backbone is None else _frame_grid(config, first=1)
    return joint_layout(
        num_blocks=sizes.num_blocks,
        frames_per_block=sizes.frames_per_block,
        grid=grid,
        actions_per_block=sizes.actions_per_block,
        states_per_block=sizes.states_per_block,
        noisy_first_frame=sizes.noisy_first_frame,
        clean_last_block=sizes.clean_last_block,
        order=sizes.order,
        pad_multiple=sizes.pad_multiple,
        pad_unit=sizes.pad_unit,
        token_causal_context=sizes.clean_context == "token_causal",
        own_action_times=sizes.action_times == "own",
    )


def _alternating(config: RunConfig) -> Layout:
    sizes = config.layout
    grid = _frame_grid(config, first=0)
    if sizes.actions_per_block % sizes.frames_per_block:
        raise ConfigError(
            f"config.layout.actions_per_block={sizes.actions_per_block} does not divide over the chunk's "
            f"frames_per_block={sizes.frames_per_block} latent frames"
        )
    layout = alternating_layout(
        num_chunks=sizes.num_blocks,
        frames_per_chunk=sizes.frames_per_block,
        grid=grid,
        actions_per_frame=sizes.actions_per_block // sizes.frames_per_block,
        window_orders=sizes.window,
        noisy_history=config.objective.history_noise > 0,
    )
    return _padded_end(layout, sizes.pad_multiple)


def _first_frame(config: RunConfig) -> Layout:
    sizes = config.layout
    layout = first_frame_layout(
        frames=1 + sizes.frames_per_block,
        grid=_one_clip(config),
        num_actions=sizes.actions_per_block,
        family=sizes.family,
        noisy_condition=config.objective.history_noise > 0,
    )
    return _padded_end(layout, sizes.pad_multiple)


def build_decoder_layout(config: RunConfig) -> Layout:
    """Returns the layout of what actions of formulation ``plan`` are decoded from."""
    sizes = config.layout
    return decoder_layout(
        grid=_one_clip(config), num_states=sizes.states_per_block, num_actions=sizes.actions_per_block
    )


def _policy(config: RunConfig, vla: VlaConfig) -> Layout:
    sizes = config.layout
    if sizes.formulation != "policy" or (sizes.num_blocks, sizes.states_per_block) != (1, 0):
        raise ConfigError(
            f"config.layout.formulation={sizes.formulation}, num_blocks={sizes.num_blocks}, "
            f"states_per_block={sizes.states_per_block}; config.vla needs formulation=policy, one block of actions and "
            "no states (they are written in the prompt): set them to policy, 1 and 0"
        )
    if sizes.pad_multiple != 1 or sizes.pad_unit != 1:
        raise ConfigError(
            f"config.layout.pad_multiple={sizes.pad_multiple}, pad_unit={sizes.pad_unit}; formulation policy is not "
            "padded: set both to 1"
        )
    return policy_layout(
        image_tokens=vla.image_tokens, text_tokens=vla.text_tokens, num_actions=sizes.actions_per_block
    )


def _queries(config: RunConfig, gpt: GptPolicyConfig) -> Layout:
    sizes = config.layout
    if sizes.formulation != "queries" or (sizes.actions_per_block, sizes.states_per_block) != (1, 1):
        raise ConfigError(
            f"config.layout.formulation={sizes.formulation}, actions_per_block={sizes.actions_per_block}, "
            f"states_per_block={sizes.states_per_block}; config.gpt needs formulation=queries, one action and one "
            "state a block, which is a step: set them to queries, 1 and 1"
        )
    if sizes.num_blocks <= gpt.ahead:
        raise ConfigError(
            f"config.layout.num_blocks={sizes.num_blocks} steps hold no frame config.gpt.ahead={gpt.ahead} steps "
            "after another; make num_blocks larger"
        )
    layout = query_layout(
        steps=sizes.num_blocks,
        observed=gpt.observed_tokens,
        asked=gpt.num_views * gpt.view_tokens,
        ahead=gpt.ahead,
    )
    return _padded_end(layout, sizes.pad_multiple)


def _one_clip(config: RunConfig) -> tuple[int, int]:
    """Returns the rows and columns of tokens in a latent frame of a sample that is one clip and not blocks.

    Raises:
      ConfigError: It is several blocks, or the frames are not the clip's.
    """
    grid, sizes = _frame_grid(config, first=1), config.layout
    if sizes.num_blocks != 1:
        raise ConfigError(
            f"config.layout.num_blocks={sizes.num_blocks}; config.layout.formulation={sizes.formulation} has one clip "
            "as a whole: set num_blocks=1 and frames_per_block to its latent frames after the first"
        )
    return grid


def _frame_grid(config: RunConfig, first: int) -> tuple[int, int]:
    """Returns the rows and columns of tokens in a latent frame of ``config.clip``, whose frames fill the blocks.

    ``first`` is 1 where a first frame precedes the blocks, else 0.

    Raises:
      ConfigError: They do not.
    """
    frames, *grid = patch_grid(config)
    sizes = config.layout
    needed = first + sizes.num_blocks * sizes.frames_per_block
    if frames != needed:
        raise ConfigError(
            f"config.clip.num_frames={config.clip.num_frames} is {frames} latent frames; "
            f"{'one frame and ' if first else ''}config.layout.num_blocks={sizes.num_blocks} blocks of "
            f"frames_per_block={sizes.frames_per_block} are {needed}"
        )
    return grid[0], grid[1]


def _padded_end(layout: Layout, pad_multiple: int) -> Layout:
    return Layout((*layout.segments, *_padding(layout.segments, pad_multiple, ())), layout.visibility)


def _padded(units: Sequence[Sequence[Segment]], pad_unit: int, pad_multiple: int) -> list[Segment]:
    """Returns the segments of ``units`` with padding after every unit and at the end."""
    segments: list[Segment] = []
    for unit in units:
        segments.extend((*unit, *_padding(unit, pad_unit, segments)))
    segments.extend(_padding(segments, pad_multiple, segments))
    return segments


def _padding(segments: Sequence[Segment], multiple: int, before: Sequence[Segment]) -> tuple[Segment, ...]:
    """Returns the padding that completes ``segments`` to a multiple of so many tokens, if any.

    ``before`` has all padding that comes earlier in the sequence.
    """
    missing = -sum(s.num_tokens for s in segments) % multiple
    start = sum(s.num_tokens for s in before if s.role is Role.PADDING)
    return (Segment(role=Role.PADDING, order=0, num_tokens=missing, start=start),) if missing else ()
