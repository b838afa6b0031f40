"""Attention on GPUs: cuDNN's fused kernel on the dense rectangles of a schedule, one call for each.

No mask is ever made: a rectangle sees all its keys, and a triangle is the kernel's own causal mode. The one kind of
rectangle it has no mode for, full keys before a triangle (token by token after a context), runs as plain XLA, and
``unfused`` counts those.

Source: jax.nn.dot_product_attention with implementation="cudnn".
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from wamjax.errors import ConfigError
from wamjax.layout.kernels import CUDNN_HEAD_DIM, has_cudnn_kernel, is_fused
from wamjax.layout.schedule import Schedule, Span
from wamjax.nn.kernel import ATTENTION_OUT, declared
from wamjax.nn.rectangles import attend_rectangles, keys_of, lay_out, spread, take


def is_cudnn_forward(primitive: Any) -> bool:
    """Whether ``primitive`` is cuDNN's forward pass, whose output and normalisers a rematerialisation policy keeps.

    They have no names: what the backward pass reads is made within JAX.
    """
    return primitive.name == "dot_product_attention_fwd_wrapper"


def unfused(schedule: Schedule) -> int:
    """Returns how many rectangles cuDNN has no mode for."""
    return sum(not is_fused(rectangle) for rectangle in schedule.rectangles)


def attend_cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    schedule: Schedule,
    *,
    name: str = ATTENTION_OUT,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Attends local arrays.

    Args:
      q: ``[b k n e]`` queries.
      k: ``[b k m e]`` keys.
      v: ``[b k m e]`` values.
      schedule: Which rectangles are attended.
      name: Under which a rematerialisation policy keeps the output of what cuDNN has no mode for; its own has none.
      implementation: ``xla`` computes each call by XLA operations, on any platform.

    Returns:
      ``[b k n e]`` in the dtype of ``v``; zero for queries in no rectangle.

    Raises:
      ConfigError: cuDNN has no kernel for these heads.
    """
    if implementation == "cudnn" and not has_cudnn_kernel(q.dtype.name, q.shape[3]):
        raise ConfigError(
            f"attention kernel cudnn takes bfloat16 or float16 and head dims up to {CUDNN_HEAD_DIM} that 8 divides, "
            f"got {q.dtype} and {q.shape[3]}; set the model's compute_dtype=bfloat16 or "
            "config.parallel.attention_kernel=rectangles"
        )
    pieces: list[tuple[Span, jax.Array]] = []
    for rectangle in schedule.rectangles:
        if not is_fused(rectangle):
            whole = attend_rectangles(q, k, v, Schedule(q.shape[2], k.shape[2], (rectangle,)), name=name)
            pieces += [(span, whole[:, :, span[0] : span[1]]) for span in rectangle.queries]
            continue
        keys = keys_of(rectangle)
        operands = (take(q, rectangle.queries), take(k, keys), take(v, keys))
        with declared("cudnn", q, dataclasses.replace(schedule, rectangles=(rectangle,))):
            out = _attend_even(*operands, is_causal=rectangle.diagonal is not None, implementation=implementation)
        pieces += spread(rectangle.queries, out.astype(v.dtype))
    return lay_out(pieces, schedule.num_queries)


def _attend_even(
    q: jax.Array, k: jax.Array, v: jax.Array, *, is_causal: bool, implementation: Literal["cudnn", "xla"]
) -> jax.Array:
    """Attends one rectangle, heads first, with one token more where a length is odd.

    The backward pass refuses odd lengths. No query sees the token that is added: by the causal mode, or because the
    lengths are told; what it would return itself is cut off.
    """
    num_queries, num_keys = q.shape[2], k.shape[2]
    lengths = jnp.full(q.shape[:1], num_keys, jnp.int32) if num_keys % 2 and not is_causal else None
    q, k, v = (jnp.pad(part, ((0, 0), (0, 0), (0, part.shape[2] % 2), (0, 0))) for part in (q, k, v))
    out = jax.nn.dot_product_attention(
        *(jnp.swapaxes(part, 1, 2) for part in (q, k, v)),
        key_value_seq_lengths=lengths,
        is_causal=is_causal,
        implementation=implementation,
    )
    return jnp.swapaxes(out, 1, 2)[:, :, :num_queries]
