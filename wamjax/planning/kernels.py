"""What Pallas (Mosaic) kernels in a compiled module compute: FLOPs and direction, which XLA's cost model leaves out.

A kernel's own ``cost_estimate`` is used where it states one, else what the code that calls it declared in its name
stack (``flops.declared``), which leaves out the blocks that a mask skips. Splash attention of other programs has
neither: its FLOPs follow from the shapes, all pairs of a query and a key counted (an upper bound for a masked one).

Source of the units: a query-key pair costs two FLOPs per head dim and product; forward has two products and a fused
backward five (FlashAttention-2, arXiv 2307.08691). Split in two, dq needs three and dkv four of the five.
"""

from __future__ import annotations

import dataclasses
import math

from wamjax.flops.declared import find_kernel_flops
from wamjax.planning.hlo import Computation, Instruction

TARGET = "tpu_custom_call"
_BACKWARD = ("dkv", "dq", "bwd", "backward")
_FORWARD_UNITS, _DQ_UNITS, _DKV_UNITS, _FUSED_UNITS = 4, 6, 8, 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One call of a kernel.

    Attributes:
      name: The kernel's name.
      flops: FLOPs of the call, or None where neither the kernel nor its shapes say.
      num_bytes: Bytes the kernel says it moves; 0 where it says nothing.
      is_backward: Whether it belongs to a backward pass.
    """

    name: str
    flops: int | None
    num_bytes: int
    is_backward: bool


def find_kernel(computation: Computation, instruction: Instruction) -> Kernel | None:
    """Returns the kernel that ``instruction`` calls, or None if it calls none."""
    if instruction.target != TARGET:
        return None
    name = _kernel_name(instruction)
    stated = instruction.backend_config.get("custom_call_config", {}).get("cost_estimate")
    declared = find_kernel_flops(instruction.op_name)
    if stated:
        flops = int(stated["flops"])
    else:
        flops = declared.of(name) if declared else _splash_flops(computation, instruction, name)
    return Kernel(
        name=name,
        flops=flops,
        num_bytes=int(stated["bytes_accessed"]) if stated else 0,
        is_backward=any(mark in name for mark in _BACKWARD),
    )


def _kernel_name(instruction: Instruction) -> str:
    """The kernel's name, as Pallas puts it before ``pallas_call`` in the op name."""
    parts = instruction.op_name.split("/")
    name = parts[-2] if len(parts) > 1 and parts[-1].startswith("pallas_call") else instruction.name.split(".")[0]
    return name.removeprefix("vmap(").removesuffix(")")


def _splash_flops(computation: Computation, instruction: Instruction, name: str) -> int | None:
    """FLOPs of a splash kernel from queries ``[... S D]`` and keys, its first two floating operands."""
    if not name.startswith("splash"):
        return None
    floating = [a for a in computation.operand_arrays(instruction) if "f" in a.dtype and len(a.dims) >= 2]
    if len(floating) < 2:
        return None
    queries, keys = floating[0].dims, floating[1].dims
    units = _FORWARD_UNITS
    if "dkv" in name:
        gradients = [array for array in instruction.arrays if array.dims[-2:] in (queries[-2:], keys[-2:])]
        units = _FUSED_UNITS if len(gradients) > 2 or _has_partial_dq(instruction, queries) else _DKV_UNITS
    elif "dq" in name:
        units = _DQ_UNITS
    return units * math.prod(queries) * keys[-2]


def _has_partial_dq(instruction: Instruction, queries: tuple[int, ...]) -> bool:
    """Whether the call also returns dq: one more leading dim than the queries, a partial sum per block of keys."""
    return any(len(array.dims) == len(queries) + 1 and array.dims[-2:] == queries[-2:] for array in instruction.arrays)
