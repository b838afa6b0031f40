"""What a program says about its own cost where its jaxpr cannot: kernels out of sight, branches chosen by device.

Code that builds such a thing opens one of these scopes around it; the counter (``flops.jaxpr``) reads it from the name
stack. A scope changes names and nothing else of what is compiled.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

_SHARES = re.compile(r"branch_shares_(\d+(?:_\d+)*)")
_KERNEL = re.compile(r"kernel_flops_(\d+)_(\d+)")
_BACKWARD = ("dkv", "dq", "bwd", "backward")  # parts of the names of kernels of a backward pass


class KernelFlops(NamedTuple):
    """FLOPs of one call of a kernel and of its backward pass, on one device."""

    forward: int
    backward: int

    def of(self, kernel: str) -> int:
        """Returns the FLOPs of the pass that the kernel's name says it is."""
        return self.backward if any(part in kernel for part in _BACKWARD) else self.forward


def branch_shares(shares: Iterable[int]) -> contextlib.AbstractContextManager[Any]:
    """Opens a scope for one ``cond`` or ``switch``: of ``sum(shares)`` devices, so many take each branch."""
    return jax.named_scope("branch_shares_" + "_".join(map(str, shares)))


def kernel_flops(forward: int, backward: int) -> contextlib.AbstractContextManager[Any]:
    """Opens a scope for one kernel whose calls cost ``forward`` and ``backward`` FLOPs on one device."""
    return jax.named_scope(f"kernel_flops_{forward}_{backward}")


def find_branch_shares(scope: str) -> tuple[int, ...] | None:
    """Returns what the innermost ``branch_shares`` of a name stack says; None if there is none."""
    found = _SHARES.findall(scope)
    return tuple(map(int, found[-1].split("_"))) if found else None


def find_kernel_flops(scope: str) -> KernelFlops | None:
    """Returns what the innermost ``kernel_flops`` of a name stack says; None if there is none."""
    found = _KERNEL.findall(scope)
    return KernelFlops(*map(int, found[-1])) if found else None
