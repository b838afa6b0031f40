"""The layer around the gated delta rule: projections, short convolutions, gates, a gated norm.

A token reads itself and the tokens before it; where a token lies in time and space it learns from that order, there
is no rotary embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from wamjax.config.backbone import BlockConfig
from wamjax.layout.kernels import DELTA_TAPS
from wamjax.layout.schedule import Span
from wamjax.nn.gated_delta import gated_delta_rule
from wamjax.nn.init import fan_in, named
from wamjax.nn.linear import Linear
from wamjax.nn.lora import LowRank
from wamjax.nn.multihead import HeadProjection
from wamjax.nn.norm import rms_norm
from wamjax.nn.products import FROM_HEADS, project
from wamjax.nn.rectangles import lay_out, take
from wamjax.parallel.explicit import gather_kernel
from wamjax.types import PRNGKey, Tokens

_L2_EPS = 1e-6

# Ranges of step sizes and rates from which decays are initialised: flash-linear-attention's, rates kept from 0 as in
# transformers' Qwen3-Next.
_STEPS, _RATES = (0.001, 0.1), (0.01, 16.0)


class GatedDeltaNet(nnx.Module):
    """Gated DeltaNet: a recurrence in place of self-attention.

    q, k, v = short convolution and SiLU of projections, q and k of length 1; log decay = -rate softplus(W x + bias),
    strength = sigmoid(W x); out = W (norm(read) SiLU(W x)).

    Attributes:
      query_taps: ``[taps k e]`` of the convolution over tokens, one per channel. Keys and values have the like.
      log_rate: fp32 ``[k]``.
      decay_bias: fp32 ``[k]``.
      output_norm: ``[g]``, scale of the norm within each head.

    Source: Gated DeltaNet (arXiv 2412.06464), and flash-linear-attention's ``fla/layers/gated_deltanet.py``, which
    Kairos uses. What differs: gates are projected in the compute dtype and then fp32, and there are no heads of values
    beside those of keys.
    """

    KERNELS: ClassVar[dict[str, int]] = {"out_kernel": 2}

    def __init__(self, key: PRNGKey, config: BlockConfig) -> None:
        """Makes the layer of ``config``, a block whose attention is ``gated_delta``."""
        keys = jax.random.split(key, 12)
        own, width, heads = config.own_attention, config.width, config.num_heads
        self.dtype, self.eps = config.compute_dtype, config.norm_eps
        dims = {"query": own.key_dim, "key": own.key_dim, "value": own.value_dim, "gate": own.value_dim}
        self.query, self.key, self.value, self.gate = (
            HeadProjection(k, width, (heads, dim), use_bias=False, dtype=self.dtype)
            for k, dim in zip(keys[:4], dims.values(), strict=True)
        )
        self.query_taps, self.key_taps, self.value_taps = (
            named(k, _uniform(-(DELTA_TAPS**-0.5), DELTA_TAPS**-0.5), (DELTA_TAPS, heads, dim), (None, "heads", None))
            for k, dim in zip(keys[4:7], list(dims.values())[:3], strict=True)
        )
        self.decay, self.strength = (
            Linear(k, (width, heads), ("embed", "heads"), dtype=self.dtype, use_bias=False) for k in keys[7:9]
        )
        self.log_rate = named(keys[9], _log_rates, (heads,), ("heads",))
        self.decay_bias = named(keys[10], _decay_biases, (heads,), ("heads",))
        self.output_norm = named(key, jax.nn.initializers.ones, (own.value_dim,), (None,))
        init = fan_in(in_axis=(0, 1), out_axis=2)
        self.out_kernel = named(keys[11], init, (heads, own.value_dim, width), ("heads", None, "embed"))
        self.out_lora: LowRank | None = nnx.data(None)

    def __call__(self, x: Tokens, spans: Sequence[Span]) -> Tokens:
        """Reads tokens one after the other.

        Args:
          x: ``[b n d]``.
          spans: Where tokens are, ascending; others are padding, which is neither read nor written.

        Returns:
          ``[b n d]``; what it is of padding has no meaning, but is finite.
        """
        query, key, value = (
            _convolve(take(layer(x), spans), taps[...])
            for layer, taps in (
                (self.query, self.query_taps), (self.key, self.key_taps), (self.value, self.value_taps)
            )
        )  # fmt: skip
        steps = jax.nn.softplus(self.decay(x).astype(jnp.float32) + self.decay_bias[...])
        log_decay = -jnp.exp(self.log_rate[...]) * steps
        strength = jax.nn.sigmoid(self.strength(x).astype(jnp.float32))
        read = gated_delta_rule(
            _unit(query).astype(self.dtype),
            _unit(key).astype(self.dtype),
            value.astype(self.dtype),
            *(jnp.swapaxes(take(gate, spans, axis=1), 1, 2) for gate in (log_decay, strength)),
        )
        starts = [sum(stop - start for start, stop in spans[:i]) for i in range(len(spans))]
        pieces = [((a, b), read[:, :, at : at + b - a]) for at, (a, b) in zip(starts, spans, strict=True)]
        normed = rms_norm(lay_out(pieces, x.shape[1]), self.output_norm[...], self.eps)
        return self._project_out(normed * jax.nn.silu(self.gate(x).astype(jnp.float32)))

    def _project_out(self, heads: jax.Array) -> Tokens:
        """Returns ``[b n d]`` of heads ``[b k n g]``."""
        x = project(heads.astype(self.dtype), gather_kernel(self.out_kernel, self.dtype), FROM_HEADS)
        return x if self.out_lora is None else x + self.out_lora(heads)


def _convolve(x: jax.Array, taps: jax.Array) -> jax.Array:
    """Returns SiLU(sum_i taps_i x_(n - last + i)) in fp32: tokens ``[b k n e]`` read themselves and those before."""
    count = x.shape[2]
    filled = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, 0), (DELTA_TAPS - 1, 0), (0, 0)))
    parts = [taps[i][:, None] * jax.lax.slice_in_dim(filled, i, i + count, axis=2) for i in range(DELTA_TAPS)]
    return jax.nn.silu(sum(parts[1:], parts[0]))


def _unit(x: jax.Array) -> jax.Array:
    """Returns the vectors of the last dim at length 1 (less where they are next to nothing)."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _L2_EPS)


def _uniform(low: float, high: float) -> Initializer:
    def init(key: PRNGKey, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, low, high)

    return init


def _log_rates(key: PRNGKey, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """Returns logs of rates that are uniform in their range."""
    return jnp.log(_uniform(*_RATES)(key, shape, dtype, out_sharding))


def _decay_biases(key: PRNGKey, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """Returns biases whose softplus, a step size, is log-uniform in its range."""
    steps = jnp.exp(_uniform(math.log(_STEPS[0]), math.log(_STEPS[1]))(key, shape, dtype, out_sharding))
    return steps + jnp.log(-jnp.expm1(-steps))
