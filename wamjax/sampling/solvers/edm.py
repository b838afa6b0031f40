"""EDM: a denoiser from a network and back to a velocity.

D(x, sigma) = c_skip x + c_out F(c_in x, c_noise); dx/dsigma = (x - D(x, sigma)) / sigma.

Source: Karras et al. (arXiv 2206.00364), table 1 and eq. 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from wamjax.errors import ConfigError

Network = Callable[[jax.Array, jax.Array], jax.Array]


class Preconditioning(NamedTuple):
    """Factors at one noise level.

    Attributes:
      c_skip: Of the noisy sample in the denoised one.
      c_out: Of the network's output in it.
      c_in: Of the noisy sample at the network's input.
      c_noise: What the network is told of the level.
    """

    c_skip: jax.Array
    c_out: jax.Array
    c_in: jax.Array
    c_noise: jax.Array


def preconditioning(sigma: jax.Array, parameterisation: str, sigma_data: float = 1.0) -> Preconditioning:
    """Returns the factors at ``sigma`` (any shape).

    Args:
      sigma: Noise level, positive.
      parameterisation: What the network predicts. ``edm``: table 1 of EDM; ``edm_velocity``: the same with the sign of
        c_out turned (``EDMEulerScheduler(prediction_type="v_prediction")``); ``flow``: the velocity of the flow with
        t = sigma / (sigma + 1), whose sample is x / (sigma + 1) (Cosmos-Predict2), for data of unit variance.
      sigma_data: Standard deviation of the data.

    Raises:
      ConfigError: The parameterisation is unknown, or it is ``flow`` and ``sigma_data`` is not 1.
    """
    if parameterisation == "flow":
        if sigma_data != 1.0:
            raise ConfigError(f"sigma_data={sigma_data} with the parameterisation 'flow'; expected 1")
        time = sigma / (sigma + 1.0)
        return Preconditioning(1.0 - time, -time, 1.0 - time, time)
    if parameterisation not in ("edm", "edm_velocity"):
        raise ConfigError(f"EDM parameterisation={parameterisation!r}; expected 'edm', 'edm_velocity' or 'flow'")
    variance = jnp.square(sigma) + sigma_data**2
    c_out = sigma * sigma_data * jax.lax.rsqrt(variance)
    return Preconditioning(
        c_skip=sigma_data**2 / variance,
        c_out=-c_out if parameterisation == "edm_velocity" else c_out,
        c_in=jax.lax.rsqrt(variance),
        c_noise=0.25 * jnp.log(sigma),
    )


def precondition(network: Network, parameterisation: str, sigma_data: float = 1.0) -> Network:
    """Returns the denoiser (noisy sample, scalar sigma) -> denoised sample, of a ``network`` (c_in x, c_noise) -> F."""

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        factors = preconditioning(sigma, parameterisation, sigma_data)
        return factors.c_skip * x + factors.c_out * network(factors.c_in * x, factors.c_noise)

    return denoise


def denoiser_velocity(denoise: Network) -> Network:
    """Returns (x, sigma) -> dx/dsigma of a denoiser; ``sample`` integrates it over the ``karras`` levels."""
    return lambda x, sigma: (x - denoise(x, sigma)) / sigma
