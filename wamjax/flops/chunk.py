"""FLOPs of one action chunk: what a policy computes between an observation and the actions that answer it.

Counted from the passes of the layout (``layout.inference``) as a training step is: matrix products alone, every solver
step that runs the model, guidance twice. Frozen encoders are not in it (``flops.codec``). Text is
embedded, and its keys and values projected, in every pass, as the policies do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wamjax.config.acting import check_acting
from wamjax.config.schema import RunConfig
from wamjax.config.systems import check_has_actions, keeps_cache
from wamjax.config.two_stage import check_stages
from wamjax.errors import ConfigError
from wamjax.flops.backbone import Anatomy, Work, needed_attention, tally_model
from wamjax.flops.execution import Execution, executed_attention
from wamjax.flops.inverse_dynamics import tally_pairs
from wamjax.flops.model import count_flops, layer_schedules, needed_recurrence
from wamjax.flops.plans import tally_decoder, tally_plans
from wamjax.flops.queries import tally_queries
from wamjax.flops.stacks import find_anatomies, find_vision
from wamjax.layout import ACTION_ROLES, VIDEO_ROLES, Layout, Pass, Role, build_layout, present_segments
from wamjax.layout.inference import acting_stages, answer_pass, context_segments, policy_passes, text_segments


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkFlops:
    """FLOPs of one sample's chunk, and of what it needs before.

    Attributes:
      reset: Of a language tower, once for all chunks; 0 without one.
      observe: Of what the newest observation adds to the cache: clean tokens, or pictures and a prompt.
      stages: By stage, its solver steps: ``video``, ``actions``, ``video_actions``; and ``copy``, the clean tokens of
        video that actions are read from. Of latent plans ``plan``, the prior's, and ``actions``, the decoder. Of two
        models ``inverse_dynamics``, what reads actions off a clip.
      evaluations: Passes of the model by stage; guidance counts as one.
    """

    reset: int
    observe: int
    stages: Mapping[str, int]
    evaluations: Mapping[str, int]

    @property
    def denoise(self) -> int:
        """FLOPs between the filled cache and the actions."""
        return sum(self.stages.values())

    @property
    def total(self) -> int:
        """FLOPs of a chunk, from observation to actions."""
        return self.observe + self.denoise


def count_chunk(config: RunConfig, chunk: int | None = None, *, is_executed: bool = False) -> ChunkFlops:
    """Returns the FLOPs of one chunk of the policy of ``config``.

    Args:
      config: A run that acts, not of the small model.
      chunk: Which chunk of the window, from 0; None for the last one, which looks back on most.
      is_executed: Whether to count what one device in plain XLA executes, the rectangles of its attention whole; the
        walk over the jaxpr of a policy's ``denoise`` finds exactly this in ``stages``.

    Raises:
      ConfigError: The formulation does not act, not as ``config.sampling`` says, or has no such chunk.
    """
    check_has_actions(config)
    check_acting(config)
    layout, sampling = build_layout(config), config.sampling
    if config.vla is not None:
        return _count_policy(config, layout, is_executed=is_executed)
    if config.gpt is not None:
        return _count_queries(config, layout, is_executed=is_executed)
    if config.layout.formulation == "latent_frames":
        count = count_flops(config, layout)
        once = sum(count.hardware_forward.values()) if is_executed else count.forward_total
        return ChunkFlops(
            reset=0, observe=0, stages={"video_actions": sampling.steps * once},
            evaluations={"video_actions": sampling.steps},
        )  # fmt: skip
    last = config.layout.num_blocks - 1
    place = last if chunk is None else chunk
    if not 0 <= place <= last:
        raise ConfigError(f"chunk {place} of config.layout.num_blocks={config.layout.num_blocks}; count from 0")

    if config.layout.formulation == "plan":
        return _count_plan(config, layout, is_executed=is_executed)
    is_cached = keeps_cache(config)

    def cost(layout_pass: Pass) -> int:
        if not is_cached:  # what is known is computed in every pass
            layout_pass = layout.make_pass((*layout_pass.past, *layout_pass.segments), ())
        return pass_flops(config, layout, layout_pass, is_executed=is_executed)

    rows = 2 if sampling.guidance != 1 or sampling.action_guidance != 1 else 1
    stages, evaluations = {}, {}
    for row, stage in enumerate(acting_stages(config, layout, place)):
        scales = {Role.NOISY_VIDEO: sampling.guidance, Role.ACTION: sampling.action_guidance}
        is_guided = any(scales[role] != 1 for role in stage.denoised)
        steps = len(sampling.evaluated_steps) or sampling.steps
        if row:
            steps = sampling.action_steps or sampling.steps
        stages[stage.name] = steps * (2 if is_guided else 1) * cost(stage.denoise)
        evaluations[stage.name] = steps
        if stage.copy is not None and is_cached:
            stages["copy"] = rows * cost(stage.copy)
    tower = text_segments(layout) if is_cached else ()
    before = context_segments(config, layout, place - 1) if place else tower
    newest = context_segments(config, layout, place)[len(before) :] if is_cached else ()
    return ChunkFlops(
        reset=rows * cost(layout.make_pass(tower, ())) if tower else 0,
        observe=rows * cost(layout.make_pass(newest, before)) if newest else 0,
        stages=stages,
        evaluations=evaluations,
    )


def _count_policy(config: RunConfig, layout: Layout, *, is_executed: bool) -> ChunkFlops:
    """Returns the FLOPs of ``sampling.action_policy``: the prefix, and then steps of the actions alone."""
    read, denoise = policy_passes(layout)
    steps = config.sampling.steps
    return ChunkFlops(
        reset=0,
        observe=pass_flops(config, layout, read, is_executed=is_executed),
        stages={"actions": steps * pass_flops(config, layout, denoise, is_executed=is_executed)},
        evaluations={"actions": steps},
    )


def _count_queries(config: RunConfig, layout: Layout, *, is_executed: bool) -> ChunkFlops:
    """Returns the FLOPs of ``sampling.queries_policy``: one pass over all steps, without frames."""
    assert config.gpt is not None, "queries are of a GPT"
    own = Layout(answer_pass(layout).segments, layout.visibility)
    total = tally_queries(config, config.gpt, own, Execution() if is_executed else None)
    return ChunkFlops(
        reset=0, observe=0, stages={"actions": sum(total.forward.values())}, evaluations={"actions": 1}
    )  # fmt: skip


def _count_plan(config: RunConfig, layout: Layout, *, is_executed: bool) -> ChunkFlops:
    """Returns the FLOPs of a chunk of a latent plan: a prior of the present, and actions decoded once."""
    present, execution = layout.make_pass(present_segments(layout), ()), Execution() if is_executed else None
    video = find_anatomies(config)["shared"]
    work = _pass_work(config, layout, present, "shared", video, is_executed=is_executed)
    whole = sum(tally_plans(config, work, execution, inferred=(Role.PRIOR,)).forward.values())
    decoded = sum(tally_decoder(config, execution).forward.values())
    return ChunkFlops(
        reset=0,
        observe=0,
        stages={"plan": whole - decoded, "actions": decoded},
        evaluations={"plan": 1, "actions": 1},
    )


def count_two_stages(video: RunConfig, inverse: RunConfig, *, is_executed: bool = False) -> ChunkFlops:
    """Returns the FLOPs of one chunk of two models: a clip of ``video``, and the actions ``inverse`` reads off it.

    Args:
      video: A run that generates clips from a frame and a prompt.
      inverse: A run of an inverse-dynamics model.
      is_executed: As for ``count_chunk``; the walk over the jaxprs of ``TwoStagePolicy.denoise`` and ``read``.

    Raises:
      ConfigError: The two make no system.
    """
    check_stages(video, inverse)
    count, sampling = count_flops(video, build_layout(video)), video.sampling
    once = sum(count.hardware_forward.values()) if is_executed else count.forward_total
    steps = len(sampling.evaluated_steps) or sampling.steps
    pairs = tally_pairs(inverse, num_pairs=video.clip.num_frames - 1)
    return ChunkFlops(
        reset=0,
        observe=0,
        stages={
            "video": steps * (2 if sampling.guidance != 1 else 1) * once,
            "inverse_dynamics": sum(pairs.forward.values()),
        },
        evaluations={"video": steps, "inverse_dynamics": 1},
    )


def pass_flops(config: RunConfig, layout: Layout, layout_pass: Pass, *, is_executed: bool = False) -> int:
    """Returns the forward FLOPs of one pass of stacks that attend together, for one sample.

    A pass of a vision-language-action model's pictures has those of its vision tower.

    Args:
      config: The run.
      layout: Its layout.
      layout_pass: What is computed; keys of the past cost their scores alone.
      is_executed: As for ``count_chunk``.
    """
    anatomies = find_anatomies(config)
    stacks = [
        (anatomies[name], _pass_work(config, layout, layout_pass, name, anatomies[name], is_executed=is_executed))
        for name in layout_pass.experts
    ]
    # The state is made a text token once, by whichever stack is first.
    states = _text_states(config) if any(name != "prefix" for name in layout_pass.experts) else 0
    own = [row for row, name in enumerate(layout_pass.experts) if name != "prefix"][:1]
    for row in own:
        stacks[row] = stacks[row][0], dataclasses.replace(stacks[row][1], text_states=states)
    has_pictures = any(s.role is Role.IMAGE for s in layout_pass.segments)
    vision = find_vision(config, is_executed=is_executed) if has_pictures else None
    return sum(tally_model(stacks, config.finetune, is_executed=is_executed, vision=vision).forward.values())


def _text_states(config: RunConfig) -> int:
    return config.layout.states_per_block if config.actions.modules == "expert" else 0


def _pass_work(
    config: RunConfig, layout: Layout, layout_pass: Pass, expert: str, anatomy: Anatomy, *, is_executed: bool
) -> Work:
    """Returns what goes through the stack of ``expert`` in a pass."""
    backbone, own = config.backbone, layout_pass.of_expert(expert)

    def count(*roles: Role) -> int:
        return sum(s.num_tokens for s in own.segments if s.role in roles)

    reads_text = anatomy.block.cross_attention
    text = config.clip.text_tokens + _text_states(config) if reads_text else 0
    is_first = expert in ("shared", "video")
    image = config.clip.image_tokens if is_first and reads_text and backbone and backbone.image_width is not None else 0
    slots = [len({s.timestep_slot for s in own.segments if s.role in roles}) for roles in (VIDEO_ROLES, ACTION_ROLES)]
    has_own_times = config.actions.modules == "linear" and expert == "shared"
    attention = tuple(
        executed_attention(
            config.parallel,
            layer,
            schedule,
            text,
            image,
            Execution(),
            tokens=own.num_tokens,
            masks_text=backbone is not None and config.clip.masks_text,
            recurrent_tokens=own.num_tokens,
        )
        if is_executed
        else needed_attention(
            own.num_tokens, schedule.num_pairs, text, image, recurrence=needed_recurrence(layer, own.num_tokens)
        )
        for layer, schedule in zip(anatomy.block.layers, layer_schedules(config, layout_pass), strict=True)
    )
    num_slots = layout.num_slots if config.actions.modules == "category" else slots[0] + slots[1] * (not has_own_times)
    return Work(
        tokens=own.num_tokens,
        patches=count(*VIDEO_ROLES),
        predicted=count(Role.NOISY_VIDEO),
        text=text,
        image=image,
        slots=0 if expert == "prefix" else num_slots,
        attention=attention,
        actions=count(*ACTION_ROLES),
        states=count(Role.STATE),
        decoded=count(Role.ACTION),
        action_slots=slots[1] if has_own_times else 0,
        prefix=count(Role.IMAGE, Role.TEXT),
    )
