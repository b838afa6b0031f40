"""Attention behind one front door: a schedule of rectangles in, one exact softmax per query out.

What the schedule does not hold is never computed, and no array grows as the square of the sequence. ``attend`` is for
any queries and keys; ``attend_self`` for a sequence that the mesh's context axis splits. Which kernel runs is chosen
by platform and can be set (``config.parallel.attention_kernel``).

========== ======== ==========================================================================================
kernel     platform what it is
========== ======== ==========================================================================================
rectangles any      Dense rectangles in plain XLA, a chunk of queries at a time (``nn.rectangles``).
blockwise  any      A loop over the touched blocks with an online softmax (``nn.blockwise``).
splash     TPU      Pallas kernel on the touched blocks (``nn.splash``).
cudnn      GPU      cuDNN's fused kernel on the dense rectangles (``nn.cudnn``).
========== ======== ==========================================================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool

from wamjax.config.backbone import BlockConfig
from wamjax.errors import ConfigError
from wamjax.layout.balance import TokenOrder, balance_order, imbalance
from wamjax.layout.kernels import pick_kernel
from wamjax.layout.schedule import Rectangle, Schedule
from wamjax.nn.blockwise import BLOCKWISE
from wamjax.nn.cudnn import attend_cudnn, unfused
from wamjax.nn.kernel import ATTENTION_OUT, CROSS_ATTENTION_OUT, Kernel, attend_kernel
from wamjax.nn.rectangles import ATTENTION_SCORES, RECTANGLES, attend_rectangles
from wamjax.nn.ring import SplitSequence, attend_split
from wamjax.nn.splash import SPLASH, attend_splash
from wamjax.parallel.context import join_heads, split_heads
from wamjax.parallel.context_plan import CONTEXT, ContextPlan, check_tokens_divide, plan_context
from wamjax.parallel.rules import Placement, active_placement, partition_spec, placing
from wamjax.types import Heads, KeyHeads

__all__ = [
    "ATTENTION_IN",
    "ATTENTION_OUT",
    "ATTENTION_SCORES",
    "CROSS_ATTENTION_OUT",
    "attend",
    "attend_self",
    "choose_kernel",
    "describe_attention",
    "token_order",
]

# Name by which a rematerialisation policy keeps what attention reads, after any exchange.
ATTENTION_IN = "attention_in"


class Attend(Protocol):
    """Attention of whole sequences; a rematerialisation policy keeps what it returns by ``name``."""

    def __call__(self, q: Heads, k: KeyHeads, v: KeyHeads, schedule: Schedule, *, name: str) -> Heads:
        """Returns ``[b k n e]``."""
        ...


# Name -> attention of whole sequences. ``PARTS`` has the kernels that also attend to parts of the keys.
KERNELS: dict[str, Attend] = {
    "rectangles": attend_rectangles,
    "blockwise": functools.partial(attend_kernel, kernel=BLOCKWISE),
    "splash": attend_splash,
    "cudnn": attend_cudnn,
}
PARTS: dict[str, Kernel] = {"rectangles": RECTANGLES, "blockwise": BLOCKWISE, "splash": SPLASH}


def attend(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    schedule: Schedule,
    *,
    key_mask: Bool[Array, "b m"] | None = None,
    split: Literal["heads", "tokens"] = "heads",
    kernel: str = "auto",
    name: str = ATTENTION_OUT,
) -> Heads:
    """Softmax attention over the pairs of ``schedule``.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(e)) v_j over the keys j that the schedule shows to query i.

    Args:
      q: ``[b k n e]`` queries.
      k: ``[b k m e]`` keys.
      v: ``[b k m e]`` values.
      schedule: Which rectangles are attended; its sizes are n and m.
      key_mask: ``[b m]`` keys that are seen at all (padded text); None for all. A sample that shows no key gives the
        mean of its values.
      split: Which dim of the queries the mesh's context axis splits; keys and values are split along heads too, or are
        whole where queries are split along tokens.
      kernel: Key of ``KERNELS``; ``auto`` picks as ``choose_kernel``.
      name: Under which a rematerialisation policy keeps the output.

    Returns:
      ``[b k n e]`` in the dtype of ``v``; zero for queries in no rectangle (padding).

    Raises:
      ConfigError: The kernel is unknown, or takes no mask of keys.
      ValueError: The arrays do not have the schedule's sizes.
    """
    placement = active_placement()
    if kernel == "auto":
        kernel = "rectangles" if key_mask is not None else choose_kernel(placement, v.dtype, q.shape[3])
    _check_known(kernel)
    if (q.shape[2], k.shape[2]) != (schedule.num_queries, schedule.num_keys):
        raise ValueError(
            f"attention got {q.shape[2]} queries and {k.shape[2]} keys; its schedule holds {schedule.num_queries} and "
            f"{schedule.num_keys}"
        )
    if kernel == "rectangles":
        return attend_rectangles(q, k, v, schedule, key_mask, name=name)
    if key_mask is not None:
        raise ConfigError(f"attention kernel {kernel} takes no mask of keys; rectangles does")
    if placement is None or placement.is_local:
        return KERNELS[kernel](q, k, v, schedule, name=name)
    # XLA cannot split a kernel: each device runs it on its own part.
    names = ("batch", "attention_heads", None, None) if split == "heads" else ("batch", "heads", "tokens", None)
    whole = (*names[:2], None, None)
    local = schedule if split == "heads" else _part_of_queries(schedule, placement.mesh.shape[CONTEXT])

    def run(q: Heads, k: KeyHeads, v: KeyHeads) -> Heads:
        return KERNELS[kernel](q, k, v, local, name=name)

    return _run_local(run, placement, (q, names), (k, whole), (v, whole))


def attend_self(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    schedule: Schedule,
    *,
    key_mask: Bool[Array, "b m"] | None = None,
    kernel: str = "auto",
) -> Heads:
    """Attends a sequence to itself (and to a past), where the mesh's context axis splits both.

    Args:
      q: ``[b k n e]``, in an explicit program this device's part of the sequence.
      k: ``[b k m e]``, likewise.
      v: ``[b k m e]``, likewise.
      schedule: Of the whole sequence.
      key_mask: As of ``attend``; for a whole sequence on every device alone.
      kernel: Key of ``KERNELS``; ``auto`` picks as ``choose_kernel``.

    Returns:
      ``[b k n e]``, split as ``q`` is.

    Raises:
      ConfigError: Heads or tokens do not divide over the context axis as the method needs, or as ``attend``.
    """
    placement = active_placement()
    if placement is None:
        return attend(*_named(q, k, v), schedule, key_mask=key_mask, kernel=kernel)
    sizes = placement.mesh.shape
    # Where arrays are local, so are heads; there tensor is 1.
    plan = plan_context(placement.context_method, q.shape[1], sizes)
    if plan.ring == 1:
        parts = _exchanged(q, k, v, plan.ulysses)
        return join_heads(attend(*parts, schedule, key_mask=key_mask, kernel=kernel), plan.ulysses)
    if key_mask is not None:
        raise ConfigError(
            f"config.parallel.context_method={plan.method} attends to parts of the keys, which takes no mask of them; "
            "set config.parallel.context to 1"
        )
    if kernel == "auto":
        kernel = choose_kernel(placement, v.dtype, q.shape[3], is_in_parts=True)
    _check_known(kernel)
    if kernel not in PARTS:
        raise ConfigError(
            f"attention kernel {kernel} cannot attend to parts of the keys, as config.parallel.context_method="
            f"{plan.method} needs; set config.parallel.attention_kernel to one of {sorted(PARTS)}"
        )
    for count, what in ((schedule.num_queries, "tokens"), (schedule.num_keys, "keys")):
        check_tokens_divide(count, sizes[CONTEXT], what)

    def run(q: Heads, k: KeyHeads, v: KeyHeads) -> Heads:
        return _attend_parts(q, k, v, schedule, plan, PARTS[kernel])

    if placement.is_local:
        return run(q, k, v)
    names = ("batch", "heads", "tokens", None)
    return _run_local(run, placement, (q, names), (k, names), (v, names))


def token_order(placement: Placement, schedule: Schedule, num_heads: int) -> TokenOrder | None:
    """Returns the order in which the context axis should hold the tokens of ``schedule``; None for their own.

    Where every device has the whole sequence (Ulysses), order does not matter.
    """
    plan = plan_context(placement.context_method, num_heads, placement.mesh.shape)
    divides = schedule.num_queries % placement.mesh.shape[CONTEXT] == 0
    if plan.ring == 1 or placement.token_placement == "natural" or not divides:
        return None
    order = balance_order(schedule, plan.ring, plan.exchange, plan.ulysses)
    return None if order.is_natural else order


def describe_attention(placement: Placement, schedule: Schedule, block: BlockConfig) -> str:
    """Returns one line: the kernel, how the context axis is used, and how even its load is."""
    plan = plan_context(placement.context_method, block.num_heads, placement.mesh.shape)
    kernel = choose_kernel(placement, block.compute_dtype, block.head_dim, is_in_parts=plan.ring > 1)
    line = f"attention: kernel {kernel}; context {plan}"
    if kernel == "cudnn" and unfused(schedule):
        line += f"; {unfused(schedule)} of {len(schedule.rectangles)} rectangles in plain XLA (causal after a context)"
    if block.attention:
        line += f"; layers by turns: {', '.join(map(str, block.attention))}"
    if plan.ring == 1:
        return line
    order = token_order(placement, schedule, block.num_heads)
    natural = imbalance(schedule, plan.ring, plan.exchange)
    if order is None:
        return f"{line}; tokens in their own order, longest / mean work {natural:.3f}"
    balanced = imbalance(order.apply(schedule), plan.ring, plan.exchange)
    return f"{line}; tokens in {len(order.pieces)} pieces, longest / mean work {balanced:.3f} ({natural:.3f} in order)"


def check_platform(kernel: str, platform: str) -> None:
    """Refuses a kernel that does not run on the devices of a mesh.

    Raises:
      ConfigError: With the platform that it needs.
    """
    needed = {"splash": "tpu", "cudnn": "gpu"}.get(kernel, platform)
    if needed != platform:
        raise ConfigError(
            f"config.parallel.attention_kernel={kernel} needs {needed} devices and the mesh is of {platform}; "
            "set it to auto"
        )


def choose_kernel(
    placement: Placement | None, dtype: jnp.dtype | str, head_dim: int, *, is_in_parts: bool = False
) -> str:
    """Returns the kernel of what is traced: what the placement asks for, or by platform (``layout.kernels``).

    Args:
      placement: The active one.
      dtype: Of the values.
      head_dim: Of the heads.
      is_in_parts: Whether attention is put together from parts of the keys.
    """
    if placement is None:
        return "rectangles"
    platform = placement.mesh.devices.flat[0].platform
    return pick_kernel(placement.attention_kernel, platform, jnp.dtype(dtype).name, head_dim, is_in_parts=is_in_parts)


def _attend_parts(
    q: Heads, k: KeyHeads, v: KeyHeads, schedule: Schedule, plan: ContextPlan, kernel: Kernel
) -> jax.Array:
    """Attends this device's part of the sequence, within its group of heads, to all parts."""
    split = SplitSequence(
        schedule=schedule,
        ways=plan.ring,
        stride=plan.ulysses,
        size=plan.ring * plan.ulysses,
        exchange=plan.exchange,
        kernel=kernel,
    )
    return join_heads(attend_split(*_exchanged(q, k, v, plan.ulysses), split), plan.ulysses)


