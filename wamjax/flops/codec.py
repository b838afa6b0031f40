"""FLOPs of the frozen encoders around one chunk of actions, which ``flops.chunk`` leaves out.

A policy encodes frames as they come, from the window's first one as the cache of training samples does; where the
oldest are dropped, those left are encoded anew. Text is not in it: prompts are encoded before anything acts.
"""

from __future__ import annotations

import dataclasses

from wamjax.config.encoders import ClipVisionConfig
from wamjax.config.schema import RunConfig
from wamjax.config.wan_vae import WanVaeConfig
from wamjax.flops.encoders import clip_vision_flops
from wamjax.flops.wan_vae import vae_decode_flops, vae_encode_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecFlops:
    """FLOPs of one sample.

    Attributes:
      observe: Of the newly seen frames, while none are dropped.
      window: Of all frames looked back on, once the oldest are dropped: in the place of ``observe``.
      condition: Of the condition channels of a window's first frame; 0 where the backbone reads none.
      image: Of the image encoder on it; 0 without one.
      decode: Of the window's frames and those expected, to be looked at or to read actions off.
    """

    observe: int
    window: int
    condition: int
    image: int
    decode: int


def count_codec(
    config: RunConfig,
    vae: WanVaeConfig,
    image: ClipVisionConfig | None = None,
    *,
    chunk: int = 0,
    in_chunks: bool = True,
) -> CodecFlops:
    """Returns the FLOPs of the encoders around chunk ``chunk`` of a window.

    Args:
      config: A run of a backbone that acts, or of the first of two stages, whose every chunk is a window.
      vae: The autoencoder.
      image: The image encoder, where the backbone reads its tokens.
      chunk: Which chunk, from 0.
      in_chunks: Whether whole clips are encoded in chunks of frames; the condition and what is decoded always are.

    Raises:
      DataError: The autoencoder does not take such a clip.
    """
    sizes = config.layout
    if sizes.formulation == "video":
        known, before, longest, after = 1, 0, 1, config.clip.num_frames
    else:
        known, after, longest = (_frames_known(config, n) for n in (chunk, chunk + 1, sizes.num_blocks - 1))
        before = _frames_known(config, chunk - 1) if chunk else 0
    size = (config.clip.height, config.clip.width)
    assert config.backbone is not None, "of a backbone"
    has_channels = config.backbone.in_channels > config.backbone.out_channels and sizes.formulation != "video"
    return CodecFlops(
        observe=vae_encode_flops(vae, known, *size, in_chunks=True)
        - (vae_encode_flops(vae, before, *size, in_chunks=True) if before else 0),
        window=vae_encode_flops(vae, longest, *size, in_chunks=in_chunks),
        condition=vae_encode_flops(vae, config.clip.num_frames, *size, in_chunks=True) if has_channels else 0,
        image=0 if image is None else clip_vision_flops(image),
        # A plan's policy imagines no video.
        decode=0 if sizes.formulation == "plan" else vae_decode_flops(vae, after, *size, in_chunks=True),
    )


def _frames_known(config: RunConfig, chunk: int) -> int:
    """Returns the frames of the window that are seen before its chunk ``chunk`` is denoised."""
    latents = chunk * config.layout.frames_per_block
    # The first chunk of ``alternating`` begins with the observed frame, which elsewhere comes before all chunks.
    latents = max(1, latents) if config.layout.formulation == "alternating" else 1 + latents
    return 1 + (latents - 1) * config.clip.stride[0]
