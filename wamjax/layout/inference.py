"""What is computed to act: the passes over a layout's segments, stage by stage, and what a cache holds between them.

A chunk is what a policy denoises before it looks again: a block of ``joint``, a chunk of ``alternating``, the whole
clip of ``first_frame``. It takes one stage where video and actions are denoised together or actions alone, and two
where actions are read from video that is denoised first. Which keys a stage finds follows from the order in which the
cache is filled; who sees whom stays the layout's. ``plan`` has neither stages nor a cache (``sampling.plan_policy``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout.layout import Layout, Pass
from wamjax.layout.segments import Role, Segment

_CONTEXT = (Role.CLEAN_VIDEO, Role.CLEAN_ACTION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What is denoised together.

    Attributes:
      name: ``video``, ``actions``, or ``video_actions``.
      denoise: The pass that every solver step runs.
      copy: The pass that then computes clean tokens of what was denoised, for the cache of the next stage; None where
        no later stage reads it.
      num_held: Leading segments of every denoised stream that are known and stay as they are: the observed frame of an
        alternating clip's first chunk, and the actions before it.
    """

    name: str
    denoise: Pass
    copy: Pass | None = None
    num_held: int = 0

    @property
    def denoised(self) -> tuple[Role, ...]:
        """Roles that are denoised."""
        return tuple(dict.fromkeys(s.role for s in self.denoise.segments if s.has_loss))

    def held_tokens(self, role: Role) -> int:
        """Leading tokens of ``role`` that stay as they are."""
        stream = [s for s in self.denoise.segments if s.role is role]
        return sum(s.num_tokens for s in stream[: self.num_held])

    def noised_slots(self, role: Role) -> tuple[int, ...]:
        """Timestep slots that carry the solver's time of ``role``; those of no denoised role are clean."""
        stream = [s for s in self.denoise.segments if s.role is role]
        return tuple(sorted({s.timestep_slot for s in stream[self.num_held :]}))


def text_segments(layout: Layout) -> tuple[Segment, ...]:
    """Returns the tokens of a language tower, which are computed once for all chunks; empty without one."""
    return layout.stream(Role.TEXT)


def context_segments(config: RunConfig, layout: Layout, chunk: int) -> tuple[Segment, ...]:
    """Returns what the cache holds when ``chunk`` (from 0) is denoised, in the order of time, text first."""
    limit = {"joint": chunk + 1, "alternating": 2 * chunk, "first_frame": 1, "plan": 0}[_formulation(config)]
    known = [s for s in layout.segments if s.role in _CONTEXT and s.order < limit]
    return (*text_segments(layout), *_in_time(known))


def acting_stages(config: RunConfig, layout: Layout, chunk: int, *, imagine: bool = False) -> tuple[Stage, ...]:
    """Returns the stages that denoise ``chunk`` (from 0).

    Args:
      config: The run.
      layout: Its layout.
      chunk: Which chunk of the window.
      imagine: Whether video that actions do not need is denoised as well, last, to be looked at.

    Raises:
      ConfigError: The formulation has no stages of this kind.
    """
    formulation, sizes = _formulation(config), config.layout
    if formulation == "plan":
        return ()
    past = context_segments(config, layout, chunk)

    def make(name: str, denoised: Iterable[Segment], copied: Iterable[Segment] = (), held: int = 0) -> Stage:
        segments, copies = tuple(denoised), _in_time(copied)
        copy = layout.make_pass(copies, past) if copies else None
        return Stage(name=name, denoise=layout.make_pass(segments, past), copy=copy, num_held=held)

    if formulation == "joint":
        own = [s for s in layout.segments if s.order == chunk + 1 and s.role in _TOGETHER]
        return (make("video_actions", own),)
    if formulation == "alternating":
        held = int(chunk == 0)
        frames = [s for s in layout.stream(Role.NOISY_VIDEO) if s.order == 2 * chunk]
        clean = [s for s in layout.stream(Role.CLEAN_VIDEO) if s.order == 2 * chunk]
        first = make("video", frames, clean, held)
        past = (*past, *clean)
        return first, make("actions", [s for s in layout.stream(Role.ACTION) if s.order == 2 * chunk + 1], held=held)
    frames, actions = layout.stream(Role.NOISY_VIDEO), layout.stream(Role.ACTION)
    if sizes.family == "joint":
        return (make("video_actions", (*frames, *actions)),)
    if sizes.family == "representation":
        return (make("actions", actions), *((make("video", frames),) if imagine else ()))
    clip = layout.stream(Role.CONDITION_VIDEO)
    first = make("video", frames, clip)
    past = (*past, *clip)
    return first, make("actions", actions)


def policy_passes(layout: Layout) -> tuple[Pass, Pass]:
    """Returns the pass of what a vision-language-action model reads, and of its actions with that in the cache."""
    actions = layout.stream(Role.ACTION)
    prefix = tuple(s for s in layout.segments if s.role is not Role.ACTION)
    return layout.make_pass(prefix, ()), layout.make_pass(actions, prefix)


def answer_pass(layout: Layout) -> Pass:
    """Returns the pass that answers the queries for actions alone, without queries for frames and without padding."""
    return layout.make_pass([s for s in layout.segments if s.role in (Role.OBSERVATION, Role.ACTION)], ())


_TOGETHER = (Role.NOISY_VIDEO, Role.ACTION, Role.STATE)


def _formulation(config: RunConfig) -> str:
    formulation = config.layout.formulation
    if formulation not in ("joint", "alternating", "first_frame", "plan"):
        raise ConfigError(
            f"config.layout.formulation={formulation} has no chunks of actions to denoise; joint, alternating, "
            "first_frame and plan have"
        )
    return formulation


def _in_time(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Returns ``segments`` in the order of time, equal ones as they stand."""
    return tuple(sorted(segments, key=lambda s: s.order))