def _run_local(
    run: Callable[..., jax.Array], placement: Placement, *operands: tuple[jax.Array, tuple[str | None, ...]]
) -> jax.Array:
    """Runs ``run`` on each device's part of the operands, given with the names of their dims; it returns the first."""
    rules = placement.rules.activations
    specs = [
        partition_spec(names, array.shape, placement.mesh, rules, "attention's operand") for array, names in operands
    ]

    def local(*args: jax.Array) -> jax.Array:
        with placing(placement.local()):
            return run(*args)

    arrays = [array for array, _ in operands]
    return jax.shard_map(local, mesh=placement.mesh, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)(
        *arrays
    )


def _part_of_queries(schedule: Schedule, ways: int) -> Schedule:
    """Returns the schedule of one of ``ways`` equal parts of the queries, where all see all keys."""
    assert schedule.num_pairs == schedule.num_queries * schedule.num_keys, "only where all queries see all keys"
    part = schedule.num_queries // ways
    return Schedule(part, schedule.num_keys, (Rectangle(((0, part),), ((0, schedule.num_keys),)),))


def _exchanged(q: jax.Array, k: jax.Array, v: jax.Array, ways: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _named(split_heads(q, ways), split_heads(k, ways), split_heads(v, ways))


def _named(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return checkpoint_name(q, ATTENTION_IN), checkpoint_name(k, ATTENTION_IN), checkpoint_name(v, ATTENTION_IN)


def _check_known(kernel: str) -> None:
    if kernel not in KERNELS:
        raise ConfigError(
            f"attention kernel {kernel!r} is unknown; set config.parallel.attention_kernel to one of {sorted(KERNELS)}"
        )
