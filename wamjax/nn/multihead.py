"""Multi-head attention layer: projections straight to heads, query-key norm, a branch of its own for image tokens.

Owns the parameters of one attention layer; which pairs attend, and how, is ``nn.attention``'s.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.config.backbone import BlockConfig
from wamjax.nn.init import fan_in, named, zeros
from wamjax.nn.lora import LowRank
from wamjax.nn.norm import rms_norm
from wamjax.nn.products import FROM_HEADS, TO_HEADS, project
from wamjax.parallel.explicit import gather_kernel
from wamjax.types import Heads, KeyHeads, PRNGKey, Tokens


class KeysValues(NamedTuple):
    """Normed (and, in self-attention, rotated) keys and values ``[b k m e]`` of tokens that will not change."""

    keys: KeyHeads
    values: KeyHeads


class HeadProjection(nnx.Module):
    """Projects tokens straight to heads: ``[b n in] -> [b k n e]``."""

    KERNELS: ClassVar[dict[str, int]] = {"kernel": 1}

    def __init__(self, key: PRNGKey, in_width: int, shape: tuple[int, int], *, use_bias: bool, dtype: str) -> None:
        """Makes the projection from ``in_width`` to ``shape`` (heads, head dim)."""
        self.dtype = dtype
        init = fan_in(in_axis=0, out_axis=(1, 2))
        self.kernel = named(key, init, (in_width, *shape), ("embed", "heads", None))
        self.bias = named(key, zeros, shape, ("heads", None)) if use_bias else nnx.data(None)
        self.lora: LowRank | None = nnx.data(None)

    def __call__(self, x: Tokens) -> Heads:
        """Projects ``[b n in]``."""
        heads = project(x.astype(self.dtype), gather_kernel(self.kernel, self.dtype), TO_HEADS)
        if self.lora is not None:
            heads = heads + self.lora(x)
        return heads if self.bias is None else heads + self.bias[...].astype(self.dtype)[:, None]


class Attention(nnx.Module):
    """Multi-head attention with query-key RMS norm, over the full width or within each head, or without.

    With ``image_branch`` there are keys and values of their own for image tokens (Wan I2V); queries and output
    projection are shared.
    """

    KERNELS: ClassVar[dict[str, int]] = {"out_kernel": 2}

    def __init__(
        self, key: PRNGKey, config: BlockConfig, *, context_width: int | None = None, image_branch: bool = False
    ) -> None:
        """Makes the projections and norms; keys and values read tokens of ``context_width`` (default: the width)."""
        keys = jax.random.split(key, 4)
        width, self.dtype, self.eps = config.width, config.compute_dtype, config.qk_norm_eps
        shape, use_bias = (config.num_heads, config.head_dim), config.use_bias
        fans = (width, context_width or width, context_width or width)
        key_shape = (config.key_heads, config.head_dim)
        self.repeats = config.num_heads // config.key_heads
        self.query, self.key, self.value = (
            HeadProjection(k, fan, heads, use_bias=use_bias, dtype=self.dtype)
            for k, fan, heads in zip(keys[:3], fans, (shape, key_shape, key_shape), strict=True)
        )
        self.norm_axes = (-3, -1) if config.qk_norm == "width" else (-1,)
        self.query_scale = self.key_scale = nnx.data(None)
        if config.qk_norm != "none":
            self.query_scale, self.key_scale = self._scale(key, shape), self._scale(key, key_shape)
        init = fan_in(in_axis=(0, 1), out_axis=2)
        self.out_kernel = named(keys[3], init, (*shape, width), ("heads", None, "embed"))
        self.out_bias = named(key, zeros, (width,), (None,)) if use_bias else nnx.data(None)
        self.out_lora: LowRank | None = nnx.data(None)
        if image_branch:
            image_keys = jax.random.split(jax.random.fold_in(key, 1))
            self.image_key, self.image_value = (
                HeadProjection(k, width, key_shape, use_bias=use_bias, dtype=self.dtype) for k in image_keys
            )
            self.image_key_scale = self._scale(key, key_shape)

    def queries(self, x: Tokens) -> Heads:
        """Returns queries ``[b k n e]``, normed in fp32 if at all."""
        return self._norm(self.query(x), self.query_scale)

    def keys_values(self, x: Tokens) -> KeysValues:
        """Returns keys, normed in fp32 if at all, and values, both ``[b k m e]``, as often as query heads read them."""
        return self._repeated(KeysValues(self._norm(self.key(x), self.key_scale), self.value(x)))

    def image_keys_values(self, x: Tokens) -> KeysValues:
        """Returns normed keys in fp32 and values of image tokens, both ``[b k m e]``, as ``keys_values``."""
        return self._repeated(KeysValues(self._norm(self.image_key(x), self.image_key_scale), self.image_value(x)))

    def project_out(self, heads: Heads) -> Tokens:
        """Returns ``[b n d]`` of attended heads ``[b k n e]``."""
        x = project(heads.astype(self.dtype), gather_kernel(self.out_kernel, self.dtype), FROM_HEADS)
        if self.out_lora is not None:
            x = x + self.out_lora(heads)
        return x if self.out_bias is None else x + self.out_bias[...].astype(self.dtype)

    def _repeated(self, found: KeysValues) -> KeysValues:
        return found if self.repeats == 1 else KeysValues(*(jnp.repeat(part, self.repeats, axis=1) for part in found))

    def _norm(self, heads: Heads, scale: nnx.Param | None) -> Heads:
        """Norms ``[b k n e]`` with a scale ``[k e]``, over the full width, or ``[e]``, within each head, if at all."""
        if scale is None:
            return heads
        spread = scale[...][:, None] if len(self.norm_axes) == 2 else scale[...]
        return rms_norm(heads, spread, self.eps, axes=self.norm_axes)

    def _scale(self, key: PRNGKey, shape: tuple[int, int]) -> nnx.Param:
        """Makes the learned scale of a query-key norm."""
        over_width = len(self.norm_axes) == 2
        return named(
            key,
            jax.nn.initializers.ones,
            shape if over_width else shape[1:],
            ("heads", None) if over_width else (None,),
        )
