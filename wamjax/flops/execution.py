"""Where a step runs, as far as the products it executes depend on it: the attention kernel, and what is done twice.

A program that says which device does what (``config.parallel.blocks=explicit``, context parallelism, kernels that XLA
cannot split) attends to parts of the sequence, and gives the devices that share a sample its text.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from wamjax.config.backbone import BlockConfig
from wamjax.config.choices import AttentionKernel
from wamjax.config.parallel import ParallelConfig
from wamjax.flops.layers import chunked_delta_rule
from wamjax.layout import Rectangle, Schedule
from wamjax.layout.balance import balance_order
from wamjax.layout.kernels import DELTA_CHUNK, Computed, Platform, computed_pairs, pick_kernel
from wamjax.layout.parts import gathered_schedules, ring_schedules, ring_steps
from wamjax.parallel.context_plan import CONTEXT, ContextPlan, plan_context

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """Devices of a run; by default one in plain XLA.

    Attributes:
      platform: Of the devices: decides what ``config.parallel.attention_kernel=auto`` means.
      context: Devices that share a sequence.
      tensor: Devices that share heads.
    """

    platform: Platform = "cpu"
    context: int = 1
    tensor: int = 1


def execution_on(mesh: Mesh) -> Execution:
    """Returns the execution on the devices of ``mesh``."""
    platform = mesh.devices.flat[0].platform
    return Execution(platform=platform, context=mesh.shape[CONTEXT], tensor=mesh.shape["tensor"])


class AttentionWork(NamedTuple):
    """What the attention layers of one block compute for one sample, over all devices that share it.

    Attributes:
      own: Self-attention.
      text: Cross-attention to text.
      image: Cross-attention to an image.
      copies: How many devices project the same text and image, and modulation.
      recurrence: FLOPs forward and backward of a recurrence in place of self-attention.
    """

    own: tuple[Computed, ...]
    text: tuple[Computed, ...]
    image: tuple[Computed, ...]
    copies: int = 1
    recurrence: tuple[int, int] = (0, 0)

    @property
    def num_pairs(self) -> int:
        """Pairs of a forward pass of self-attention."""
        return sum(computed.forward for computed in self.own)


def executed_attention(
    parallel: ParallelConfig,
    block: BlockConfig,
    schedule: Schedule,
    text: int,
    image: int,
    execution: Execution,
    *,
    tokens: int | None = None,
    masks_text: bool = False,
    recurrent_tokens: int = 0,
) -> AttentionWork:
    """Returns what attention executes.

    Args:
      parallel: Kernel, context method and blocks.
      block: Heads and dtype.
      schedule: Of self-attention.
      text: Text tokens.
      image: Image tokens.
      execution: The devices.
      tokens: Queries of attention to text and image; None for those of ``schedule``. One expert has its own alone.
      masks_text: Whether text is masked, which the fused kernels do not do.
      recurrent_tokens: What a recurrence reads, where ``block`` has one in place of self-attention.

    Raises:
      ConfigError: Heads do not divide as the context method needs, or a kernel does not take the lengths.
    """
    plan = plan_context(
        parallel.context_method, block.num_heads, {CONTEXT: execution.context, "tensor": execution.tensor}
    )
    is_explicit = parallel.blocks == "explicit"
    kernel = pick_kernel(parallel.attention_kernel, execution.platform, block.compute_dtype, block.head_dim)
    queries = schedule.num_queries if tokens is None else tokens

    def cross(keys: int, kernel: AttentionKernel) -> tuple[Computed, ...]:
        # Queries are whole only where XLA splits them itself.
        ways = execution.context if is_explicit or kernel != "rectangles" else 1
        rows = queries // ways
        everything = Rectangle(((0, rows),), ((0, keys),))
        return ways * computed_pairs(kernel, Schedule(rows, keys, (everything,))) if keys else ()

    recurrence = (0, 0)
    if block.is_recurrent:
        sizes = block.num_heads, block.own_attention.key_dim, block.own_attention.value_dim
        recurrence = chunked_delta_rule(recurrent_tokens, *sizes, DELTA_CHUNK)
    return AttentionWork(
        own=_executed_self(parallel, block, schedule, plan, execution),
        text=cross(text, "rectangles" if masks_text else kernel),
        image=cross(image, kernel),
        copies=execution.context if is_explicit else 1,
        recurrence=recurrence,
    )


def _executed_self(
    parallel: ParallelConfig, block: BlockConfig, schedule: Schedule, plan: ContextPlan, execution: Execution
) -> tuple[Computed, ...]:
    """Returns what self-attention executes, part by part where the sequence is in parts (``nn.ring``)."""
    in_parts = plan.ring > 1
    kernel = pick_kernel(
        parallel.attention_kernel, execution.platform, block.compute_dtype, block.head_dim, is_in_parts=in_parts
    )
    if not in_parts:
        return computed_pairs(kernel, schedule)
    if parallel.token_placement == "balanced" and schedule.num_queries % execution.context == 0:
        schedule = balance_order(schedule, plan.ring, plan.exchange, plan.ulysses).apply(schedule)
    if plan.exchange == "all_gather":
        parts = gathered_schedules(schedule, plan.ring)
    else:
        steps = ring_steps(schedule, plan.ring)
        parts = tuple(part for step in steps for part in ring_schedules(schedule, plan.ring, step))
    return tuple(computed for part in parts for computed in computed_pairs(kernel, part, is_in_parts=True))
