"""Integrates from noise to data along a schedule, as one scan."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from wamjax.sampling.solvers.schedule import Schedule
from wamjax.sampling.solvers.unipc import Factors, Sample, State, init_state, unipc_factors, unipc_step

Velocity = Callable[[Sample, jax.Array], Sample]


def euler_step(sample: Sample, velocity: Sample, sigma: jax.Array, next_sigma: jax.Array) -> Sample:
    """Returns ``x + (sigma' - sigma) v``."""
    return jax.tree.map(lambda x, v: x + (next_sigma - sigma) * v, sample, velocity)


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
