"""Reads a golden folder and holds a kind of model to it.

Independent of the reader in the library: whole arrays, no checks beyond those a test makes.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from tests.tiny import QUICK_COMPILE
from wamjax.weights.kinds.kind import ModelKind

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Golden:
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def read_golden(folder: Path) -> Golden:
    return Golden(
        config=json.loads((folder / "config.json").read_text()),
        tensors=load_file(folder / "model.safetensors"),
        gradients=load_file(folder / "grads.safetensors"),
        inputs=dict(np.load(folder / "inputs.npz")),
        outputs=dict(np.load(folder / "outputs.npz")),
    )


def parameter_shapes(kind: ModelKind[Any], config: Any) -> dict[str, tuple[int, ...]]:
    """Dotted path -> shape of every parameter of ours, allocating nothing."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(_abstract(kind, config)[1]))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def to_ours(kind: ModelKind[Any], config: Any, naming: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Dotted path -> array, from reference tensors; every tensor (each part, if fused) must be used exactly once."""
    shapes, used = parameter_shapes(kind, config), []
    arrays = {}
    for rule in kind.rules(config, naming):
        names = [rule.name_of(layer) for layer in range(shapes[rule.path][0] if rule.is_stacked else 1)]
        used += [(name, rule.part) for name in names]
        layers = [rule.to_ours(tensors[name]) for name in names]
        arrays[rule.path] = np.stack(layers) if rule.is_stacked else layers[0]
    assert len(set(used)) == len(used)
    assert {name for name, _ in used} == tensors.keys(), f"no rule for {sorted(tensors.keys() - dict(used))}"
    return arrays


def to_reference(kind: ModelKind[Any], config: Any, naming: str, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """The reverse of ``to_ours``."""
    parts: dict[str, dict[tuple[int, int], np.ndarray]] = {}
    for rule in kind.rules(config, naming):
        array = np.asarray(arrays[rule.path])
        for layer in range(array.shape[0] if rule.is_stacked else 1):
            part = rule.to_reference(array[layer] if rule.is_stacked else array)
            parts.setdefault(rule.name_of(layer), {})[rule.part] = part
    return {
        name: np.concatenate([held[part] for part in sorted(held)]) if len(held) > 1 else next(iter(held.values()))
        for name, held in parts.items()
    }


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Dotted paths -> nested dict; a number is an index into a list of modules."""
    tree: dict[Any, Any] = {}
    for path, leaf in flat.items():
        *parents, last = (int(name) if name.isdigit() else name for name in path.split("."))
        functools.reduce(lambda node, name: node.setdefault(name, {}), parents, tree)[last] = leaf
    return tree


def flatten(tree: Any) -> dict[str, Any]:
    """Nested dict -> dotted paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def build(kind: ModelKind[Any], config: Any, params: Any) -> Any:
    """The module of ``config`` with ``params`` (a nested dict)."""
    return nnx.merge(_abstract(kind, config)[0], params)


def check_golden(
    kind: ModelKind[Any], golden: Golden, *, atol: float = 2e-5, gradient_rtol: float = 1e-3
) -> tuple[dict[str, float], float]:
    """Compares outputs and the gradients of the mean squared error of ``out`` against ``target``.

    Gradients are compared by the norm of the difference over the norm, or over 1e-4 of the norm of all gradients where
    that is more: a bias on all keys moves no softmax, and its gradient is rounding alone. A parameter without a
    reference gradient must have none. Returns the largest difference of each output and of all gradients.
    """
    config = kind.parse_config(golden.config)
    params = nest(to_ours(kind, config, kind.namings[0], golden.tensors))
    inputs = {name: jnp.asarray(array) for name, array in golden.inputs.items()}
    target = inputs.pop("target")

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def run(params: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs = kind.outputs(build(kind, config, params), inputs)
            return jnp.mean(jnp.square(outputs["out"] - target)), outputs

        (value, outputs), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return {**outputs, "loss": value}, gradients

    outputs, gradients = run(params)
    assert golden.outputs.keys() <= outputs.keys()
    errors = {}
    for name, expected in golden.outputs.items():
        assert outputs[name].shape == expected.shape, name
        errors[name] = float(np.abs(np.asarray(outputs[name]) - expected).max())
    ours = to_reference(kind, config, kind.namings[0], flatten(gradients))
    assert golden.gradients.keys() <= ours.keys()
    assert not any(np.any(ours[name]) for name in ours.keys() - golden.gradients.keys())
    norms = {name: np.linalg.norm(expected) for name, expected in golden.gradients.items()}
    floor = 1e-4 * np.linalg.norm(list(norms.values()))
    relative = {
        name: float(np.linalg.norm(ours[name] - expected) / max(norms[name], floor))
        for name, expected in golden.gradients.items()
    }
    assert max(errors.values()) <= atol, errors
    assert max(relative.values()) <= gradient_rtol, {n: e for n, e in relative.items() if e > gradient_rtol}
    return errors, max(relative.values())


def _abstract(kind: ModelKind[Any], config: Any) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: kind.build(jax.random.key(0), config)))
