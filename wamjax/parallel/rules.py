"""Placement of arrays: from the names modules give their dims to shardings, while a program is traced.

A module never sees the mesh; ``constrain`` does nothing outside ``placing``. The tables are ``parallel.rule_tables``'.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wamjax.config.choices import AttentionKernel, ContextMethod, GradientExchange, TokenPlacement
from wamjax.parallel.rule_tables import RULES, Rules, RuleTables, partition

AXES_KEY = "axes"  # metadata key under which a parameter carries the names of its dims


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
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mesh,
    rules: Rules,
    what: str,
    *,
    uneven_whole: bool = False,
) -> PartitionSpec:
    """Returns where an array goes; arguments and errors as ``rule_tables.partition``, with the device mesh."""
    return PartitionSpec(*partition(names, shape, mesh.shape, rules, what, uneven_whole=uneven_whole))


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
