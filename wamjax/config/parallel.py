"""The mesh of a run, and what its axes are used for."""

from __future__ import annotations

import dataclasses
from typing import Literal

from wamjax.config.choices import AttentionKernel, ContextMethod, GradientExchange, RulePreset, TokenPlacement


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Sizes of the mesh axes. Their product must be the number of devices.

    An axis of size -1 takes what is left; several axes of -1 share what is left, prime factor by prime factor,
    leftmost first (8 devices on ``fsdp=-1, context=-1`` give 4 x 2, 4 devices 2 x 2, 1 device 1 x 1).
    ``fsdp=-1, context=0`` fits the mesh to the batch: fsdp takes as many devices as the batch divides over, context the
    rest (a batch of 16 on 64 devices gives 16 x 4, on 256 devices 16 x 16).

    Attributes:
      data: Replicas of the parameters; the batch is split over it. Of several TPU slices it is a multiple: only this
        axis crosses the data-centre network.
      fsdp: Parameters and optimizer state are split over it, and the batch too.
      context: The token sequence is split over it (inside attention as ``context_method`` says).
      tensor: Heads and feed-forward hidden units are split over it.
      rules: Where arrays go (``parallel.rules``). Heads and feed-forward units are split over tensor, parameters
        besides over fsdp (``fsdp``), and over context too (``fsdp_context``); ``fsdp_context_tensor`` splits the
        tokens between layers over tensor too; ``multi_slice`` is ``fsdp_context`` in every slice, one replica or more.
      rule_overrides: Pairs (name of a dim, mesh axes) that replace rules of the preset: ``fsdp+context`` joins axes, an
        empty text splits over none.
      blocks: ``sharded``: XLA places the collectives of the blocks from shardings alone, on any mesh. ``explicit``: the
        blocks are one program per device that says which collectives move weights and tokens; needs tensor = 1.
      gradient_exchange: With ``explicit``, how gradients of kernels are added up: ``auto`` picks by chip
        (``parallel.explicit``).
      context_method: How self-attention is shared over context: ``auto`` picks by the number of heads
        (``parallel.context_plan``).
      token_placement: Where keys come to the queries (``all_gather``, ``ring``, ``ulysses_ring``): ``balanced`` deals
        pieces of the sequence out so that every device attends to about as many pairs (``layout.balance``).
      attention_kernel: What computes attention: ``auto`` picks by platform (``nn.attention``).
    """

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1
    rules: RulePreset = "fsdp"
    rule_overrides: tuple[tuple[str, str], ...] = ()
    blocks: Literal["sharded", "explicit"] = "sharded"
    gradient_exchange: GradientExchange = "auto"
    context_method: ContextMethod = "auto"
    token_placement: TokenPlacement = "balanced"
    attention_kernel: AttentionKernel = "auto"
