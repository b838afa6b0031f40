"""The transformer block: modulated self-attention, cross-attention to text, modulated feed-forward.

Source: Wan 2.1's ``WanAttentionBlock``; what differs: timesteps modulate per slot, attention follows a layout's
schedule, keys of earlier tokens may come from a cache.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.config.schema import ModelConfig
from wamjax.layout import Pass, Rectangle, Schedule
from wamjax.nn.attention import attend
from wamjax.nn.init import fan_in, named, zeros
from wamjax.nn.linear import Mlp
from wamjax.nn.modulation import gate, modulate
from wamjax.nn.norm import layer_norm, rms_norm
from wamjax.nn.rotary import apply_rotary
from wamjax.parallel.rules import constrain
from wamjax.types import Heads, KeyHeads, PRNGKey, TextTokens, Tokens

NUM_MODULATIONS = 6  # shift, scale and gate, for attention and for the feed-forward layer


class KeysValues(NamedTuple):
    """Rotated, normed keys and values ``[b m k e]`` of tokens that will not change."""

    keys: KeyHeads
    values: KeyHeads


class Conditioning(NamedTuple):
    """What every block reads besides its tokens.

    Attributes:
      modulation: fp32 ``[b slots 6 d]`` from the timesteps.
      text: ``[b l d]``.
      angles: ``[n e/2]`` rotary angles.
    """

    modulation: jax.Array
    text: jax.Array
    angles: jax.Array


class HeadProjection(nnx.Module):
    """Projects tokens straight to heads: ``[b n d] -> [b n k e]``."""

    def __init__(self, key: PRNGKey, width: int, num_heads: int, *, dtype: str) -> None:
        """Makes the projection."""
        self.dtype, head_dim = dtype, width // num_heads
        init = fan_in(in_axis=0, out_axis=(1, 2))
        self.kernel = named(key, init, (width, num_heads, head_dim), ("embed", "heads", None))
        self.bias = named(key, zeros, (num_heads, head_dim), ("heads", None))

    def __call__(self, x: Tokens) -> Heads:
        """Projects ``[b n d]``."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return jnp.einsum("bnd,dke->bnke", x.astype(self.dtype), kernel) + bias


