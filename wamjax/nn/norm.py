"""Norms, always computed in fp32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
