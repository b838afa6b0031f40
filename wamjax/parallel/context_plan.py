"""Context parallelism: which method shares attention among devices that each hold a part of the sequence.

Owns the choice of the method and its checks, from numbers alone; the exchanges are ``parallel.context``'s.

============ ===========================================================================================
ulysses      Two exchanges: every device gets the whole sequence of its part of the heads, and back.
all_gather   Keys and values of the whole sequence on every device, for its own queries.
ring         Keys and values travel from neighbour to neighbour; never more than two parts on a device.
ulysses_ring Ulysses within groups of devices as large as the heads allow, a ring over the groups.
============ ===========================================================================================

Source: DeepSpeed-Ulysses (arXiv 2309.14509); Ring Attention (arXiv 2310.01889); USP (arXiv 2405.07719) for both
together. Which to use and what each sends: docs/design/context-parallelism.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from wamjax.config.choices import ContextMethod
from wamjax.errors import ConfigError

CONTEXT = "context"


class ContextPlan(NamedTuple):
    """How a mesh's context axis is used.

    Attributes:
      method: What is done; never ``auto``.
      ulysses: Neighbouring devices that exchange heads.
      ring: Groups of them that keys and values are passed (or gathered) over; ``ulysses`` x ``ring`` devices in all.
    """

    method: ContextMethod
    ulysses: int
    ring: int

    @property
    def exchange(self) -> Literal["ring", "all_gather"]:
        """How keys come to the queries of another part, where there is more than one."""
        return "all_gather" if self.method == "all_gather" else "ring"

    def __str__(self) -> str:
        if self.ulysses * self.ring == 1:
            return "none: one device holds the sequence"
        return f"{self.method}: {self.ulysses} parts of the heads x {self.ring} parts of the sequence"


def plan_context(wanted: ContextMethod, num_heads: int, mesh: Mapping[str, int]) -> ContextPlan:
    """Returns how attention with ``num_heads`` heads is shared over the context axis.

    ``auto``: Ulysses where heads divide, which moves least and needs no balancing; else Ulysses over the largest
    divisor of the axis that divides the heads and a ring over the rest; else a ring.

    Args:
      wanted: ``config.parallel.context_method``.
      num_heads: Heads of the model.
      mesh: Sizes of the mesh axes.

    Raises:
      ConfigError: The heads cannot be shared as wanted.
    """
    ways, tensor = mesh[CONTEXT], mesh["tensor"]
    local_heads = num_heads // tensor
    common = math.gcd(ways, local_heads) if num_heads % tensor == 0 else 1
    method = wanted
    if method == "auto":
        method = "ulysses" if common == ways else "ulysses_ring" if common > 1 else "ring"
    if method == "ulysses" and common != ways:
        over = f"config.parallel.context={ways}" + (f" x config.parallel.tensor={tensor}" if tensor > 1 else "")
        raise ConfigError(
            f"{num_heads} heads do not divide over {over}: Ulysses gives every device whole heads; set "
            "config.parallel.context_method=ring, or a context that divides the heads (config.model.num_heads)"
        )
    if method == "ulysses_ring" and ways > 1 and common == 1:
        raise ConfigError(
            f"{num_heads} heads share no divisor with config.parallel.context={ways}: ulysses_ring has nothing to "
            "exchange; set config.parallel.context_method=ring"
        )
    ulysses = {"ulysses": ways, "ulysses_ring": common}.get(method, 1)
    return ContextPlan(method, ulysses, ways // ulysses)


def check_tokens_divide(num_tokens: int, ways: int, what: str) -> None:
    """Refuses a sequence that does not divide over the context axis.

    Raises:
      ConfigError: With the padding that it would take.
    """
    if num_tokens % ways:
        raise ConfigError(
            f"{num_tokens} {what} do not divide over config.parallel.context={ways}; it would take "
            f"{-num_tokens % ways} padding tokens: set config.layout.pad_multiple to a multiple of {ways}"
        )
