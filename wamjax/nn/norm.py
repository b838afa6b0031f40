"""Norms, always computed in fp32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.nn.init import named, zeros
from wamjax.types import PRNGKey


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
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, axes: tuple[int, ...] = (-1,)) -> jax.Array:
    """RMS norm over ``axes`` (the last ``scale.ndim`` dims) with a learned scale, in fp32.

    y = scale * x / sqrt(mean(x^2) + eps)
    """
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True) + eps) * scale.astype(jnp.float32)
