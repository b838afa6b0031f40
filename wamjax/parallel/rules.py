"""Logical-axis rules: from the names modules give their dims to mesh axes.

Two tables: one for parameters, one for activations; ``RULES`` has them by the name a configuration picks. A module
never sees the mesh; ``constrain`` does nothing outside ``placing``. A name that is not in the table, two dims on one
mesh axis, or a size that does not divide is an error with the array, its shape, the mesh axis and its size: nothing is
silently replicated.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Literal

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from wamjax.config.choices import AttentionKernel, ContextMethod, GradientExchange, RulePreset, TokenPlacement
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError

MESH_AXES = ("data", "fsdp", "context", "tensor")

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
    "stream": "context",  # tokens of the residual stream, between layers
    "mlp": "tensor",
    "heads": "tensor",
    "embed": "fsdp",
    # Inside self-attention the sequence is whole and the heads are split instead (Ulysses, by XLA's all-to-all).
    "attention_heads": ("context", "tensor"),
}


@dataclasses.dataclass(frozen=True)
class RuleTables:
    """Where parameters and activations go.

    Attributes:
      parameters: Rules of parameters, optimizer state and averages.
      activations: Rules of activations.
    """

    parameters: Rules
    activations: Rules


# Parameters are split over the context axis too: it has their gradients to add up anyway.
_WITH_CONTEXT = RuleTables(
    {**PARAMETER_RULES, "embed": ("fsdp", "context")}, {**ACTIVATION_RULES, "embed": ("fsdp", "context")}
)

# ``data`` is left to replicas in all: across slices it is the axis over the data-centre network (HSDP).
RULES: Mapping[RulePreset, RuleTables] = {
    "fsdp": RuleTables(PARAMETER_RULES, ACTIVATION_RULES),
    "fsdp_context": _WITH_CONTEXT,
    # What is kept between layers is split over the tensor axis too, and gathered over it by the products that read it.
    # Source: Megatron-LM's sequence parallelism (arXiv 2205.05198).
    "fsdp_context_tensor": dataclasses.replace(
        _WITH_CONTEXT, activations={**_WITH_CONTEXT.activations, "stream": ("context", "tensor")}
    ),
    # The tables of one slice: parameters are gathered within it, and gradients alone cross the network, once a step.
    "multi_slice": _WITH_CONTEXT,
}


def build_rules(config: ParallelConfig) -> RuleTables:
    """Returns the tables of ``config``: those of its preset with its overrides.

    Raises:
      ConfigError: An override names no dim of the tables, or no mesh axis, or moves the tokens of attention.
    """
    preset = RULES[config.rules]
    parameters, activations = dict(preset.parameters), dict(preset.activations)
    known = sorted({*parameters, *activations})
    for name, text in config.rule_overrides:
        axes = tuple(axis for axis in text.split("+") if axis)
        if name not in known:
            raise ConfigError(f"config.parallel.rule_overrides: no dim is named {name!r}; known: {', '.join(known)}")
        if name == "tokens" and axes != ("context",):
            raise ConfigError(
                f"config.parallel.rule_overrides: tokens={text!r}; attention has them split over context (use "
                "config.parallel.context=1 to leave them whole; stream is what may be moved)"
            )
        for axis in axes:
            if axis not in MESH_AXES:
                raise ConfigError(
                    f"config.parallel.rule_overrides: {name}={text!r} names no mesh axis {axis!r}; axes are "
                    f"{', '.join(MESH_AXES)}, joined by +"
                )
        for table in (parameters, activations):
            if name in table:
                table[name] = axes or None
    return RuleTables(parameters, activations)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """How a program is placed while it is traced.

    Attributes:
      mesh: The device mesh.
      rules: Rule tables.
      blocks: Who writes the collectives of the blocks: XLA from shardings, or ``parallel.explicit``.
      gradient_exchange: How explicit blocks add gradients of kernels up.
      context_method: How self-attention is shared over the context axis.
      token_placement: How tokens are dealt out to it where attention needs them balanced.
      attention_kernel: What computes attention.
      is_local: Whether what is traced is one device's part of the blocks, where arrays are local.
    """

    mesh: Mesh
    rules: RuleTables = RULES["fsdp"]
    blocks: Literal["sharded", "explicit"] = "sharded"
    gradient_exchange: GradientExchange = "reduce_scatter"
    context_method: ContextMethod = "auto"
    token_placement: TokenPlacement = "balanced"
    attention_kernel: AttentionKernel = "auto"
    is_local: bool = False

    def local(self) -> Placement:
        """Returns the placement of one device's part of the program."""
        return dataclasses.replace(self, is_local=True)


_ACTIVE: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("wamjax_placement", default=None)


def partition_spec(
    names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules, what: str
) -> PartitionSpec:
    """Maps dim names to mesh axes.

    Args:
      names: One logical name (or None) per dim.
      shape: Sizes of the dims.
      mesh: The device mesh, or its axes alone.
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
def placing(placement: Placement | Mesh) -> Iterator[None]:
    """Makes ``constrain`` place activations while tracing; a mesh alone means the default rules on it."""
    token = _ACTIVE.set(Placement(mesh=placement) if isinstance(placement, Mesh) else placement)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def active_placement() -> Placement | None:
    """Returns the placement of what is being traced; None outside ``placing``."""
    return _ACTIVE.get()


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins an activation's sharding by the names of its dims; identity outside ``placing`` and on local arrays."""
    placement = _ACTIVE.get()
    if placement is None or placement.is_local:
        return x
    spec = partition_spec(names, x.shape, placement.mesh, placement.rules.activations, "activation")
    return jax.lax.with_sharding_constraint(x, NamedSharding(placement.mesh, spec))


def _advice(name: str | None) -> str:
    """Returns which config key sets the size of a logical dim."""
    return {
        "tokens": "config.layout.pad_multiple pads the sequence",
        "stream": "config.layout.pad_multiple pads the sequence",
        "attention_heads": "config.model.num_heads",
        "heads": "config.model.num_heads",
        "mlp": "config.model.ffn_width or config.model.action_hidden",
        "embed": "config.model.width",
        "batch": "config.train.global_batch_size",
    }.get(name or "", "config.model")
