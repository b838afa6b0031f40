"""Dense layers over the last dim, with fp32 master weights and a compute dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.nn.init import fan_in, named, zeros
from wamjax.types import PRNGKey


class Linear(nnx.Module):
    """y = x W + b.

    Attributes:
      kernel: ``[in out]``.
      bias: ``[out]``.
    """

    def __init__(
        self,
        key: PRNGKey,
        fan: tuple[int, int],
        axes: tuple[str | None, str | None],
        *,
        dtype: str,
        scale: float = 1.0,
    ) -> None:
        """Makes the layer.

        Args:
          key: Initialisation key.
          fan: Sizes (in, out).
          axes: Logical names of (in, out).
          dtype: Compute dtype of the product and of the result.
          scale: Variance scale of the kernel; 0 makes a zero kernel.
        """
        self.dtype = dtype
        self.kernel = named(key, fan_in(scale) if scale else zeros, fan, axes)
        self.bias = named(key, zeros, fan[1:], axes[1:])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[... in]`` to ``[... out]`` in the compute dtype."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return jnp.matmul(x.astype(self.dtype), kernel) + bias


class Mlp(nnx.Module):
    """Feed-forward layer: ``down(gelu_tanh(up(x)))``."""

    def __init__(self, key: PRNGKey, width: int, hidden: int, *, dtype: str) -> None:
        """Makes the layer with ``hidden`` units between two projections of ``width``."""
        up_key, down_key = jax.random.split(key)
        self.up = Linear(up_key, (width, hidden), ("embed", "mlp"), dtype=dtype)
        self.down = Linear(down_key, (hidden, width), ("mlp", "embed"), dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[b n d]`` to ``[b n d]``."""
        return self.down(jax.nn.gelu(self.up(x), approximate=True))
