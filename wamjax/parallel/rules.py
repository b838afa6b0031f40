"""Logical-axis rules: from the names modules give their dims to mesh axes.

Two tables: one for parameters, one for activations. A module never sees the mesh; ``constrain`` does nothing outside
``placing``. A name that is not in the table, two dims on one mesh axis, or a size that does not divide is an error
with the array, its shape, the mesh axis and its size: nothing is silently replicated.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wamjax.errors import ConfigError

MeshAxes = str | tuple[str, ...] | None
Rules = Mapping[str, MeshAxes]

AXES_KEY = "axes"  # metadata key under which a parameter carries the names of its dims

PARAMETER_RULES: Rules = {
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
}

ACTIVATION_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "tokens": "context",
    "mlp": "tensor",
    # Inside self-attention the sequence is whole and the heads are split instead (Ulysses, by XLA's all-to-all).
    "attention_heads": ("context", "tensor"),
}

_ACTIVE: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("wamjax_mesh", default=None)


def partition_spec(
    names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules, what: str
) -> PartitionSpec:
    """Maps dim names to mesh axes.

    Args:
      names: One logical name (or None) per dim.
      shape: Sizes of the dims.
      mesh: The device mesh.
      rules: Logical name -> mesh axis or axes.
      what: What the array is, for messages.

    Raises:
      ConfigError: A name is not in ``rules``, a mesh axis is used twice, or a dim does not divide.
    """
    if len(names) != len(shape):
        raise ConfigError(f"{what} has shape {shape} and {len(names)} dim names {names}")
    used: dict[str, int] = {}
    entries: list[MeshAxes] = []
    for dim, name in enumerate(names):
        if name is not None and name not in rules:
            raise ConfigError(f"{what} {shape}: no rule for dim {dim} named {name!r}; known names: {sorted(rules)}")
        entry = rules[name] if name is not None else None
        axes = (entry,) if isinstance(entry, str) else entry or ()
        for axis in axes:
            if axis in used:
                raise ConfigError(f"{what} {shape}: dims {used[axis]} and {dim} {names} both map to mesh axis {axis!r}")
            used[axis] = dim
        ways = math.prod(mesh.shape[axis] for axis in axes)
        if shape[dim] % ways:
            sizes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
            raise ConfigError(
                f"{what} {shape}: dim {dim} ({name}) of size {shape[dim]} does not divide over mesh {sizes}; "
                f"change config.parallel or the size ({_advice(name)})"
            )
        entries.append(entry)
    return PartitionSpec(*entries)


@contextlib.contextmanager
def placing(mesh: Mesh) -> Iterator[None]:
    """Makes ``constrain`` place activations on ``mesh`` while tracing."""
    token = _ACTIVE.set(mesh)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins an activation's sharding by the names of its dims; identity outside ``placing``."""
    mesh = _ACTIVE.get()
    if mesh is None:
        return x
    spec = partition_spec(names, x.shape, mesh, ACTIVATION_RULES, "activation")
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _advice(name: str | None) -> str:
    """Returns which config key sets the size of a logical dim."""
    return {
        "tokens": "config.layout.pad_multiple pads the sequence",
        "attention_heads": "config.model.num_heads",
        "heads": "config.model.num_heads",
        "mlp": "config.model.ffn_width or config.model.action_hidden",
        "embed": "config.model.width",
        "batch": "config.train.global_batch_size",
    }.get(name or "", "config.model")
