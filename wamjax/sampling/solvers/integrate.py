"""Integrates from noise to data along a schedule, as one scan; or parts of a sample side by side, along one each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.errors import ConfigError
from wamjax.sampling.solvers.adams import AdamsFactors, adams_factors
from wamjax.sampling.solvers.schedule import Schedule
from wamjax.sampling.solvers.unipc import Factors, Sample, State, init_state, unipc_factors, unipc_step

Velocity = Callable[[Sample, Any], Sample]
Schedules = Schedule | Mapping[Any, Schedule]


class Step(NamedTuple):
    """What one step is told: fp32 ``[n]`` of all, or scalars of one inside a scan.

    Attributes:
      time: What the model is told.
      sigma: Level before the step.
      next_sigma: Level after it.
      factors: Of ``unipc`` or ``adams``; None of ``euler``.
    """

    time: Any
    sigma: Any
    next_sigma: Any
    factors: Factors | AdamsFactors | None


class AdamsState(NamedTuple):
    """What a step of ``adams`` hands to the next.

    Attributes:
      sample: The sample at the current level.
      before: Denoised sample of the step before.
    """

    sample: Sample
    before: Sample


class EulerState(NamedTuple):
    """What a step of ``euler`` hands to the next: the sample at the current level."""

    sample: Sample


def sample_reusing(velocity: Velocity, noise: Sample, schedule: Schedules, evaluated: Sequence[int]) -> Sample:
    """Draws a sample as ``sample`` does, running the model at some steps alone.

    At the others the velocity of the last such step stands: the solver moves on, the model does not run.

    Args:
      velocity: As for ``sample``.
      noise: As for ``sample``.
      schedule: As for ``sample``.
      evaluated: Ascending indices of the steps at which the model runs; the first is 0.

    Source: DreamZero's released code, ``dit_step_mask``.
    """
    bounds = [*evaluated, _num_steps(schedule)]
    longest = max(after - before for before, after in itertools.pairwise(bounds))
    # One row of steps for each evaluation; what fills a row up is not taken.
    rows = np.asarray(evaluated)[:, None] + np.arange(longest)
    is_taken = rows < np.asarray(bounds[1:])[:, None]
    rows = np.minimum(rows, bounds[-1] - 1)
    steps = jax.tree.map(lambda column: column[rows], jax.tree.map(_steps, schedule))

    def evaluate(states: Any, row: tuple[Any, Any]) -> tuple[Any, None]:
        own, taken = row
        times = jax.tree.map(lambda _, step: step.time[0], schedule, own)
        held = velocity(_samples(schedule, states), times)

        def step(states: Any, now: tuple[Any, Any]) -> tuple[Any, None]:
            step, is_taken = now
            moved = _move(schedule, states, held, step)
            return jax.tree.map(lambda new, old: jnp.where(is_taken, new, old), moved, states), None

        return jax.lax.scan(step, states, (own, taken))[0], None

    states = jax.tree.map(_begin, schedule, noise)
    return _samples(schedule, jax.lax.scan(evaluate, states, (steps, jnp.asarray(is_taken)))[0])


def sample(velocity: Velocity, noise: Sample, schedule: Schedules, *, trajectory: bool = False) -> Sample:
    """Draws a sample.

    Args:
      velocity: (sample, scalar time of ``schedule.times``) -> dx/dsigma of the same structure: noise - x_0 of a flow,
        ``denoiser_velocity`` of EDM. What is held fixed (a first frame) is put into the sample here. Times are by part
        where ``schedule`` is.
      noise: Standard normal, an array or a pytree of arrays; the result is fp32.
      schedule: Levels and method; or, by part of a sample that is a dict, those of each, with equal numbers of steps.
      trajectory: Whether every level's sample is returned, the first being the noise.

    Returns:
      The sample at the last level, or ``[n + 1, ...]`` of all.

    Raises:
      ConfigError: Parts have other numbers of steps.
    """
    _num_steps(schedule)
    states = jax.tree.map(_begin, schedule, noise)
    first = _samples(schedule, states)

    def advance(states: Any, step: Any) -> tuple[Any, Sample | None]:
        times = jax.tree.map(lambda _, own: own.time, schedule, step)
        states = _move(schedule, states, velocity(_samples(schedule, states), times), step)
        return states, _samples(schedule, states) if trajectory else None

    states, kept = jax.lax.scan(advance, states, jax.tree.map(_steps, schedule))
    if not trajectory:
        return _samples(schedule, states)
    return jax.tree.map(lambda start, rest: jnp.concatenate([start[None], rest]), first, kept)


def euler_step(sample: Sample, velocity: Sample, sigma: jax.Array, next_sigma: jax.Array) -> Sample:
    """Returns ``x + (sigma' - sigma) v``."""
    return jax.tree.map(lambda x, v: x + (next_sigma - sigma) * v, sample, velocity)


def _num_steps(schedule: Schedules) -> int:
    counts = {own.num_steps for own in jax.tree.leaves(schedule)}
    if len(counts) != 1:
        raise ConfigError(f"parts of a sample are to be drawn in {sorted(counts)} steps; expected the same of all")
    return counts.pop()


def _steps(schedule: Schedule) -> Step:
    """Returns all steps of a schedule."""
    make = {"unipc": unipc_factors, "adams": adams_factors}.get(schedule.method)
    factors = None if make is None else jax.tree.map(jnp.asarray, make(schedule.sigmas))
    sigmas = jnp.asarray(schedule.sigmas)
    return Step(jnp.asarray(schedule.times), sigmas[:-1], sigmas[1:], factors)


def _begin(schedule: Schedule, noise: Sample) -> State | AdamsState | EulerState:
    first = jax.tree.map(lambda x: schedule.noise_scale * jnp.asarray(x, jnp.float32), noise)
    if schedule.method == "unipc":
        return init_state(first)
    return AdamsState(first, first) if schedule.method == "adams" else EulerState(first)


def _samples(schedule: Schedules, states: Any) -> Sample:
    return jax.tree.map(lambda _, state: state.sample, schedule, states)


def _move(schedule: Schedules, states: Any, velocity: Sample, step: Any) -> Any:
    """Takes one step of every part."""

    def move(_: Schedule, state: State | AdamsState | EulerState, velocity: Sample, step: Step) -> Any:
        if isinstance(state, State):
            assert isinstance(step.factors, Factors), "of the same method"
            return unipc_step(state, velocity, step.factors)
        if isinstance(state, EulerState):
            return EulerState(euler_step(state.sample, velocity, step.sigma, step.next_sigma))
        factors = step.factors
        assert isinstance(factors, AdamsFactors), "of the same method"
        denoised = jax.tree.map(lambda a, v: a - step.sigma * v, state.sample, velocity)
        moved = jax.tree.map(
            lambda a, d, p: factors.decay * a + factors.own * d + factors.before * p,
            state.sample,
            denoised,
            state.before,
        )
        return AdamsState(moved, denoised)

    return jax.tree.map(move, schedule, states, velocity, step)
