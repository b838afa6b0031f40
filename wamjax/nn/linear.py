"""Dense layers over the last dim, with fp32 master weights and a compute dtype."""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from wamjax.nn.init import fan_in, named, whole_width, zeros
from wamjax.nn.lora import LowRank
from wamjax.nn.products import project
from wamjax.parallel.explicit import gather_kernel
from wamjax.types import PRNGKey

MLP_HIDDEN = "mlp_hidden"  # name by which a rematerialisation policy keeps the units of an ``Mlp``


class Linear(nnx.Module):
    """y = x W + b.

    Attributes:
      kernel: ``[in out]``.
      bias: ``[out]``, or None.
      lora: Low-rank update of the kernel, or None (``nn.lora``).
    """

    KERNELS: ClassVar[dict[str, int]] = {"kernel": 1}

    def __init__(
        self,
        key: PRNGKey,
        fan: tuple[int, int],
        axes: tuple[str | None, str | None],
        *,
        dtype: str,
        scale: float = 1.0,
        use_bias: bool = True,
        precision: jax.lax.Precision | None = None,
    ) -> None:
        """Makes the layer.

        Args:
          key: Initialisation key.
          fan: Sizes (in, out).
          axes: Logical names of (in, out).
          dtype: Compute dtype of the product and of the result.
          scale: Variance scale of the kernel; 0 makes a zero kernel.
          use_bias: Whether there is a bias.
          precision: Of an fp32 product, where accelerators would multiply in fewer bits.
        """
        self.dtype, self.precision = dtype, precision
        self.kernel = named(key, fan_in(scale) if scale else zeros, fan, axes)
        self.bias = named(key, zeros, fan[1:], whole_width(axes[1:])) if use_bias else nnx.data(None)
        self.lora: LowRank | None = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[... in]`` to ``[... out]`` in the compute dtype."""
        y = project(x.astype(self.dtype), gather_kernel(self.kernel, self.dtype), precision=self.precision)
        if self.lora is not None:
            y = y + self.lora(x)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class Mlp(nnx.Module):
    """Feed-forward layer: ``down(gelu(up(x)))``, or gated, ``down(gelu(gate(x)) up(x))``; or with relu for gelu."""

    def __init__(
        self,
        key: PRNGKey,
        width: int,
        hidden: int,
        *,
        dtype: str,
        activation: Literal["gelu", "relu"] = "gelu",
        gelu: Literal["tanh", "exact"] = "tanh",
        use_bias: bool = True,
        is_gated: bool = False,
    ) -> None:
        """Makes the layer with ``hidden`` units between two projections of ``width``."""
        up_key, down_key = jax.random.split(key)
        self.activation, self.is_approximate = activation, gelu == "tanh"
        self.up = Linear(up_key, (width, hidden), ("embed", "mlp"), dtype=dtype, use_bias=use_bias)
        self.down = Linear(down_key, (hidden, width), ("mlp", "embed"), dtype=dtype, use_bias=use_bias)
        self.gate: Linear | None = nnx.data(None)
        if is_gated:
            gate_key = jax.random.fold_in(key, 1)
            self.gate = Linear(gate_key, (width, hidden), ("embed", "mlp"), dtype=dtype, use_bias=use_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[b n d]`` to ``[b n d]``."""
        hidden = self._activate((self.gate or self.up)(x))
        if self.gate is not None:
            hidden = hidden * self.up(x)
        return self.down(checkpoint_name(hidden, MLP_HIDDEN))

    def _activate(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x) if self.activation == "relu" else jax.nn.gelu(x, approximate=self.is_approximate)
