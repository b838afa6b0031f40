"""Logical-axis rules: which mesh axes a named dim is split over. Knows no arrays and no devices.

Two tables: one for parameters, one for activations; ``RULES`` has them by the name a configuration picks. A name that
is not in the table, two dims on one mesh axis, or a size that does not divide is an error with the array, its shape,
the mesh axis and its size: nothing is silently replicated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from wamjax.config.choices import RulePreset
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.parallel.axes import MESH_AXES

MeshAxes = str | tuple[str, ...] | None
Rules = Mapping[str, MeshAxes]

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


def partition(
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mapping[str, int],
    rules: Rules,
    what: str,
    *,
    uneven_whole: bool = False,
) -> tuple[MeshAxes, ...]:
    """Maps dim names to mesh axes, one entry per dim.

    Args:
      names: One logical name (or None) per dim.
      shape: Sizes of the dims.
      mesh: Sizes of the mesh axes.
      rules: Logical name -> mesh axis or axes.
      what: What the array is, for messages.
      uneven_whole: Whether every device gets all of a dim that does not divide, in place of an error.

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
        ways = math.prod(mesh[axis] for axis in axes)
        if shape[dim] % ways and uneven_whole:
            entry = None
        elif shape[dim] % ways:
            sizes = " x ".join(f"{axis}={mesh[axis]}" for axis in axes)
            raise ConfigError(
                f"{what} {shape}: dim {dim} ({name}) of size {shape[dim]} does not divide over mesh {sizes}; "
                f"change config.parallel or the size ({_advice(name)})"
            )
        entries.append(entry)
    return tuple(entries)


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
