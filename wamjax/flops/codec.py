"""FLOPs of the frozen encoders around one chunk of actions, which ``flops.chunk`` leaves out.

A policy encodes the frames it looks back on from the window's first one, as the cache of training samples does, so a
later chunk of a window costs more. Text is not in it: prompts are encoded before anything acts.
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
      observe: Of the frames that are looked back on, the newest included.
      condition: Of the condition channels of a window's first frame; 0 where the backbone reads none.
      image: Of the image encoder on it; 0 without one.
      decode: Of the window's frames and those expected, to be looked at or to read actions off.
    """

    observe: int
    condition: int
    image: int
    decode: int

    @property
    def encode(self) -> int:
        """FLOPs of encoding where a window begins, or is cut."""
        return self.observe + self.condition + self.image


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
      in_chunks: Whether observed clips are taken in chunks of frames; the condition and what is decoded always are.

    Raises:
      DataError: The autoencoder does not take such a clip.
    """
    sizes, stride = config.layout, config.clip.stride[0]
    known, after = 1, config.clip.num_frames
    if sizes.formulation == "alternating":  # whose first chunk begins with the observed frame
        known, after = (1 + (max(1, n * sizes.frames_per_block) - 1) * stride for n in (chunk, chunk + 1))
    elif sizes.formulation != "video":
        known, after = (1 + n * sizes.frames_per_block * stride for n in (chunk, chunk + 1))
    size = (config.clip.height, config.clip.width)
    assert config.backbone is not None, "of a backbone"
    has_channels = config.backbone.in_channels > config.backbone.out_channels and sizes.formulation != "video"
    return CodecFlops(
        observe=vae_encode_flops(vae, known, *size, in_chunks=in_chunks),
        condition=vae_encode_flops(vae, config.clip.num_frames, *size, in_chunks=True) if has_channels else 0,
        image=0 if image is None else clip_vision_flops(image),
        decode=vae_decode_flops(vae, after, *size, in_chunks=True),
    )
