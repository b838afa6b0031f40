"""Choices that several parts of a configuration share."""

from __future__ import annotations

from typing import Literal

DType = Literal["float32", "bfloat16"]

# Format that operands of the blocks' products are rounded to; "" for none. See ``nn.quantised``.
Matmul = Literal["", "fp8", "int8"]

# What the backward pass of a block finds; all else is computed again. See ``models.remat``.
Remat = Literal["none", "products", "exchanged", "attention", "self_attention", "offload", "full"]

# Those under which the backward pass runs a block's products again.
REPEATING: tuple[Remat, ...] = ("attention", "self_attention", "offload", "full")

# Names of the tables of ``parallel.rules``.
RulePreset = Literal["fsdp", "fsdp_context", "fsdp_context_tensor", "multi_slice"]

# How the gradient of a gathered kernel is added up over devices. See ``parallel.explicit``.
GradientExchange = Literal["auto", "reduce_scatter", "all_to_all"]

# How self-attention is shared over the context axis. See ``parallel.context_plan``.
ContextMethod = Literal["auto", "ulysses", "all_gather", "ring", "ulysses_ring"]

# How tokens are dealt out to the context axis where attention needs them balanced. See ``layout.balance``.
TokenPlacement = Literal["balanced", "natural"]

# What computes attention. See ``nn.attention``.
AttentionKernel = Literal["auto", "rectangles", "blockwise", "splash", "cudnn"]
