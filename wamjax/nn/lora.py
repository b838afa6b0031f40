"""Low-rank adaptation: a trained update of small rank beside a kernel that is kept.

y = x W + (alpha / rank) (x down) up

Owns the update and how it is attached to the layers of a finished model. Which parameters train is
``training.trainable``'s, the files of adapters are ``weights.adapter``'s.

Source: LoRA (Hu et al., arXiv 2106.09685), as ``peft`` initialises it: ``down`` uniform within 1/sqrt(fan in), ``up``
zero, so that the model starts as it was.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from wamjax.config.finetune import UPDATE_OF, LoraConfig, matches, require_matches
from wamjax.nn.init import AXES_KEY, named, zeros
from wamjax.types import PRNGKey, PureDict


class LowRank(nnx.Module):
    """The update of one kernel.

    Attributes:
      down: ``[*in r]``; a stack's has a layer dim in front.
      up: ``[r *out]``, likewise.
      scale: alpha / rank.
    """

    def __init__(
        self, key: PRNGKey, kernel: nnx.Param[Any], *, num_inputs: int, config: LoraConfig, dtype: str
    ) -> None:
        """Makes the update of ``kernel``, whose first ``num_inputs`` dims (after a stack's) are summed over."""
        axes, shape, rank = kernel.get_metadata()[AXES_KEY], kernel.shape, config.rank
        lead = 1 if axes[0] == "layers" else 0
        split = lead + num_inputs
        self.dtype, self.num_inputs, self.scale = dtype, num_inputs, config.alpha / rank
        fan_in = math.prod(shape[lead:split])
        self.down = named(key, _uniform(fan_in**-0.5), (*shape[:split], rank), (*axes[:split], None))
        self.up = named(key, zeros, (*shape[:lead], rank, *shape[split:]), (*axes[:lead], None, *axes[split:]))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[... *in]`` to the update ``[... *out]`` in the compute dtype."""
        down, up = (part[...].astype(self.dtype) for part in (self.down, self.up))
        inputs = tuple(range(x.ndim - self.num_inputs, x.ndim))
        hidden = jnp.tensordot(x.astype(self.dtype), down, (inputs, tuple(range(self.num_inputs))))
        return self.scale * jnp.tensordot(hidden, up, 1)


def attach_lora(model: nnx.Module, key: PRNGKey, config: LoraConfig) -> list[str]:
    """Attaches an update to every kernel of ``model`` that a target names.

    Each layer that can take one lists its kernels in ``KERNELS``: attribute -> number of dims that are summed over.

    Args:
      model: A finished model; changed in place.
      key: Initialisation key. An update's initial value depends on it and on the kernel's path alone.
      config: Rank, scale and targets.

    Returns:
      The dotted paths of the kernels.

    Raises:
      ConfigError: A target names no kernel (gives some of the model's).
    """
    kernels = {f"{path}.{name}" if path else name: layer for path, layer, name in _kernels(model)}
    require_matches(config.targets, kernels, "lora_targets", "kernel")
    adapted = [path for path in kernels if matches(path, config.targets)]
    for path in adapted:
        layer, name = kernels[path], path.rpartition(".")[2]
        own_key, num_inputs = jax.random.fold_in(key, zlib.crc32(path.encode())), layer.KERNELS[name]
        update = LowRank(own_key, getattr(layer, name), num_inputs=num_inputs, config=config, dtype=layer.dtype)
        setattr(layer, UPDATE_OF[name], update)
    return adapted


def merged_kernel(kernel: jax.Array, lora: PureDict, scale: float, *, num_inputs: int, is_stacked: bool) -> jax.Array:
    """Returns ``W + scale down up`` in the kernel's dtype, computed in fp32.

    Args:
      kernel: ``[*in *out]``, with a layer dim in front if ``is_stacked``.
      lora: ``down`` and ``up`` of its update.
      scale: alpha / rank.
      num_inputs: Dims that are summed over when the kernel is applied.
      is_stacked: Whether there is a layer dim.
    """

    def merge(kernel: jax.Array, down: jax.Array, up: jax.Array) -> jax.Array:
        update = jnp.tensordot(down, up, 1, precision=jax.lax.Precision.HIGHEST)
        return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)

    assert num_inputs == lora["down"].ndim - 1 - is_stacked, "update of another kernel"
    parts = (kernel, lora["down"].astype(jnp.float32), lora["up"].astype(jnp.float32))
    return jax.vmap(merge)(*parts) if is_stacked else merge(*parts)


def _kernels(model: nnx.Module) -> Iterator[tuple[str, Any, str]]:
    """Yields (dotted path of the layer, layer, kernel) of all kernels that can take an update."""
    for path, module in nnx.iter_modules(model):
        for name in getattr(module, "KERNELS", ()):
            yield ".".join(map(str, path)), module, name


def _uniform(limit: float) -> Initializer:
    """Returns an initialiser uniform in [-limit, limit)."""

    def init(key: PRNGKey, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init
