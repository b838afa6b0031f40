"""FLOPs of the Wan video autoencoders, from their configuration and the size of a clip.

Closed forms for one clip taken whole, exact to the walk over the jaxpr (``flops.jaxpr``); a test holds them together.
Products with the zeros before a clip and around a frame are not counted. A clip taken in chunks costs a little more:
its convolutions also multiply the zeros that stand for the frames before the second.
"""

from __future__ import annotations

from wamjax.config.wan_vae import WanVaeConfig
from wamjax.flops import layers

_TAPS = 3  # of every convolution, in time and in space
_MARGIN = (1, 1)


def vae_encode_flops(config: WanVaeConfig, frames: int, height: int, width: int) -> int:
    """Returns the FLOPs of encoding one clip to moments.

    Args:
      config: The autoencoder.
      frames: Pixel frames, 4 n + 1.
      height: Rows of pixels.
      width: Columns of pixels.

    Raises:
      DataError: The autoencoder does not take such a clip.
    """
    config.check_clip(frames, height, width)
    h, w, widths = height // config.patch_size, width // config.patch_size, config.encoder_widths
    total = _causal(frames, h, w, config.in_channels, config.base_width)
    for level, channels in enumerate(widths):
        entering = (config.base_width, *widths)[level]
        for block in range(config.num_res_blocks):
            total += _residual(frames, h, w, entering if block == 0 else channels, channels)
        if level < len(widths) - 1:
            halved = layers.conv((h, w), (_TAPS, _TAPS), channels, channels, strides=(2, 2), padding=((0, 1), (0, 1)))
            total, h, w = total + frames * halved, h // 2, w // 2
            if config.temporal_downsample[level]:
                total += layers.linear((frames - 1) // 2 * h * w * _TAPS, channels, channels)
                frames = 1 + (frames - 1) // 2
    features = 2 * config.latent_channels
    total += _middle(frames, h, w, widths[-1]) + _causal(frames, h, w, widths[-1], features)
    return total + layers.linear(frames * h * w, features, features)


def vae_decode_flops(config: WanVaeConfig, frames: int, height: int, width: int) -> int:
    """Returns the FLOPs of decoding one clip from its latents. Arguments and errors as ``vae_encode_flops``."""
    config.check_clip(frames, height, width)
    frames = 1 + (frames - 1) // config.temporal_compression
    h, w = height // config.spatial_compression, width // config.spatial_compression
    latent, widths = config.latent_channels, config.decoder_widths
    total = layers.linear(frames * h * w, latent, latent) + _causal(frames, h, w, latent, widths[0])
    total += _middle(frames, h, w, widths[0])
    entering = widths[0]
    for level, channels in enumerate(widths):
        for block in range(config.num_res_blocks + 1):
            total += _residual(frames, h, w, entering if block == 0 else channels, channels)
        if level < len(widths) - 1:
            if config.temporal_downsample[::-1][level]:
                total += _causal(frames - 1, h, w, channels, 2 * channels, side=1)
                frames = 1 + 2 * (frames - 1)
            h, w, entering = 2 * h, 2 * w, channels if config.has_level_shortcuts else channels // 2
            total += frames * layers.conv(
                (h, w), (_TAPS, _TAPS), channels, entering, strides=(1, 1), padding=(_MARGIN, _MARGIN)
            )
    return total + _causal(frames, h, w, widths[-1], config.out_channels)


def _causal(frames: int, h: int, w: int, fan_in: int, fan_out: int, *, side: int = _TAPS) -> int:
    """FLOPs of a causal convolution with a kernel of 3 x ``side`` x ``side``."""
    margin = (side // 2, side // 2)
    padding = ((_TAPS - 1, 0), margin, margin)
    return layers.conv((frames, h, w), (_TAPS, side, side), fan_in, fan_out, strides=(1, 1, 1), padding=padding)


def _residual(frames: int, h: int, w: int, fan_in: int, fan_out: int) -> int:
    """FLOPs of a residual block."""
    shortcut = layers.linear(frames * h * w, fan_in, fan_out) if fan_in != fan_out else 0
    return _causal(frames, h, w, fan_in, fan_out) + _causal(frames, h, w, fan_out, fan_out) + shortcut


def _middle(frames: int, h: int, w: int, width: int) -> int:
    """FLOPs of two residual blocks and attention among the pixels of each frame."""
    attention = layers.self_projections(frames * h * w, width) + layers.attention_scores(frames * (h * w) ** 2, width)
    return 2 * _residual(frames, h, w, width, width) + attention
