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
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from wamjax.config.finetune import UPDATE_OF, LoraConfig, matches, require_matches
from wamjax.errors import ConfigError
from wamjax.nn.init import AXES_KEY, named, zeros
from wamjax.nn.products import multiplying_in, project
from wamjax.parallel.explicit import gather_kernel
from wamjax.types import PRNGKey


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
        """Returns the update of what the layer returns for ``x``, in the compute dtype."""
        down, up = (gather_kernel(part, self.dtype) for part in (self.down, self.up))
        to_rank, from_rank = _specs(x.ndim, self.num_inputs, up.ndim - 1)
        with multiplying_in(""):  # of small rank: nothing to gain, and it corrects the rounded product
            return self.scale * project(project(x.astype(self.dtype), down, to_rank), up, from_rank)


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
      ConfigError: A target names no kernel (gives some of the model's), or one that can take no update.
    """
    kernels = _kernels(model)
    require_matches(config.targets, kernels, "lora_targets", "kernel")
    _refuse_others(model, kernels, config)
    adapted = [path for path in kernels if matches(path, config.targets)]
    for path in adapted:
        layer, name = kernels[path], path.rpartition(".")[2]
        own_key, num_inputs = jax.random.fold_in(key, zlib.crc32(path.encode())), layer.KERNELS[name]
        update = LowRank(own_key, getattr(layer, name), num_inputs=num_inputs, config=config, dtype=layer.dtype)
        setattr(layer, UPDATE_OF[name], update)
    return adapted


def adaptable_kernels(model: nnx.Module) -> dict[str, int]:
    """Returns dotted path -> number of summed dims of every kernel of ``model`` that can take an update."""
    return {path: layer.KERNELS[path.rpartition(".")[2]] for path, layer in _kernels(model).items()}


def merged_kernel(kernel: jax.Array, down: jax.Array, up: jax.Array, scale: float) -> jax.Array:
    """Returns ``W + scale down up`` in the kernel's dtype, computed in fp32.

    Args:
      kernel: ``[*in *out]``, or a stack with a layer dim in front.
      down: ``[*in r]``, or a stack.
      up: ``[r *out]``, or a stack.
      scale: alpha / rank.
    """

    def merge(kernel: jax.Array, down: jax.Array, up: jax.Array) -> jax.Array:
        update = jnp.tensordot(down, up, 1, precision=jax.lax.Precision.HIGHEST)
        return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)

    is_stack = kernel.ndim == down.ndim + up.ndim - 3
    return jax.vmap(merge)(kernel, down, up) if is_stack else merge(kernel, down, up)


def _kernels(model: nnx.Module) -> dict[str, Any]:
    """Returns dotted path -> layer of every kernel that can take an update."""
    return {
        ".".join(map(str, (*path, name))): module
        for path, module in nnx.iter_modules(model)
        for name in getattr(module, "KERNELS", ())
    }


def _refuse_others(model: nnx.Module, kernels: dict[str, Any], config: LoraConfig) -> None:
    """Raises ``ConfigError`` where a target names a kernel outside ``kernels``: nothing of it would train."""
    paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    others = [
        path
        for path in paths
        if path.rpartition(".")[2] in UPDATE_OF and path not in kernels and matches(path, config.targets)
    ]
    if others:
        raise ConfigError(
            f"config.finetune.lora_targets={config.targets} names {', '.join(others)}, which can take no low-rank "
            f"update; name only kernels that can, such as {next(iter(kernels))}"
        )


def _specs(num_dims: int, num_inputs: int, num_outputs: int) -> tuple[str | None, str | None]:
    """Returns the einsums to and from the rank; heads have their dims apart, as ``nn.multihead`` lays them out."""
    assert num_inputs == 1 or num_dims == 4, "only heads have two input dims"
    return "bkne,ker->bnr" if num_inputs == 2 else None, "bnr,rke->bkne" if num_outputs == 2 else None


def _uniform(limit: float) -> Initializer:
    """Returns an initialiser uniform in [-limit, limit)."""

    def init(key: PRNGKey, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init
