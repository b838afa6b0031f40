"""The learning rate over steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from wamjax.config.schema import OptimizerConfig
from wamjax.errors import ConfigError


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate of a step (0-based): linear from 0 to the peak, then as ``config.schedule`` says.

    Args:
      config: The optimizer's configuration.
      num_steps: Steps of the run, where ``config.decay_steps`` is 0.

    Raises:
      ConfigError: Warm-up leaves no room for what follows.
    """
    end = config.decay_steps or num_steps
    # At least one step of decay, so that the last learning rate is what was asked for however short the run is.
    decay_steps = {
        "cosine": end - config.warmup_steps,
        "wsd": max(1, round(config.decay_fraction * end)),
        "constant": 0,
    }
    stable_steps = end - config.warmup_steps - decay_steps[config.schedule]
    if config.warmup_steps >= end or stable_steps < 0:
        decay = f", {decay_steps['wsd']} of them decay (config.optimizer.decay_fraction)"
        raise ConfigError(
            f"config.optimizer.warmup_steps={config.warmup_steps} must be less than the {end} steps of the schedule "
            f"(config.optimizer.decay_steps, or config.train.num_steps when that is 0)"
            f"{decay if config.schedule == 'wsd' else ''}"
        )
    peak = config.peak_lr
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps) if config.warmup_steps else None
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps["cosine"], config.final_lr_fraction)
    elif config.schedule == "wsd":
        after = optax.join_schedules(
            [optax.constant_schedule(peak), _decay(config, decay_steps["wsd"])], [stable_steps]
        )
    else:
        after = optax.constant_schedule(peak)
    return after if warmup is None else optax.join_schedules([warmup, after], [config.warmup_steps])


def _decay(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the last part of ``wsd``: from the peak to ``final_lr_fraction`` of it.

    Source: MiniCPM (arXiv 2404.06395) for warm-up, stable, decay; Hägele et al. (arXiv 2405.18392) for 1 - sqrt. What
    differs: the decay may end above 0.
    """

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        x = jnp.clip(jnp.asarray(step, jnp.float32) / num_steps, 0.0, 1.0)
        falling = 1.0 - (jnp.sqrt(x) if config.decay_shape == "one_minus_sqrt" else x)
        final = config.final_lr_fraction
        return config.peak_lr * (final + (1.0 - final) * falling)

    return rate
