"""Encoder and decoder of the Wan autoencoders: levels of residual blocks around a common core."""

from __future__ import annotations

import jax
from flax import nnx

from wamjax.config.wan_vae import WanVaeConfig
from wamjax.models.wan_vae.blocks import (
    Cache,
    Downsample,
    MiddleBlock,
    ResidualBlock,
    Upsample,
    apply_in_turn,
    average_down,
    repeat_up,
)
from wamjax.models.wan_vae.convolution import CausalConv, ChannelNorm
from wamjax.types import PRNGKey


class EncoderLevel(nnx.Module):
    """Residual blocks of one width, then halving (but in the last level)."""

    def __init__(self, key: PRNGKey, config: WanVaeConfig, index: int) -> None:
        """Makes level ``index``, counted from the pixels."""
        keys = jax.random.split(key, config.num_res_blocks + 1)
        widths, dtype = config.encoder_widths, config.compute_dtype
        entering, self.width = (config.base_width, *widths)[index], widths[index]
        fans = [(entering if block == 0 else self.width, self.width) for block in range(config.num_res_blocks)]
        self.blocks = nnx.List([ResidualBlock(k, fan, dtype=dtype) for k, fan in zip(keys[1:], fans, strict=True)])
        self.is_last = index == len(widths) - 1
        self.halves_time = not self.is_last and config.temporal_downsample[index]
        self.has_shortcut = config.has_level_shortcuts
        self.downsample = nnx.data(
            None if self.is_last else Downsample(keys[0], self.width, halves_time=self.halves_time, dtype=dtype)
        )

    def __call__(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Maps ``[b t h w in]`` to ``[b t' h' w' out]``."""
        layers = [*self.blocks, *([self.downsample] if self.downsample is not None else [])]
        y, cache = apply_in_turn(layers, x, cache)
        if self.has_shortcut:
            y += average_down(x, self.width, 2 if self.halves_time else 1, 1 if self.is_last else 2)
        return y, cache


class DecoderLevel(nnx.Module):
    """Residual blocks of one width, then doubling (but in the last level)."""

    def __init__(self, key: PRNGKey, config: WanVaeConfig, index: int) -> None:
        """Makes level ``index``, counted from the latents."""
        keys = jax.random.split(key, config.num_res_blocks + 2)
        widths, dtype = config.decoder_widths, config.compute_dtype
        self.width = widths[index]
        # Without level shortcuts, upsampling halves the width that the level above it begins with.
        entering = self.width if index == 0 else widths[index - 1] // (1 if config.has_level_shortcuts else 2)
        fans = [(entering if block == 0 else self.width, self.width) for block in range(config.num_res_blocks + 1)]
        self.blocks = nnx.List([ResidualBlock(k, fan, dtype=dtype) for k, fan in zip(keys[1:], fans, strict=True)])
        is_last = index == len(widths) - 1
        self.doubles_time = not is_last and config.temporal_downsample[::-1][index]
        self.has_shortcut = config.has_level_shortcuts and not is_last
        leaving = (self.width, self.width if config.has_level_shortcuts else self.width // 2)
        self.upsample = nnx.data(
            None if is_last else Upsample(keys[0], leaving, doubles_time=self.doubles_time, dtype=dtype)
        )

    def __call__(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Maps ``[b t h w in]`` to ``[b t' h' w' out]``."""
        layers = [*self.blocks, *([self.upsample] if self.upsample is not None else [])]
        y, following = apply_in_turn(layers, x, cache)
        if self.has_shortcut:
            y += repeat_up(x, self.width, 2 if self.doubles_time else 1, 2, is_beginning=cache is None)
        return y, following


class Encoder(nnx.Module):
    """Frames to features: convolution, levels, middle, norm, convolution."""

    def __init__(self, key: PRNGKey, config: WanVaeConfig) -> None:
        """Makes the encoder of ``config``."""
        widths, dtype = config.encoder_widths, config.compute_dtype
        keys = jax.random.split(key, len(widths) + 3)
        self.conv_in = CausalConv(keys[0], (config.in_channels, config.base_width), dtype=dtype)
        self.levels = nnx.List([EncoderLevel(k, config, i) for i, k in enumerate(keys[3:])])
        self.middle = MiddleBlock(keys[1], widths[-1], dtype=dtype)
        self.norm_out = ChannelNorm(key, widths[-1])
        self.conv_out = CausalConv(keys[2], (widths[-1], 2 * config.latent_channels), dtype=dtype)

    def __call__(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Maps ``[b f H W in]`` (folded pixels) to ``[b t h w 2c]``."""
        first, *between, last = (None,) * (len(self.levels) + 3) if cache is None else cache
        x, first = self.conv_in(x, first)
        x, between = apply_in_turn([*self.levels, self.middle], x, between)
        x, last = self.conv_out(jax.nn.silu(self.norm_out(x)), last)
        return x, (first, *between, last)


class Decoder(nnx.Module):
    """Features to frames: convolution, middle, levels, norm, convolution."""

    def __init__(self, key: PRNGKey, config: WanVaeConfig) -> None:
        """Makes the decoder of ``config``."""
        widths, dtype = config.decoder_widths, config.compute_dtype
        keys = jax.random.split(key, len(widths) + 3)
        self.conv_in = CausalConv(keys[0], (config.latent_channels, widths[0]), dtype=dtype)
        self.middle = MiddleBlock(keys[1], widths[0], dtype=dtype)
        self.levels = nnx.List([DecoderLevel(k, config, i) for i, k in enumerate(keys[3:])])
        self.norm_out = ChannelNorm(key, widths[-1])
        self.conv_out = CausalConv(keys[2], (widths[-1], config.out_channels), dtype=dtype)

    def __call__(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Maps ``[b t h w c]`` to ``[b f H W out]`` (folded pixels)."""
        first, *between, last = (None,) * (len(self.levels) + 3) if cache is None else cache
        x, first = self.conv_in(x, first)
        x, between = apply_in_turn([self.middle, *self.levels], x, between)
        x, last = self.conv_out(jax.nn.silu(self.norm_out(x)), last)
        return x, (first, *between, last)
