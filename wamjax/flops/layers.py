"""Closed forms: FLOPs of one layer from its sizes.

Convention of the whole project: one multiply-add is 2 FLOPs, and only matrix products are counted (no norm, softmax,
rotary embedding, activation, bias or modulation). Every function returns the *forward* count as an exact Python
integer; what a backward pass adds is in ``flops.products``. Nothing here knows a model or a configuration.

Letters in the formulas: N tokens, d width, f feed-forward width, P attended query-key pairs, M context tokens.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, SupportsIndex

from wamjax.layout.kernels import Computed


def _exact(**sizes: Any) -> tuple[int, ...]:
    """Returns the sizes as Python integers, so that no count is ever rounded or wraps at 64 bits.

    Raises:
      ValueError: A size is negative.
      TypeError: A size is not an integer.
    """
    values = []
    for name, size in sizes.items():
        try:
            value = operator.index(size)
        except TypeError:
            raise TypeError(f"{name}={size!r} is not an integer: FLOPs are counted exactly") from None
        if value < 0:
            raise ValueError(f"{name}={value} is negative; a size of a layer is 0 or more")
        values.append(value)
    return tuple(values)


def linear(tokens: SupportsIndex, fan_in: SupportsIndex, fan_out: SupportsIndex) -> int:
    """FLOPs of ``[N, fan_in] @ [fan_in, fan_out]``: ``2 N fan_in fan_out``."""
    tokens, fan_in, fan_out = _exact(tokens=tokens, fan_in=fan_in, fan_out=fan_out)
    return 2 * tokens * fan_in * fan_out


def mlp(tokens: SupportsIndex, widths: Sequence[SupportsIndex]) -> int:
    """FLOPs of a chain of linear layers ``widths[0] -> widths[1] -> ...``: ``2 N sum_j w_j w_(j+1)``."""
    return sum(linear(tokens, fan_in, fan_out) for fan_in, fan_out in pairwise(widths))


def attention_scores(pairs: SupportsIndex, width: SupportsIndex) -> int:
    """FLOPs of ``q k^T`` and of ``weights v`` over ``pairs`` attended query-key pairs: ``4 d P``.

    Args:
      pairs: Query-key pairs that attend, counted once (not per head): the heads share the width d.
      width: d = heads x head dimension.
    """
    pairs, width = _exact(pairs=pairs, width=width)
    return 4 * width * pairs


def fused_attention(computed: Computed, width: SupportsIndex) -> tuple[int, int]:
    """FLOPs of a fused kernel: ``4 d P`` forward, ``10 d P`` backward.

    Backward are the scores again, the gradient of the weights, and those of queries, keys and values.

    Args:
      computed: The pairs of both passes.
      width: d of all heads that the call has, or of one.

    Source: FlashAttention-2 (arXiv 2307.08691), section 4.
    """
    return attention_scores(computed.forward, width), 5 * attention_scores(computed.backward, width) // 2


def delta_rule(tokens: SupportsIndex, heads: SupportsIndex, key_dim: SupportsIndex, value_dim: SupportsIndex) -> int:
    """FLOPs of the gated delta rule, token by token: ``6 e g k N``.

    A token reads the state with its key, writes to it, and reads it with its query: three products of a vector and a
    state ``[e g]``, for each of k heads. What chunks execute is ``chunked_delta_rule``.
    """
    tokens, heads, key_dim, value_dim = _exact(tokens=tokens, heads=heads, key_dim=key_dim, value_dim=value_dim)
    return 6 * tokens * heads * key_dim * value_dim


def chunked_delta_rule(
    tokens: SupportsIndex, heads: SupportsIndex, key_dim: SupportsIndex, value_dim: SupportsIndex, chunk: SupportsIndex
) -> tuple[int, int]:
    """FLOPs of the gated delta rule as ``nn.gated_delta`` executes it in chunks of C tokens, forward and backward.

    Per chunk and head, forward: keys with keys, queries with keys and the inverse with keys ``6 C^2 e``; the inverse
    with values, scores with values ``4 C^2 g``; three products with the state ``6 C e g``; the inverse itself
    ``4 C^3`` for each power of 2 from 2 to C / 2. Backward: two products for each but the inverse, whose gradient is
    ``4 C^3``; and the forward pass again but for the two products whose results nothing but the output needs.
    """
    tokens, heads, e, g, c = _exact(tokens=tokens, heads=heads, key_dim=key_dim, value_dim=value_dim, chunk=chunk)
    inverse = 4 * c**3 * (c.bit_length() - 2)
    forward = 6 * c * c * e + 4 * c * c * g + 6 * c * e * g + inverse
    unneeded = 2 * c * e * g + 2 * c * c * g
    times = heads * -(-tokens // c)
    return times * forward, times * (3 * forward - 2 * inverse + 4 * c**3 - unneeded)


def self_projections(tokens: SupportsIndex, width: SupportsIndex) -> int:
    """FLOPs of the query, key, value and output projections of self-attention: ``8 d^2 N``."""
    return 4 * linear(tokens, width, width)


def cross_qo(tokens: SupportsIndex, width: SupportsIndex) -> int:
    """FLOPs of the query and output projections of cross-attention: ``4 d^2 N``."""
    return 2 * linear(tokens, width, width)


def cross_kv(context_tokens: SupportsIndex, width: SupportsIndex) -> int:
    """FLOPs of the key and value projections of cross-attention, over the context only: ``4 d^2 M``."""
    return 2 * linear(context_tokens, width, width)


def cross_scores(tokens: SupportsIndex, context_tokens: SupportsIndex, width: SupportsIndex) -> int:
    """FLOPs of the scores and values of unmasked cross-attention: ``4 d N M``."""
    tokens, context_tokens = _exact(tokens=tokens, context_tokens=context_tokens)
    return attention_scores(tokens * context_tokens, width)


def ffn(tokens: SupportsIndex, width: SupportsIndex, ffn_width: SupportsIndex) -> int:
    """FLOPs of the two-layer feed-forward network: ``4 d f N``."""
    return mlp(tokens, (width, ffn_width, width))


def conv(
    input_sizes: Sequence[int],
    kernel_sizes: Sequence[int],
    in_channels: int,
    out_channels: int,
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    input_dilation: Sequence[int] | None = None,
    kernel_dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> int:
    """FLOPs of a convolution of one sample: ``2 C_in C_out / groups x prod over dims of the tap pairs``.

    A *tap pair* is an output position and a kernel position that meet a real input element. Positions that fall on
    padding, or on the zeros that input dilation inserts, multiply by a known zero and are not counted; so the
    gradients of a convolution cost exactly as much as the convolution itself, whatever its stride.

    Args:
      input_sizes: Spatial sizes of the input.
      kernel_sizes: Spatial sizes of the kernel.
      in_channels: Input channels, all groups together.
      out_channels: Output channels, all groups together.
      strides: Window strides.
      padding: Zeros before and after, per spatial dim.
      input_dilation: Spacing of the input elements (a transposed convolution has more than 1).
      kernel_dilation: Spacing of the kernel elements.
      groups: Feature groups; must divide ``in_channels``.

    Source: the exclusion of padding and dilation is that of XLA's cost analysis (``HandleConvolution`` in
    ``xla/service/hlo_cost_analysis.cc``); what differs is that nothing but the products is counted.
    """
    dims = len(kernel_sizes)
    input_dilation = input_dilation or (1,) * dims
    kernel_dilation = kernel_dilation or (1,) * dims
    in_channels, out_channels, groups = _exact(in_channels=in_channels, out_channels=out_channels, groups=groups)
    if groups < 1 or in_channels % groups:
        raise ValueError(f"groups={groups} does not divide in_channels={in_channels}")
    taps = math.prod(
        _tap_pairs(*sizes)
        for sizes in zip(input_sizes, kernel_sizes, strides, padding, input_dilation, kernel_dilation, strict=True)
    )
    return 2 * (in_channels // groups) * out_channels * taps


def _tap_pairs(
    size: int, kernel: int, stride: int, padding: tuple[int, int], input_dilation: int, kernel_dilation: int
) -> int:
    """Counts pairs (output position, kernel position) of one spatial dim that meet a real input element."""
    size, kernel, stride = _exact(size=size, kernel=kernel, stride=stride)
    before, after = padding
    dilated = (size - 1) * input_dilation + 1 if size else 0
    reach = (kernel - 1) * kernel_dilation + 1
    outputs = max(0, (dilated + before + after - reach) // stride + 1)
    pairs = 0
    for position in range(kernel):
        # Output o meets the dilated input at o * stride + offset.
        offset = position * kernel_dilation - before
        pairs += sum(
            1
            for o in range(outputs)
            if 0 <= o * stride + offset < dilated and (o * stride + offset) % input_dilation == 0
        )
    return pairs
