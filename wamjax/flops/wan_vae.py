"""FLOPs of the Wan video autoencoders, from their configuration and the size of a clip.

Closed forms for one clip, exact to the walk over the jaxpr (``flops.jaxpr``); a test holds them together. Products with
the zeros before a clip and around a frame are not counted. A clip taken in chunks, of whatever size, costs a little
more: its convolutions also multiply the zeros that stand for the frames before the second.
"""

from __future__ import annotations

from wamjax.config.wan_vae import WanVaeConfig
from wamjax.flops import layers

_TAPS = 3  # of every convolution, in time and in space
_MARGIN = (1, 1)


def vae_encode_flops(config: WanVaeConfig, frames: int, height: int, width: int, *, in_chunks: bool = False) -> int:
    """Returns the FLOPs of encoding one clip to moments.

    Args:
      config: The autoencoder.
      frames: Pixel frames, 4 n + 1.
      height: Rows of pixels.
      width: Columns of pixels.
      in_chunks: Whether the first frame is taken by itself and the others in chunks; else all at once.

    Raises:
      DataError: The autoencoder does not take such a clip.
    """
    config.check_clip(frames, height, width)
    h, w, widths = height // config.patch_size, width // config.patch_size, config.encoder_widths
    total = _causal(frames, h, w, config.in_channels, config.base_width, in_chunks=in_chunks)
    for level, channels in enumerate(widths):
        entering = (config.base_width, *widths)[level]
        for block in range(config.num_res_blocks):
            total += _residual(frames, h, w, entering if block == 0 else channels, channels, in_chunks=in_chunks)
        if level < len(widths) - 1:
            halved = layers.conv((h, w), (_TAPS, _TAPS), channels, channels, strides=(2, 2), padding=((0, 1), (0, 1)))
            total, h, w = total + frames * halved, h // 2, w // 2
            if config.temporal_downsample[level]:
                total += layers.linear((frames - 1) // 2 * h * w * _TAPS, channels, channels)
                frames = 1 + (frames - 1) // 2
    features = 2 * config.latent_channels
    total += _middle(frames, h, w, widths[-1], in_chunks=in_chunks)
    total += _causal(frames, h, w, widths[-1], features, in_chunks=in_chunks)
    return total + layers.linear(frames * h * w, features, features)


def vae_decode_flops(config: WanVaeConfig, frames: int, height: int, width: int, *, in_chunks: bool = False) -> int:
    """Returns the FLOPs of decoding one clip from its latents. Arguments and errors as ``vae_encode_flops``."""
    config.check_clip(frames, height, width)
    frames = 1 + (frames - 1) // config.temporal_compression
    h, w = height // config.spatial_compression, width // config.spatial_compression
    latent, widths = config.latent_channels, config.decoder_widths
    total = layers.linear(frames * h * w, latent, latent)
    total += _causal(frames, h, w, latent, widths[0], in_chunks=in_chunks)
    total += _middle(frames, h, w, widths[0], in_chunks=in_chunks)
    entering = widths[0]
    for level, channels in enumerate(widths):
        for block in range(config.num_res_blocks + 1):
            total += _residual(frames, h, w, entering if block == 0 else channels, channels, in_chunks=in_chunks)
        if level < len(widths) - 1:
            if config.temporal_downsample[::-1][level]:
                if in_chunks:  # zeros stand for the first frame, which the convolution of the others does not see
                    total += layers.linear((frames - 1) * h * w * _TAPS, channels, 2 * channels)
                else:
                    total += _causal(frames - 1, h, w, channels, 2 * channels, side=1, in_chunks=False)
                frames = 1 + 2 * (frames - 1)
            h, w, entering = 2 * h, 2 * w, channels if config.has_level_shortcuts else channels // 2
            total += frames * layers.conv(
                (h, w), (_TAPS, _TAPS), channels, entering, strides=(1, 1), padding=(_MARGIN, _MARGIN)
            )
    return total + _causal(frames, h, w, widths[-1], config.out_channels, in_chunks=in_chunks)


def _causal(frames: int, h: int, w: int, fan_in: int, fan_out: int, *, side: int = _TAPS, in_chunks: bool) -> int:
    """FLOPs of a causal convolution with a kernel of 3 x ``side`` x ``side``."""
    margin = (side // 2, side // 2)
    frame = layers.conv((h, w), (side, side), fan_in, fan_out, strides=(1, 1), padding=(margin, margin))
    seen = sum(max(frames - back, 0) for back in range(_TAPS))
    zeros = int(in_chunks and frames > 1)  # the second frame's tap on what is before the first
    return (seen + zeros) * frame


def _residual(frames: int, h: int, w: int, fan_in: int, fan_out: int, *, in_chunks: bool) -> int:
    """FLOPs of a residual block."""
    shortcut = layers.linear(frames * h * w, fan_in, fan_out) if fan_in != fan_out else 0
    first = _causal(frames, h, w, fan_in, fan_out, in_chunks=in_chunks)
    return first + _causal(frames, h, w, fan_out, fan_out, in_chunks=in_chunks) + shortcut


def _middle(frames: int, h: int, w: int, width: int, *, in_chunks: bool) -> int:
    """FLOPs of two residual blocks and attention among the pixels of each frame."""
    attention = layers.self_projections(frames * h * w, width) + layers.attention_scores(frames * (h * w) ** 2, width)
    return 2 * _residual(frames, h, w, width, width, in_chunks=in_chunks) + attention
