"""Verification: a checkpoint with recorded inputs, run through the ordinary import, against recorded outputs.

Owns the comparison of outputs, of the loss and of the gradients by the reference's names. Loading is ``load``'s; what
a kind computes is its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wamjax.errors import ConfigError, DataError
from wamjax.parallel.parameters import flatten_params
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.rules import TensorRule, tensors_of

_TINY = float(np.finfo(np.float32).tiny)
# Of the largest gradient of all: where a tensor's gradients are smaller, errors are relative to this instead. In fp32
# what is exactly zero (the gradient of a key's bias) comes out at 1e-7 to 1e-6 of what it is the difference of.
_NEGLIGIBLE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One compared array.

    Attributes:
      name: Output, ``loss``, or ``grad <tensor>``.
      max_error: Largest absolute difference.
      relative_error: ``max_error`` over the largest reference value.
      is_close: Whether it is within the limit that counts for it.
    """

    name: str
    max_error: float
    relative_error: float
    is_close: bool


def require_outputs(kind: ModelKind[Any]) -> None:
    """Raises ``ConfigError`` unless ``kind`` computes something to compare."""
    if not kind.has_outputs:
        raise ConfigError(
            f"{kind.class_name} has no forward pass to compare outputs with; its checkpoints can be imported and "
            "exported (wamjax weights import | export)"
        )


def verify(
    kind: ModelKind[Any],
    config: Any,
    params: Any,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray] | None,
    *,
    naming: str,
    atol: float,
    gradient_rtol: float,
) -> list[Row]:
    """Compares what our module computes in fp32 with what the reference recorded.

    Args:
      kind: The model's kind.
      config: Its configuration, as ``kind.parse_config`` returns it.
      params: Pure dict of fp32 parameters.
      inputs: By the reference's argument names; ``target`` for a loss.
      outputs: Recorded. Names beginning ``mid_`` are left out.
      gradients: Recorded gradients of mean((out - target)^2), by reference name; None to skip.
      naming: Whose names ``gradients`` carries.
      atol: Limit of the absolute error of outputs and loss.
      gradient_rtol: Limit of the relative error of each gradient.

    Raises:
      DataError: A recorded output is not one this kind computes, or has another shape; a loss without ``target``.
    """
    graphdef = nnx.split(nnx.eval_shape(lambda: kind.build(jax.random.key(0), config)))[0]
    arrays = {name: jnp.asarray(value) for name, value in inputs.items() if name != "target"}

    @jax.jit
    def compute(params: Any) -> dict[str, jax.Array]:
        return kind.outputs(nnx.merge(graphdef, params), arrays)

    computed = dict(compute(params))
    rows = []
    wanted = {name: value for name, value in outputs.items() if not name.startswith("mid_") and name != "loss"}
    for name, reference in wanted.items():
        if name not in computed:
            raise DataError(
                f"outputs.npz has {name!r}; {kind.class_name} computes {sorted(computed)} from these inputs"
            )
        rows.append(_compare(name, np.asarray(computed[name]), reference, atol=atol))
    if "loss" not in outputs and gradients is None:
        return rows
    if "target" not in inputs:
        raise DataError("a loss or gradients are recorded but inputs.npz has no 'target' to compute the loss from")
    target = jnp.asarray(inputs["target"])

    @jax.jit
    @jax.value_and_grad
    def loss_of(params: Any) -> jax.Array:
        return jnp.mean(jnp.square(kind.outputs(nnx.merge(graphdef, params), arrays)["out"] - target))

    loss, own = loss_of(params)
    if "loss" in outputs:
        rows.append(_compare("loss", np.asarray(loss), np.asarray(outputs["loss"]).reshape(()), atol=atol))
    if gradients is not None:
        rows += _compare_gradients(kind.rules(config, naming), own, gradients, gradient_rtol)
    return rows


def _compare_gradients(
    rules: Sequence[TensorRule], own: Any, reference: Mapping[str, np.ndarray], rtol: float
) -> list[Row]:
    """Compares by reference name. A gradient that was not recorded must be zero: the tensor was not used."""
    named = _by_reference_name(rules, own)
    unknown = sorted(set(reference) - set(named))
    if unknown:
        raise DataError(f"grads.safetensors holds {len(unknown)} tensors that are no parameter, first {unknown[0]}")
    floor = _NEGLIGIBLE * max((float(np.abs(value).max()) for value in reference.values() if value.size), default=0.0)
    rows = []
    for name, value in named.items():
        wanted = reference.get(name, np.zeros_like(value))
        if wanted.shape != value.shape:
            raise DataError(f"grads.safetensors: {name} has shape {wanted.shape}, the parameter has {value.shape}")
        error = float(np.abs(value - wanted).max()) if value.size else 0.0
        relative = error / max(float(np.abs(wanted).max()) if wanted.size else 0.0, floor, _TINY)
        rows.append(Row(name=f"grad {name}", max_error=error, relative_error=relative, is_close=relative <= rtol))
    return rows


def _by_reference_name(rules: Sequence[TensorRule], params: Any) -> dict[str, np.ndarray]:
    """Returns the reference's tensors, by its names and in its layout."""
    flat = {path: np.asarray(array) for path, array in flatten_params(params).items()}

    def part(rule: TensorRule, layer: int) -> np.ndarray:
        return rule.to_reference(flat[rule.path][layer] if rule.is_stacked else flat[rule.path])

    tensors = tensors_of(rules, {path: array.shape for path, array in flat.items()})
    return {name: tensor.join([part(rule, tensor.layer) for rule in tensor.rules]) for name, tensor in tensors.items()}


def _compare(name: str, own: np.ndarray, reference: np.ndarray, *, atol: float) -> Row:
    if own.shape != reference.shape:
        raise DataError(f"output {name} has shape {own.shape}; the recorded one has {reference.shape}")
    error = float(np.abs(own.astype(np.float64) - reference).max()) if own.size else 0.0
    scale = float(np.abs(reference).max()) if reference.size else 0.0
    return Row(
        name=name,
        max_error=error,
        relative_error=error / max(scale, _TINY),
        is_close=error <= atol,  # False for nan
    )
