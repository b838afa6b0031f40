"""Attention of local queries to keys that are split over the context axis: passed around a ring, or gathered.

Owns both passes. A device's own keys and values are all that is kept for the backward pass, which moves them again.
Every device runs the kernel on the schedule of its queries and of the keys it holds at that step; pairs of devices of
which the layout shows nothing are skipped, and steps at which no device has anything to do are not stopped at.

Source: Ring Attention (arXiv 2310.01889). What differs: schedules of layouts instead of a causal mask, and gradients
of keys and values that travel in fp32 with their keys and are sent home at the end.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from wamjax.flops.declared import branch_shares
from wamjax.layout.parts import gathered_schedules, ring_schedules, ring_steps
from wamjax.layout.schedule import Schedule
from wamjax.nn.kernel import ATTENTION_OUT, Kernel, Normalised, merge
from wamjax.parallel.context_plan import CONTEXT

_Kept = tuple[jax.Array, jax.Array, jax.Array, Normalised]


@dataclasses.dataclass(frozen=True)
class SplitSequence:
    """How a sequence is split over devices, and how they attend.

    Attributes:
      schedule: The whole.
      ways: Parts of the sequence.
      stride: Distance, on the context axis, of devices that hold neighbouring parts (the same heads).
      size: Devices on the context axis.
      exchange: How keys and values come to the queries.
      kernel: What attends.
    """

    schedule: Schedule
    ways: int
    stride: int
    size: int
    exchange: Literal["ring", "all_gather"]
    kernel: Kernel

    def schedules(self, step: int) -> tuple[Schedule, ...]:
        """Returns, for each part's queries, what they see of the keys that are with them at ``step``."""
        return ring_schedules(self.schedule, self.ways, step)

    def steps(self) -> tuple[int, ...]:
        """Returns the steps of the ring at which some device has something to do, the first of them 0."""
        return ring_steps(self.schedule, self.ways)

    def passed_on(self, x: Any, steps: int) -> Any:
        """Returns the arrays of the device ``steps`` behind in the ring."""
        if steps % self.ways == 0:
            return x
        pairs = [(device, (device + steps * self.stride) % self.size) for device in range(self.size)]
        return jax.tree.map(lambda part: jax.lax.ppermute(part, CONTEXT, pairs), x)

    def part(self) -> jax.Array:
        """Returns which part of the sequence this device holds."""
        return jax.lax.axis_index(CONTEXT) // self.stride


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend_split(q: jax.Array, k: jax.Array, v: jax.Array, split: SplitSequence) -> jax.Array:
    """Returns ``[b k n e]``, what this device's queries get from all keys of the sequence.

    Args:
      q: ``[b k n e]``, this device's queries.
      k: ``[b k m e]``, this device's keys.
      v: ``[b k m e]``, this device's values.
      split: How the sequence is split.
    """
    return _attend(q, k, v, split).out.astype(v.dtype)


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, split: SplitSequence) -> tuple[jax.Array, _Kept]:
    whole = _attend(q, k, v, split)
    out, lse = (checkpoint_name(part, ATTENTION_OUT) for part in (whole.out.astype(v.dtype), whole.lse))
    return out, (q, k, v, Normalised(out, lse))


def _backward(split: SplitSequence, kept: _Kept, grad: jax.Array) -> tuple[jax.Array, ...]:
    run = _ring_gradients if split.exchange == "ring" else _gathered_gradients
    return tuple(part.astype(like.dtype) for part, like in zip(run(split, kept, grad), kept[:3], strict=True))


attend_split.defvjp(_forward, _backward)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, split: SplitSequence) -> Normalised:
    if split.exchange == "all_gather":
        everything = gathered_schedules(split.schedule, split.ways)
        return _switch(split, everything, _forward_of(split.kernel), q, *_gathered((k, v)))
    whole, held, steps = None, (k, v), split.steps()
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        # Sent before the step is computed, which needs it not.
        coming = None if following is None else split.passed_on(held, following - step)
        part = _switch(split, split.schedules(step), _forward_of(split.kernel), q, *held)
        whole, held = part if whole is None else merge(whole, part), coming or held
    assert whole is not None
    return whole


def _ring_gradients(split: SplitSequence, kept: _Kept, grad: jax.Array) -> tuple[jax.Array, ...]:
    """Goes around the ring again; the gradients of keys and values travel with them."""
    q, k, v, whole = kept
    grad_q, held, steps = jnp.zeros(q.shape, jnp.float32), (k, v), split.steps()
    grads: tuple[jax.Array, jax.Array] | None = None
    for step, following in zip(steps, [*steps[1:], split.ways], strict=True):
        coming = None if following == split.ways else split.passed_on(held, following - step)
        by_query, *by_held = _switch(
            split, split.schedules(step), _backward_of(split.kernel), q, *held, whole.out, whole.lse, grad
        )
        grad_q += by_query
        summed = by_held if grads is None else [a + b for a, b in zip(grads, by_held, strict=True)]
        grads, held = split.passed_on(tuple(summed), following - step), coming or held
    assert grads is not None
    return grad_q, *grads


def _gathered_gradients(split: SplitSequence, kept: _Kept, grad: jax.Array) -> tuple[jax.Array, ...]:
    q, k, v, whole = kept
    grad_q, *grads = _switch(
        split,
        gathered_schedules(split.schedule, split.ways),
        _backward_of(split.kernel),
        q,
        *_gathered((k, v)),
        whole.out,
        whole.lse,
        grad,
    )
    scatter = functools.partial(jax.lax.psum_scatter, axis_name=CONTEXT, scatter_dimension=2, tiled=True)
    return grad_q, *(scatter(part) for part in grads)


def _gathered(parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the arrays of all devices; where keys are gathered, no heads are exchanged."""
    return [jax.lax.all_gather(x, CONTEXT, axis=2, tiled=True) for x in parts]


def _forward_of(kernel: Kernel) -> Callable[..., Any]:
    def run(schedule: Schedule, q: jax.Array, k: jax.Array, v: jax.Array) -> Normalised:
        if not schedule.rectangles:
            return Normalised(jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], -jnp.inf))
        out, lse = kernel.forward(q, k, v, schedule)
        return Normalised(out.astype(jnp.float32), lse)

    return run


def _backward_of(kernel: Kernel) -> Callable[..., Any]:
    def run(
        schedule: Schedule,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        out: jax.Array,
        lse: jax.Array,
        grad: jax.Array,
    ) -> tuple[jax.Array, ...]:
        if not schedule.rectangles:
            return tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
        grads = kernel.backward(q, k, v, Normalised(out, lse), grad, schedule)
        return tuple(part.astype(jnp.float32) for part in grads)

    return run


def _switch(split: SplitSequence, schedules: tuple[Schedule, ...], run: Callable[..., Any], *operands: Any) -> Any:
    """Runs this device's schedule; devices with equal schedules share one branch."""
    distinct = tuple(dict.fromkeys(schedules))
    if len(distinct) == 1:
        return run(distinct[0], *operands)
    branches = [distinct.index(schedule) for schedule in schedules]
    # All devices run one program, in which the branch is data: how many of them take which is said beside it.
    with branch_shares(branches.count(number) for number in range(len(distinct))):
        branch = jnp.array(branches)[split.part()]
        return jax.lax.switch(branch, [functools.partial(run, schedule) for schedule in distinct], *operands)
