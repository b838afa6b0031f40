"""The optimizer: AdamW with warm-up and cosine decay, global-norm clipping."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wamjax.config.schema import OptimizerConfig
from wamjax.errors import ConfigError


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate over steps: linear from 0 to the peak, then a cosine to ``final_lr_fraction``.

    Raises:
      ConfigError: Warm-up is not shorter than the decay.
    """
    decay_steps = config.decay_steps or num_steps
    if not 0 <= config.warmup_steps < decay_steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps={config.warmup_steps} must be less than the {decay_steps} steps of the "
            "schedule (config.optimizer.decay_steps, or config.train.num_steps when that is 0)"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.peak_lr,
        warmup_steps=config.warmup_steps,
        decay_steps=decay_steps,
        end_value=config.peak_lr * config.final_lr_fraction,
    )


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule, is_matrix: Any) -> optax.GradientTransformation:
    """Returns clip-by-global-norm followed by AdamW; ``is_matrix`` is a pytree of bools: which arrays decay."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=is_matrix,
        ),
    )


def update_ema(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Returns the parameter average after ``step`` (0-based): ema + (1 - d') (params - ema).

    d' = min(decay, (1 + step) / (10 + step)) so that the average is not held back by the initial values.

    Source: TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.
    """
    n = step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return jax.tree.map(lambda average, value: average + (1.0 - rate) * (value - average), ema, params)
