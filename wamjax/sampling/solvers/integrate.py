"""Integrates from noise to data along a schedule, as one scan."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.sampling.solvers.adams import AdamsFactors, adams_factors
from wamjax.sampling.solvers.schedule import Schedule
from wamjax.sampling.solvers.unipc import Factors, Sample, State, init_state, unipc_factors, unipc_step

Velocity = Callable[[Sample, jax.Array], Sample]


def euler_step(sample: Sample, velocity: Sample, sigma: jax.Array, next_sigma: jax.Array) -> Sample:
    """Returns ``x + (sigma' - sigma) v``."""
    return jax.tree.map(lambda x, v: x + (next_sigma - sigma) * v, sample, velocity)


def sample_reusing(velocity: Velocity, noise: Sample, schedule: Schedule, evaluated: Sequence[int]) -> Sample:
    """Draws a sample as ``sample`` does, running the model at some steps alone.

    At the others the velocity of the last such step stands: the solver moves on, the model does not run.

    Args:
      velocity: As for ``sample``.
      noise: As for ``sample``.
      schedule: As for ``sample``.
      evaluated: Ascending indices of the steps at which the model runs; the first is 0.

    Source: DreamZero's released code, ``dit_step_mask``.
    """
    bounds = [*evaluated, schedule.num_steps]
    longest = max(after - before for before, after in itertools.pairwise(bounds))
    # One row of steps for each evaluation; what fills a row up is not taken.
    rows = np.asarray(evaluated)[:, None] + np.arange(longest)
    is_taken = rows < np.asarray(bounds[1:])[:, None]
    rows = np.minimum(rows, schedule.num_steps - 1)
    sigmas, times = jnp.asarray(schedule.sigmas), jnp.asarray(schedule.times)
    factors = None
    if schedule.method == "unipc":
        factors = jax.tree.map(lambda column: jnp.asarray(column)[rows], unipc_factors(schedule.sigmas))
    first = jax.tree.map(lambda x: schedule.noise_scale * jnp.asarray(x, jnp.float32), noise)

    def evaluate(state: State, row: tuple[Any, ...]) -> tuple[State, None]:
        time, levels, next_levels, taken, row_factors = row
        held = velocity(state.sample, time)

        def step(state: State, now: tuple[Any, ...]) -> tuple[State, None]:
            sigma, next_sigma, is_taken, step_factors = now
            if step_factors is None:
                moved = state._replace(sample=euler_step(state.sample, held, sigma, next_sigma))
            else:
                moved = unipc_step(state, held, step_factors)
            return jax.tree.map(lambda new, old: jnp.where(is_taken, new, old), moved, state), None

        return jax.lax.scan(step, state, (levels, next_levels, taken, row_factors))[0], None

    steps = (times[rows[:, 0]], sigmas[:-1][rows], sigmas[1:][rows], jnp.asarray(is_taken), factors)
    return jax.lax.scan(evaluate, init_state(first), steps)[0].sample


def sample(velocity: Velocity, noise: Sample, schedule: Schedule, *, trajectory: bool = False) -> Sample:
    """Draws a sample.

    Args:
      velocity: (sample, scalar time of ``schedule.times``) -> dx/dsigma of the same structure: noise - x_0 of a flow,
        ``denoiser_velocity`` of EDM. What is held fixed (a first frame) is put into the sample here.
      noise: Standard normal, an array or a pytree of arrays; the result is fp32.
      schedule: Levels and method.
      trajectory: Whether every level's sample is returned, the first being the noise.

    Returns:
      The sample at the last level, or ``[n + 1, ...]`` of all.
    """
    first = jax.tree.map(lambda x: schedule.noise_scale * jnp.asarray(x, jnp.float32), noise)
    times = jnp.asarray(schedule.times)

    def keep(x: Sample) -> Sample | None:
        return x if trajectory else None

    if schedule.method == "unipc":

        def correct_and_predict(state: State, step: tuple[jax.Array, Factors]) -> tuple[State, Sample | None]:
            time, factors = step
            state = unipc_step(state, velocity(state.sample, time), factors)
            return state, keep(state.sample)

        factors = jax.tree.map(jnp.asarray, unipc_factors(schedule.sigmas))
        state, kept = jax.lax.scan(correct_and_predict, init_state(first), (times, factors))
        last = state.sample
    elif schedule.method == "adams":

        def extrapolate(
            carry: tuple[Sample, Sample], step: tuple[jax.Array, AdamsFactors]
        ) -> tuple[tuple[Sample, Sample], Sample | None]:
            (x, before), (sigma, factors) = carry, step
            denoised = jax.tree.map(lambda a, v: a - sigma * v, x, velocity(x, sigma))
            x = jax.tree.map(
                lambda a, d, p: factors.decay * a + factors.own * d + factors.before * p, x, denoised, before
            )
            return (x, denoised), keep(x)

        factors = jax.tree.map(jnp.asarray, adams_factors(schedule.sigmas))
        (last, _), kept = jax.lax.scan(extrapolate, (first, first), (times, factors))
    else:

        def euler(x: Sample, step: tuple[jax.Array, ...]) -> tuple[Sample, Sample | None]:
            time, sigma, next_sigma = step
            x = euler_step(x, velocity(x, time), sigma, next_sigma)
            return x, keep(x)

        sigmas = jnp.asarray(schedule.sigmas)
        last, kept = jax.lax.scan(euler, first, (times, sigmas[:-1], sigmas[1:]))
    if not trajectory:
        return last
    return jax.tree.map(lambda start, rest: jnp.concatenate([start[None], rest]), first, kept)
