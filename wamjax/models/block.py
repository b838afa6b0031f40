"""The transformer block that every video model of ours is a stack of.

One block serves Wan, Cosmos, the world-action model, and language and vision towers; what differs is ``BlockConfig``:
modulated self-attention (or a recurrence in its place), cross-attention to text (and an image), modulated feed-forward.

Source: Wan 2.1's ``WanAttentionBlock`` and Cosmos-Predict's ``Block``; what differs: timesteps modulate per slot,
attention follows a layout's schedule, keys of earlier tokens may come from a cache.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.config.backbone import BlockConfig
from wamjax.config.choices import Matmul
from wamjax.layout import Pass, Rectangle, Schedule
from wamjax.layout.windows import layer_schedule, token_spans
from wamjax.nn.attention import CROSS_ATTENTION_OUT, attend, attend_self
from wamjax.nn.gated_delta_net import GatedDeltaNet
from wamjax.nn.init import named, zeros
from wamjax.nn.linear import Mlp
from wamjax.nn.modulation import AdaptiveNorm, LowRankModulation, Modulation, Runs, gate, modulate
from wamjax.nn.multihead import Attention, KeysValues
from wamjax.nn.norm import layer_norm, rms_norm, rms_normalise
from wamjax.nn.rotary import Rotation, apply_rotary
from wamjax.parallel.rules import constrain
from wamjax.types import Heads, PRNGKey, TextTokens, Tokens

NUM_TABLE_VECTORS = 6  # shift, scale and gate, for attention and for the feed-forward layer
NUM_LOW_RANK_VECTORS = 3  # shift, scale and gate, of each part


class Conditioning(NamedTuple):
    """What every block reads besides its tokens.

    Attributes:
      embedding: fp32 ``[b slots d]`` of the timesteps.
      modulation: fp32 vectors from the timesteps that all blocks share: ``[b slots 6 d]`` for the table, ``[b slots 3
        d]`` for low rank.
      runs: (slot, number of tokens) in sequence order, or int32 ``[n]``, every token's slot.
      rotation: Rotary embedding of the tokens; of parts ``[b 1 n e/2]`` where samples differ. None without.
      text: ``[b l context_width]``.
      text_mask: bool ``[b l]``, which text tokens are seen; None for all.
      image: ``[b m d]`` image tokens; None without image branch.
      positions: fp32 ``[n d]`` added to the tokens before every block; None without.
      seen: bool ``[b n]``, which tokens are seen by any; None for all. Of a mixture (``models.mixture``).
    """

    embedding: jax.Array
    modulation: jax.Array
    runs: Runs
    rotation: Rotation | None
    text: TextTokens
    text_mask: jax.Array | None = None
    image: jax.Array | None = None
    positions: jax.Array | None = None
    seen: jax.Array | None = None


def bare_conditioning(
    batch_size: int, num_tokens: int, rotation: Rotation | None = None, seen: jax.Array | None = None
) -> Conditioning:
    """Returns the conditioning of ``num_tokens`` tokens that read no timesteps and no text."""
    nothing = jnp.zeros((batch_size, 1, 0))
    return Conditioning(nothing, nothing, ((0, num_tokens),), rotation, nothing, seen=seen)


Parts = tuple[Modulation | None, Modulation | None, Modulation | None]


class Begun(NamedTuple):
    """A block up to its self-attention.

    Attributes:
      tokens: ``[b n d]``, learned positions added.
      query: Rotated queries ``[b k n e]``.
      own: Rotated keys, and values.
      parts: Modulation of self-attention, of cross-attention and of the feed-forward layer; None: not modulated.
    """

    tokens: Tokens
    query: Heads
    own: KeysValues
    parts: Parts


class Block(nnx.Module):
    """One transformer block."""

    def __init__(self, key: PRNGKey, config: BlockConfig) -> None:
        """Makes the block of ``config``."""
        keys = jax.random.split(key, 4)
        width, self.dtype, self.eps = config.width, config.compute_dtype, config.norm_eps
        self.kind, self.num_heads = config.modulation, config.num_heads
        self.matmul: Matmul = config.matmul
        self.attention = config.own_attention
        self.is_recurrent = config.is_recurrent
        self.self_attention = (GatedDeltaNet if self.is_recurrent else Attention)(keys[0], config)
        self.cross_attention = nnx.data(None)
        if config.cross_attention:
            self.cross_attention = Attention(
                keys[1], config, context_width=config.context_width, image_branch=config.image_branch
            )
        self.mlp = Mlp(
            keys[2],
            width,
            config.ffn_width,
            dtype=self.dtype,
            activation=config.activation,
            gelu=config.gelu,
            use_bias=config.use_bias,
            is_gated=config.gated_mlp,
        )
        if config.modulation == "none":
            self.self_norm_scale, self.mlp_norm_scale = (
                named(key, jax.nn.initializers.ones, (width,), (None,)) for _ in range(2)
            )
            self.self_norm_bias, self.mlp_norm_bias = (
                named(key, zeros, (width,), (None,)) if config.norm == "layer" else nnx.data(None) for _ in range(2)
            )
            self.cross_norm_scale = self.cross_norm_bias = nnx.data(None)
            return
        self.cross_norm_scale = self.cross_norm_bias = nnx.data(None)
        if config.modulation == "adaptive_rms":
            self.self_norm, self.mlp_norm = (AdaptiveNorm(k, width) for k in jax.random.split(keys[3]))
            return
        if config.modulation == "low_rank":
            self.self_modulation, self.cross_modulation, self.mlp_modulation = (
                LowRankModulation(k, width, config.modulation_rank, NUM_LOW_RANK_VECTORS)
                for k in jax.random.split(keys[3], 3)
            )
            return
        if config.cross_attention and config.cross_norm == "affine":
            self.cross_norm_scale = named(key, jax.nn.initializers.ones, (width,), (None,))
            self.cross_norm_bias = named(key, jax.nn.initializers.zeros, (width,), (None,))
        offsets = jax.nn.initializers.normal(width**-0.5)
        self.modulation = named(keys[3], offsets, (NUM_TABLE_VECTORS, width), (None, None))

    def __call__(
        self, x: Tokens, layout_pass: Pass, conditioning: Conditioning, past: KeysValues | None
    ) -> tuple[Tokens, KeysValues | None]:
        """Applies the block.

        Args:
          x: ``[b n d]`` tokens of ``layout_pass.segments``.
          layout_pass: The segments, and the schedule over past and own keys.
          conditioning: Timesteps, text, image and positions.
          past: Cached keys and values of ``layout_pass.past``; None if it is empty.

        Returns:
          The new tokens, and their own keys and values (without the past); None of a recurrence, which has none.
        """
        if self.is_recurrent:
            return self.recur(x, layout_pass, conditioning), None
        begun = self.begin(x, conditioning)
        own = begun.own
        seen = (
            own
            if past is None
            else KeysValues(*(jnp.concatenate(pair, axis=2) for pair in zip(past, own, strict=True)))
        )
        attended = attend_self(begun.query, *seen, layer_schedule(layout_pass, self.attention))
        return self.finish(begun, attended, conditioning), own

    def begin(self, x: Tokens, conditioning: Conditioning) -> Begun:
        """Returns what self-attention reads of ``x`` ``[b n d]``, as ``__call__`` does before it attends."""
        x, h, parts = self._enter(x, conditioning)
        layer = self.self_attention
        assert isinstance(layer, Attention), "a recurrence attends to nothing; see recur"
        query, (key, value) = layer.queries(h), layer.keys_values(h)
        query, key = (self._rotated(heads, conditioning.rotation) for heads in (query, key))
        return Begun(x, query, KeysValues(key, value), parts)

    def finish(self, begun: Begun, attended: Heads, conditioning: Conditioning) -> Tokens:
        """Returns the new tokens ``[b n d]`` from what self-attention gave ``[b k n e]``."""
        assert isinstance(self.self_attention, Attention), "a recurrence attends to nothing; see recur"
        return self._leave(begun.tokens, self.self_attention.project_out(attended), begun.parts, conditioning)

    def recur(self, x: Tokens, layout_pass: Pass, conditioning: Conditioning) -> Tokens:
        """Returns the new tokens ``[b n d]`` of a block that reads them one after the other.

        Args:
          x: ``[b n d]``.
          layout_pass: Whose segments are those of ``x`` alone, in its order.
          conditioning: As for ``__call__``.
        """
        assert isinstance(self.self_attention, GatedDeltaNet), "this block attends; see begin and finish"
        x, h, parts = self._enter(x, conditioning)
        return self._leave(x, self.self_attention(h, token_spans(layout_pass.segments)), parts, conditioning)

    def _enter(self, x: Tokens, conditioning: Conditioning) -> tuple[Tokens, Tokens, Parts]:
        """Returns the tokens, what their self-attention reads, and the modulation of the block's parts."""
        parts = self._modulations(conditioning)
        if conditioning.positions is not None:
            x = self._add(x, conditioning.positions)
        return x, self._normed(x, "self", parts[0], conditioning), parts

    def _leave(self, x: Tokens, read: Tokens, parts: Parts, conditioning: Conditioning) -> Tokens:
        """Returns the new tokens from ``x`` and what self-attention made of them, both ``[b n d]``."""
        self_part, cross_part, mlp_part = parts
        x = self._add(x, _gated(constrain(read, "batch", "stream", None), self_part, conditioning))
        if self.cross_attention is not None:
            h = self._cross_input(x) if cross_part is None else self._modulated(x, cross_part, conditioning)
            attended = self._attend_context(self.cross_attention, h, conditioning)
            x = self._add(x, _gated(attended, cross_part, conditioning))
        h = self._normed(x, "mlp", mlp_part, conditioning)
        return self._add(x, _gated(self.mlp(h), mlp_part, conditioning))

    def _modulations(self, conditioning: Conditioning) -> Parts:
        """Returns the vectors of self-attention, of cross-attention and of the feed-forward; None: not modulated."""
        shared = conditioning.modulation
        if self.kind == "none":
            return None, None, None
        if self.kind == "adaptive_rms":
            return self.self_norm(conditioning.embedding), None, self.mlp_norm(conditioning.embedding)
        if self.kind == "low_rank":
            layers = (self.self_modulation, self.cross_modulation, self.mlp_modulation)
            parts = (layer(conditioning.embedding, shared) for layer in layers)
            self_part, cross_part, mlp_part = (Modulation(*(part[:, :, j] for j in range(3))) for part in parts)
            return self_part, cross_part, mlp_part
        vectors = shared + self.modulation[...]
        self_part, mlp_part = (Modulation(*(vectors[:, :, j + i] for j in range(3))) for i in (0, 3))
        return self_part, None, mlp_part

    def _normed(
        self, x: Tokens, name: Literal["self", "mlp"], part: Modulation | None, conditioning: Conditioning
    ) -> Tokens:
        """Returns what self-attention or the feed-forward layer reads: modulated, or by a norm of its own."""
        if part is not None:
            return self._modulated(x, part, conditioning)
        scale = self.self_norm_scale if name == "self" else self.mlp_norm_scale
        bias = self.self_norm_bias if name == "self" else self.mlp_norm_bias
        if bias is None:
            return rms_norm(x, scale[...], self.eps).astype(self.dtype)
        return (layer_norm(x, self.eps) * scale[...] + bias[...]).astype(self.dtype)

    def _modulated(self, x: Tokens, part: Modulation, conditioning: Conditioning) -> Tokens:
        normed = rms_normalise(x, self.eps) if self.kind == "adaptive_rms" else layer_norm(x, self.eps)
        return modulate(normed, part.shift, part.scale, conditioning.runs).astype(self.dtype)

    def _rotated(self, heads: Heads, rotation: Rotation | None) -> Heads:
        return heads.astype(self.dtype) if rotation is None else apply_rotary(heads, rotation, self.dtype)

    def _cross_input(self, x: Tokens) -> Tokens:
        """Returns the tokens as an unmodulated cross-attention reads them."""
        if self.cross_norm_scale is None or self.cross_norm_bias is None:
            return x
        return (layer_norm(x, self.eps) * self.cross_norm_scale[...] + self.cross_norm_bias[...]).astype(self.dtype)

    def _attend_context(self, layer: Attention, h: Tokens, conditioning: Conditioning) -> Tokens:
        """Attends to all text tokens and, in a sum before the output projection, to all image tokens."""
        query = layer.queries(h).astype(self.dtype)
        out = self._attend_all(query, layer.keys_values(conditioning.text), conditioning.text_mask)
        if conditioning.image is not None:
            out = out + self._attend_all(query, layer.image_keys_values(conditioning.image), None)
        return layer.project_out(out)

    def _attend_all(self, query: Heads, seen: KeysValues, mask: jax.Array | None) -> Heads:
        """Attends every query to every key (that ``mask`` ``[b m]`` shows)."""
        keys, values = seen.keys.astype(self.dtype), seen.values
        sizes = (query.shape[2], keys.shape[2])
        everything = Rectangle(((0, sizes[0]),), ((0, sizes[1]),))
        return attend(
            query,
            keys,
            values,
            Schedule(*sizes, (everything,)),
            key_mask=mask,
            split="tokens",
            name=CROSS_ATTENTION_OUT,
        )

    def _add(self, x: Tokens, update: jax.Array) -> Tokens:
        """Adds in fp32, stores in the compute dtype, keeps the residual stream split by tokens."""
        total = (x.astype(jnp.float32) + update.astype(jnp.float32)).astype(self.dtype)
        return constrain(total, "batch", "stream", None)


def _gated(update: jax.Array, part: Modulation | None, conditioning: Conditioning) -> jax.Array:
    return update if part is None else gate(update, part.gate, conditioning.runs)
