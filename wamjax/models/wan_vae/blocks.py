"""What the levels of the Wan autoencoders are made of: residual blocks, attention within a frame, resampling.

Every layer maps (frames, cache) to (frames, cache of the frames that follow). A cache is a pytree of the contexts of
the convolutions inside, and ``None`` is the beginning of a clip; the same modules so take a clip whole or in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from wamjax.layout import Rectangle, Schedule
from wamjax.models.wan_vae.convolution import TAPS, CausalConv, ChannelNorm, Context, FrameConv, last_frames
from wamjax.nn.attention import attend
from wamjax.nn.init import fan_in, named, zeros
from wamjax.nn.linear import Linear
from wamjax.types import PRNGKey

Cache: TypeAlias = Any  # nested tuples of contexts [b frames h w c]; None at the beginning of a clip
CausalLayer: TypeAlias = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


def apply_in_turn(layers: Sequence[CausalLayer], x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Applies ``layers`` one after the other, each with its own part of ``cache``."""
    parts = (None,) * len(layers) if cache is None else cache
    following = []
    for layer, part in zip(layers, parts, strict=True):
        x, part = layer(x, part)
        following.append(part)
    return x, tuple(following)


class ResidualBlock(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a projection of x where the width changes."""

    def __init__(self, key: PRNGKey, fan: tuple[int, int], *, dtype: str) -> None:
        """Makes the block from ``fan[0]`` to ``fan[1]`` channels."""
        keys = jax.random.split(key, 3)
        self.norm_in = ChannelNorm(key, fan[0])
        self.conv_in = CausalConv(keys[0], fan, dtype=dtype)
        self.norm_out = ChannelNorm(key, fan[1])
        self.conv_out = CausalConv(keys[1], (fan[1], fan[1]), dtype=dtype)
        self.shortcut = nnx.data(Linear(keys[2], fan, (None, None), dtype=dtype) if fan[0] != fan[1] else None)

    def __call__(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Maps ``[b t h w in]`` to ``[b t h w out]``."""
        first, second = (None, None) if cache is None else cache
        h, first = self.conv_in(jax.nn.silu(self.norm_in(x)), first)
        h, second = self.conv_out(jax.nn.silu(self.norm_out(h)), second)
        return h + (x if self.shortcut is None else self.shortcut(x)), (first, second)


class FrameAttention(nnx.Module):
    """Self-attention with one head among the pixels of a frame, added to its input.

    Attributes:
      kernel: ``[c 3 c]``: query, key and value.
      bias: ``[3 c]``.
    """

    def __init__(self, key: PRNGKey, width: int, *, dtype: str) -> None:
        """Makes the layer over ``width`` channels."""
        qkv_key, out_key = jax.random.split(key)
        self.dtype = dtype
        self.norm = ChannelNorm(key, width)
        self.kernel = named(qkv_key, fan_in(in_axis=0, out_axis=(1, 2)), (width, 3, width), (None,) * 3)
        self.bias = named(qkv_key, zeros, (3, width), (None, None))
        self.out = Linear(out_key, (width, width), (None, None), dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[b t h w c]`` to ``[b t h w c]``."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        pixels = rearrange(self.norm(x), "b t h w c -> (b t) (h w) c").astype(self.dtype)
        query, key, value = (
            part[:, None] for part in jnp.unstack(jnp.einsum("bnc,cjd->bnjd", pixels, kernel) + bias, axis=2)
        )
        whole = ((0, pixels.shape[1]),)
        schedule = Schedule(pixels.shape[1], pixels.shape[1], (Rectangle(whole, whole),))
        return x + self.out(attend(query, key, value, schedule)[:, 0]).reshape(x.shape)


class MiddleBlock(nnx.Module):
    """Residual block, attention, residual block: the levels' common core, where the grid is smallest."""

    def __init__(self, key: PRNGKey, width: int, *, dtype: str) -> None:
        """Makes the block over ``width`` channels."""
        keys = jax.random.split(key, 3)
        self.first = ResidualBlock(keys[0], (width, width), dtype=dtype)
        self.attention = FrameAttention(keys[1], width, dtype=dtype)
        self.second = ResidualBlock(keys[2], (width, width), dtype=dtype)

    def __call__(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Maps ``[b t h w c]`` to ``[b t h w c]``."""
        first, second = (None, None) if cache is None else cache
        x, first = self.first(x, first)
        x, second = self.second(self.attention(x), second)
        return x, (first, second)


class Downsample(nnx.Module):
    """Halves height and width and, with ``halves_time``, all frames after the first of a clip."""

    def __init__(self, key: PRNGKey, width: int, *, halves_time: bool, dtype: str) -> None:
        """Makes the layer over ``width`` channels."""
        space_key, time_key = jax.random.split(key)
        # Padded below and on the right only, as in the autoencoder of Stable Diffusion.
        self.space = FrameConv(space_key, (width, width), stride=2, padding=(0, 1), dtype=dtype)
        self.time = nnx.data(CausalConv(time_key, (width, width), side=1, dtype=dtype) if halves_time else None)

    def __call__(self, x: jax.Array, cache: Context) -> tuple[jax.Array, Context]:
        """Maps ``[b t h w c]`` to ``[b t' h/2 w/2 c]``.

        The first frame of a clip passes time as it is; each of its 1 + 2 n frames is then seen by the convolution,
        whose outputs at every second frame follow. Pieces after the first have 2 n frames.
        """
        x = self.space(x)
        if self.time is None:
            return x, None
        context = last_frames(x, cache, 1)
        if cache is not None:
            return self.time.every_second(jnp.concatenate([cache, x], axis=1)), context
        return (jnp.concatenate([x[:, :1], self.time.every_second(x)], axis=1) if x.shape[1] > 1 else x), context


class Upsample(nnx.Module):
    """Doubles height and width and, with ``doubles_time``, all frames after the first of a clip."""

    def __init__(self, key: PRNGKey, fan: tuple[int, int], *, doubles_time: bool, dtype: str) -> None:
        """Makes the layer from ``fan[0]`` to ``fan[1]`` channels."""
        space_key, time_key = jax.random.split(key)
        self.time = nnx.data(CausalConv(time_key, (fan[0], 2 * fan[0]), side=1, dtype=dtype) if doubles_time else None)
        self.space = FrameConv(space_key, fan, dtype=dtype)

    def __call__(self, x: jax.Array, cache: Context) -> tuple[jax.Array, Context]:
        """Maps ``[b t h w in]`` to ``[b t' 2h 2w out]``.

        The first frame of a clip passes time as it is, and the convolution of the others does not see it.
        """
        if self.time is not None:
            x, cache = self._double_frames(self.time, x, cache)
        nearest = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return self.space(nearest), cache

    @staticmethod
    def _double_frames(time: CausalConv, x: jax.Array, cache: Context) -> tuple[jax.Array, Context]:
        if cache is None and x.shape[1] == 1:
            return x, jnp.zeros((x.shape[0], TAPS - 1, *x.shape[2:]), x.dtype)
        pairs, following = time(x if cache is not None else x[:, 1:], cache)
        doubled = rearrange(pairs, "b t h w (pair c) -> b (t pair) h w c", pair=2)
        return (doubled if cache is not None else jnp.concatenate([x[:, :1], doubled], axis=1)), following


def average_down(x: jax.Array, width: int, factor_t: int, factor_s: int) -> jax.Array:
    """Folds blocks of ``factor_t`` frames and ``factor_s`` rows and columns into channels, averaged to ``width``.

    An odd number of frames gets one of zeros in front, so that the first frame is halved.

    Args:
      x: ``[b t h w c]``.
      width: Channels of the result; divides c x the block's size.
      factor_t: Frames of a block.
      factor_s: Rows and columns of a block.

    Returns:
      ``[b t' h' w' width]``.

    Source: ``AvgDown3D`` in wan/modules/vae2_2.py.
    """
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % factor_t, 0), (0, 0), (0, 0), (0, 0)))
    folded = rearrange(x, "b (t ft) (h fh) (w fw) c -> b t h w (c ft fh fw)", ft=factor_t, fh=factor_s, fw=factor_s)
    return jnp.mean(folded.reshape(*folded.shape[:-1], width, -1), axis=-1)


def repeat_up(x: jax.Array, width: int, factor_t: int, factor_s: int, *, is_beginning: bool) -> jax.Array:
    """Spreads repeated channels over blocks of ``factor_t`` frames and ``factor_s`` rows and columns.

    The first frame of a clip becomes one frame: the last of its block.

    Args:
      x: ``[b t h w c]``.
      width: Channels of the result; width x the block's size is a multiple of c.
      factor_t: Frames of a block.
      factor_s: Rows and columns of a block.
      is_beginning: Whether ``x`` begins a clip.

    Returns:
      ``[b t' h' w' width]``.

    Source: ``DupUp3D`` in wan/modules/vae2_2.py.
    """
    repeated = jnp.repeat(x, width * factor_t * factor_s**2 // x.shape[-1], axis=-1)
    spread = rearrange(
        repeated, "b t h w (c ft fh fw) -> b (t ft) (h fh) (w fw) c", ft=factor_t, fh=factor_s, fw=factor_s
    )
    return spread[:, factor_t - 1 :] if is_beginning else spread
