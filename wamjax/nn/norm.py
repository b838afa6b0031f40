"""Norms, always computed in fp32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from wamjax.nn.init import named, zeros
from wamjax.types import PRNGKey

NORM_STATISTICS = "norm_statistics"  # name by which a rematerialisation policy keeps means and inverse deviations


class LayerNorm(nnx.Module):
    """Layer norm with a learned scale and bias.

    Attributes:
      scale: ``[d]``.
      bias: ``[d]``.
    """

    def __init__(self, key: PRNGKey, width: int, *, eps: float) -> None:
        """Makes the norm over ``width`` dims."""
        self.eps = eps
        self.scale = named(key, jax.nn.initializers.ones, (width,), (None,))
        self.bias = named(key, zeros, (width,), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises ``[... d]``; returns fp32."""
        return layer_norm(x, self.eps) * self.scale[...] + self.bias[...]


def layer_norm(x: jax.Array, eps: float) -> jax.Array:
    """Layer norm over the last dim without scale or bias, in fp32.

    y = (x - mean(x)) / sqrt(var(x) + eps)
    """
    x = x.astype(jnp.float32)
    mean = checkpoint_name(jnp.mean(x, axis=-1, keepdims=True), NORM_STATISTICS)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return (x - mean) * checkpoint_name(jax.lax.rsqrt(variance + eps), NORM_STATISTICS)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, axes: tuple[int, ...] = (-1,)) -> jax.Array:
    """RMS norm over ``axes`` with a learned scale that broadcasts, in fp32.

    y = scale * x / sqrt(mean(x^2) + eps)
    """
    return rms_normalise(x, eps, axes) * scale.astype(jnp.float32)


def rms_normalise(x: jax.Array, eps: float, axes: tuple[int, ...] = (-1,)) -> jax.Array:
    """Returns ``x / sqrt(mean(x^2) + eps)`` over ``axes``, in fp32."""
    x = x.astype(jnp.float32)
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True) + eps)
    return x * checkpoint_name(rate, NORM_STATISTICS)
