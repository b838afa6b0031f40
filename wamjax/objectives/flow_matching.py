"""Flow matching: the path, the time grid, its weights, and conversions between predictions.

x_t = (1 - t) x_0 + t noise, velocity = noise - x_0, t in (0, 1]; t = 0 is data. Knows no layouts or models.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.config.schema import ObjectiveConfig
from wamjax.types import PRNGKey

Prediction = Literal["velocity", "x0"]


def shift_time(times: jax.Array | np.ndarray, shift: float) -> jax.Array | np.ndarray:
    """Returns ``s t / (1 + (s - 1) t)``: more of the grid near noise for s > 1. Ends 0 and 1 stay."""
    return shift * times / (1.0 + (shift - 1.0) * times)


def time_grid(config: ObjectiveConfig) -> np.ndarray:
    """Returns the shifted grid, fp32 ``[num_timesteps]``, ascending from ``1 / num_timesteps`` (shifted) to 1."""
    ids = np.arange(1, config.num_timesteps + 1, dtype=np.float64) / config.num_timesteps
    return np.asarray(shift_time(ids, config.shift), dtype=np.float32)


def time_weights(config: ObjectiveConfig) -> np.ndarray:
    """Returns the loss weight of each time of ``time_grid``, fp32, mean 1 over the grid.

    gaussian: exp(-2 (t - 1/2)^2) less its minimum over the grid, divided by its mean.

    Source: DreamZero and Wan training code (ids t x 1000, centre 500).
    """
    grid = time_grid(config).astype(np.float64)
    if config.weighting == "uniform":
        return np.ones_like(grid, dtype=np.float32)
    bell = np.exp(-2.0 * np.square(grid - 0.5))
    bell -= bell.min()
    return (bell / bell.mean()).astype(np.float32)


def draw_times(key: PRNGKey, shape: tuple[int, ...], config: ObjectiveConfig) -> tuple[jax.Array, jax.Array]:
    """Draws ids of the grid, uniformly or as ``video_beta`` says; returns (times, weights), both fp32 of ``shape``."""
    if config.video_beta:
        alpha, beta = config.video_beta
        places = jax.random.beta(key, alpha, beta, shape)
        ids = jnp.minimum((places * config.num_timesteps).astype(jnp.int32), config.num_timesteps - 1)
    else:
        ids = jax.random.randint(key, shape, 0, config.num_timesteps)
    return jnp.asarray(time_grid(config))[ids], jnp.asarray(time_weights(config))[ids]


def draw_action_times(key: PRNGKey, shape: tuple[int, ...], config: ObjectiveConfig) -> jax.Array:
    """Draws t = 0.001 + 0.999 x, fp32 of ``shape``: x from ``config.action_beta``, or uniform.

    Source: openpi, src/openpi/models/pi0.py, ``compute_loss``: Beta(1.5, 1).
    """
    if not config.action_beta:
        return 0.001 + 0.999 * jax.random.uniform(key, shape)
    alpha, beta = config.action_beta
    return 0.001 + 0.999 * jax.random.beta(key, alpha, beta, shape)


def draw_edm_times(key: PRNGKey, shape: tuple[int, ...], config: ObjectiveConfig) -> jax.Array:
    """Draws t = sigma / (sigma + 1), fp32 of ``shape``: sigma log-normal, for a share ``edm_uniform`` uniform.

    Source: Cosmos Policy's released code: log-normal (mean 1.386, deviation 1.2) for 70 %, uniform in [1, 85] for 30 %.
    """
    normal_key, uniform_key, choice_key = jax.random.split(key, 3)
    log_normal = jnp.exp(config.edm_log_mean + config.edm_log_std * jax.random.normal(normal_key, shape))
    low, high = config.edm_range
    uniform = jax.random.uniform(uniform_key, shape, minval=low, maxval=high)
    sigma = jnp.where(jax.random.bernoulli(choice_key, config.edm_uniform, shape), uniform, log_normal)
    return sigma / (sigma + 1.0)


def add_noise(x0: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """Returns ``(1 - t) x_0 + t noise``; ``times`` broadcasts over the trailing dims of ``x0``."""
    return (1.0 - times) * x0 + times * noise


def velocity_from(
    prediction: jax.Array, kind: Prediction, noised: jax.Array, times: jax.Array, min_time: float
) -> jax.Array:
    """Returns the velocity that a prediction means.

    For x0: (x_t - x_0) / max(t, min_time).

    Source: "Back to Basics: Let Denoising Generative Models Denoise" (arXiv 2511.13720), x-prediction with v-loss.
    """
    if kind == "velocity":
        return prediction
    return (noised - prediction) / jnp.maximum(times, min_time)
