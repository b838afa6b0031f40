"""What an attention kernel is: a forward pass that also returns the softmax's normalisers, and its backward pass.

With the normalisers, attention to parts of the keys can be put together exactly (``merge``), and the backward pass of
every part uses those of the whole. Context parallelism (``nn.ring``) rests on this; on one device ``attend_kernel`` is
the kernel as a differentiable function.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from wamjax.config.choices import AttentionKernel
from wamjax.flops.declared import kernel_flops
from wamjax.flops.layers import fused_attention
from wamjax.layout.kernels import computed_pairs
from wamjax.layout.schedule import Schedule

# Name by which a rematerialisation policy keeps outputs and normalisers.
ATTENTION_OUT = "attention_out"
CROSS_ATTENTION_OUT = "cross_attention_out"


class Normalised(NamedTuple):
    """Attention to some keys.

    Attributes:
      out: ``[b k n e]``, the softmax over those keys alone; zero for a query that sees none.
      lse: fp32 ``[b k n]``, the log of the sum of exponentials of its scores; minus infinity for such a query.
    """

    out: jax.Array
    lse: jax.Array


class Forward(Protocol):
    """The forward pass."""

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, schedule: Schedule, /) -> Normalised:
        """Attends ``q`` ``[b k n e]`` to ``k`` and ``v`` ``[b k m e]``."""
        ...


class Backward(Protocol):
    """The backward pass."""

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, whole: Normalised, grad: jax.Array, schedule: Schedule, /
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the gradients of q, k and v.

        Args:
          q: ``[b k n e]``.
          k: ``[b k m e]``, all keys or a part of them.
          v: ``[b k m e]``.
          whole: Outputs and normalisers over all keys.
          grad: ``[b k n e]``, of the output over all keys.
          schedule: Which of these keys the queries see.
        """
        ...


class Kernel(NamedTuple):
    """Both passes of a kernel."""

    forward: Forward
    backward: Backward


def declared(kernel: AttentionKernel, q: jax.Array, schedule: Schedule) -> contextlib.AbstractContextManager[Any]:
    """Opens a scope that says what one call of a kernel out of the jaxpr's sight computes for queries ``[b k n e]``."""
    pairs = [fused_attention(computed, q.shape[3]) for computed in computed_pairs(kernel, schedule)]
    forward, backward = (q.shape[0] * q.shape[1] * sum(flops) for flops in zip(*pairs, strict=True))
    return kernel_flops(forward, backward)


def merge(a: Normalised, b: Normalised) -> Normalised:
    """Returns attention to the keys of both, outputs in fp32: each output weighs exp(its lse - the joint lse)."""
    lse = jnp.logaddexp(a.lse, b.lse)
    shift = jnp.where(jnp.isfinite(lse), lse, 0.0)
    weights = [jnp.exp(part.lse - shift)[..., None] for part in (a, b)]
    return Normalised(a.out.astype(jnp.float32) * weights[0] + b.out.astype(jnp.float32) * weights[1], lse)


def attend_kernel(
    q: jax.Array, k: jax.Array, v: jax.Array, schedule: Schedule, kernel: Kernel, *, name: str = ATTENTION_OUT
) -> jax.Array:
    """Returns ``[b k n e]`` in the dtype of ``v``, differentiable; nothing but inputs, output and lse is kept."""
    return _attend(q, k, v, schedule, kernel, name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, schedule: Schedule, kernel: Kernel, name: str) -> jax.Array:
    del name  # there is nothing to keep
    return kernel.forward(q, k, v, schedule).out.astype(v.dtype)


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, schedule: Schedule, kernel: Kernel, name: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array, Normalised]]:
    whole = kernel.forward(q, k, v, schedule)
    out, lse = (checkpoint_name(part, name) for part in (whole.out.astype(v.dtype), whole.lse))
    return out, (q, k, v, Normalised(out, lse))


def _attend_backward(
    schedule: Schedule,
    kernel: Kernel,
    name: str,
    kept: tuple[jax.Array, jax.Array, jax.Array, Normalised],
    grad: jax.Array,
) -> tuple[jax.Array, ...]:
    del name
    grads = kernel.backward(*kept, grad, schedule)
    return tuple(part.astype(like.dtype) for part, like in zip(grads, kept[:3], strict=True))


_attend.defvjp(_attend_forward, _attend_backward)
