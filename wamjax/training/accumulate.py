"""Gradients of a batch that is taken in parts, one after the other, so that one part's activations are in memory.

Owns cutting the batch and adding up. What a loss is a mean over is the objective's: it must be the same for every part
(``objectives.world_action.loss_counts``), or the sum over parts is not the loss of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from wamjax.parallel.rules import constrain
from wamjax.types import PureDict

# (params, part of the batch) -> (loss, other sums); both add up over parts.
SummedLoss = Callable[[PureDict, Any], tuple[jax.Array, Any]]


def accumulate_gradients(
    loss_fn: SummedLoss, params: PureDict, batch: Any, num_parts: int
) -> tuple[jax.Array, Any, PureDict]:
    """Returns loss, other sums and gradient of a whole batch.

    loss = sum over parts of ``loss_fn(params, part)``, and so its gradient, added up in the dtype of ``params``.

    Part i holds rows i, i + num_parts, i + 2 num_parts, ... of every array: as each device holds a run of consecutive
    rows, every part has its share of them where they are, and nothing is moved.

    Args:
      loss_fn: The loss of a part, as its share of the loss of the whole batch.
      params: What it is differentiated by.
      batch: Pytree of batch-first arrays.
      num_parts: How many parts; must divide the batch.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if num_parts == 1:
        (loss, sums), grads = grad_fn(params, batch)
        return loss, sums, grads
    parts = jax.tree.map(lambda x: _cut(x, num_parts), batch)
    shapes = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        part = jax.tree.map(lambda x: constrain(x, "batch", *[None] * (x.ndim - 1)), part)
        return jax.tree.map(jnp.add, total, grad_fn(params, part)), None

    ((loss, sums), grads), _ = jax.lax.scan(add, zeros, parts)
    return loss, sums, grads


def _cut(x: jax.Array, num_parts: int) -> jax.Array:
    """Cuts ``[b ...]`` into ``[parts b/parts ...]``."""
    return jnp.moveaxis(x.reshape(x.shape[0] // num_parts, num_parts, *x.shape[1:]), 1, 0)