class Attention(nnx.Module):
    """Multi-head attention with query-key RMS norm over the full width."""

    def __init__(self, key: PRNGKey, config: ModelConfig) -> None:
        """Makes the four projections and the two norms."""
        keys = jax.random.split(key, 4)
        width, heads, self.dtype, self.eps = config.width, config.num_heads, config.compute_dtype, config.norm_eps
        self.query, self.key, self.value = (HeadProjection(k, width, heads, dtype=self.dtype) for k in keys[:3])
        shape, axes = (heads, width // heads), ("heads", None)
        self.query_scale = named(key, jax.nn.initializers.ones, shape, axes)
        self.key_scale = named(key, jax.nn.initializers.ones, shape, axes)
        init = fan_in(in_axis=(0, 1), out_axis=2)
        self.out_kernel = named(keys[3], init, (*shape, width), ("heads", None, "embed"))
        self.out_bias = named(key, zeros, (width,), ("embed",))

    def queries(self, x: Tokens) -> Heads:
        """Returns normed queries ``[b n k e]`` in fp32."""
        return rms_norm(self.query(x), self.query_scale[...], self.eps, axes=(-2, -1))

    def keys_values(self, x: Tokens) -> KeysValues:
        """Returns normed keys in fp32 and values, both ``[b m k e]``."""
        return KeysValues(rms_norm(self.key(x), self.key_scale[...], self.eps, axes=(-2, -1)), self.value(x))

    def project_out(self, heads: Heads) -> Tokens:
        """Returns ``[b n d]`` of attended heads ``[b n k e]``."""
        kernel, bias = self.out_kernel[...].astype(self.dtype), self.out_bias[...].astype(self.dtype)
        return jnp.einsum("bnke,ked->bnd", heads.astype(self.dtype), kernel) + bias


class Block(nnx.Module):
    """One transformer block."""

    def __init__(self, key: PRNGKey, config: ModelConfig) -> None:
        """Makes the block of ``config``."""
        keys = jax.random.split(key, 4)
        width, self.dtype, self.eps = config.width, config.compute_dtype, config.norm_eps
        self.self_attention = Attention(keys[0], config)
        self.cross_attention = Attention(keys[1], config)
        self.mlp = Mlp(keys[2], width, config.ffn_width, dtype=self.dtype)
        self.cross_norm_scale = named(key, jax.nn.initializers.ones, (width,), (None,))
        self.cross_norm_bias = named(key, zeros, (width,), (None,))
        offsets = jax.nn.initializers.normal(width**-0.5)
        self.modulation = named(keys[3], offsets, (NUM_MODULATIONS, width), (None, None))

    def __call__(
        self, x: Tokens, layout_pass: Pass, conditioning: Conditioning, past: KeysValues | None
    ) -> tuple[Tokens, KeysValues]:
        """Applies the block.

        Args:
          x: ``[b n d]`` tokens of ``layout_pass.segments``.
          layout_pass: The segments, and the schedule over past and own keys.
          conditioning: Modulation, text and rotary angles.
          past: Cached keys and values of ``layout_pass.past``; None if it is empty.

        Returns:
          The new tokens, and their own keys and values (without the past).
        """
        runs = layout_pass.slot_runs()
        vectors = conditioning.modulation + self.modulation[...]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (vectors[:, :, j] for j in range(NUM_MODULATIONS))
        h = modulate(layer_norm(x, self.eps), shift_a, scale_a, runs).astype(self.dtype)
        attended, own = self._attend_self(h, layout_pass.schedule, conditioning.angles, past)
        x = self._add(x, gate(attended, gate_a, runs))
        h = layer_norm(x, self.eps) * self.cross_norm_scale[...] + self.cross_norm_bias[...]
        x = self._add(x, self._attend_text(h.astype(self.dtype), conditioning.text))
        h = modulate(layer_norm(x, self.eps), shift_m, scale_m, runs).astype(self.dtype)
        x = self._add(x, gate(self.mlp(h), gate_m, runs))
        return x, own

    def _attend_self(
        self, h: Tokens, schedule: Schedule, angles: jax.Array, past: KeysValues | None
    ) -> tuple[Tokens, KeysValues]:
        layer = self.self_attention
        query = apply_rotary(layer.queries(h), angles).astype(self.dtype)
        key, value = layer.keys_values(h)
        own = KeysValues(apply_rotary(key, angles).astype(self.dtype), value)
        seen = (
            own
            if past is None
            else KeysValues(*(jnp.concatenate(pair, axis=1) for pair in zip(past, own, strict=True)))
        )
        names = ("batch", None, "attention_heads", None)
        query, keys, values = (constrain(part, *names) for part in (query, *seen))
        out = constrain(attend(query, keys, values, schedule), *names)
        return constrain(layer.project_out(out), "batch", "tokens", None), own

    def _attend_text(self, h: Tokens, text: TextTokens) -> Tokens:
        layer, num_tokens, num_text = self.cross_attention, h.shape[1], text.shape[1]
        everything = Rectangle(((0, num_tokens),), ((0, num_text),))
        keys, values = layer.keys_values(text)
        out = attend(
            layer.queries(h).astype(self.dtype),
            keys.astype(self.dtype),
            values,
            Schedule(num_tokens, num_text, (everything,)),
        )
        return layer.project_out(out)

    def _add(self, x: Tokens, update: jax.Array) -> Tokens:
        """Adds in fp32, stores in the compute dtype, keeps the residual stream split by tokens."""
        total = (x.astype(jnp.float32) + update.astype(jnp.float32)).astype(self.dtype)
        return constrain(total, "batch", "tokens", None)
