"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Sample = Any  # an array or a pytree of arrays
Scale = float | Callable[[jax.Array], jax.Array]


def guide(conditional: Sample, unconditional: Sample, scale: float | jax.Array) -> Sample:
    """Returns ``unconditional + scale (conditional - unconditional)``: 1 means no guidance.

    Source: Ho & Salimans (arXiv 2207.12598). Cosmos pipelines count from the other end, conditional + g (conditional -
    unconditional): their guidance g is ``scale - 1`` here. Velocities and denoised samples may be guided alike: one is
    linear in the other.
    """
    return jax.tree.map(lambda c, u: u + scale * (c - u), conditional, unconditional)


def guided(
    model: Callable[[Sample, jax.Array, Any], Sample], condition: Any, unconditional: Any, scale: Scale
) -> Callable[[Sample, jax.Array], Sample]:
    """Returns (x, time) -> guided prediction, from one call of the model on twice the batch.

    Args:
      model: (x ``[b ...]``, scalar time, condition) -> prediction ``[b ...]``.
      condition: Pytree of arrays ``[b ...]``: the prompt's embedding and whatever else the model is told.
      unconditional: The same for the empty or negative prompt.
      scale: Guidance scale, or a function of the time (Wan 2.2's two experts are guided differently). At the number 1
        the model is called without the unconditional half.
    """
    if not callable(scale) and scale == 1:
        return lambda x, time: model(x, time, condition)
    both = _stack(condition, unconditional)

    def predict(x: Sample, time: jax.Array) -> Sample:
        prediction = model(_stack(x, x), time, both)
        first, second = (jax.tree.map(lambda a, half=half: jnp.split(a, 2)[half], prediction) for half in (0, 1))
        return guide(first, second, scale(time) if callable(scale) else scale)

    return predict


def _stack(first: Any, second: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
