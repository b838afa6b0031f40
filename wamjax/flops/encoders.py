"""FLOPs of the frozen encoders: what a sample costs if latents, text and image tokens are not cached.

Forward passes only: encoders are never trained. The closed forms equal the walks over the jaxprs of the encoders.
"""

from __future__ import annotations

from wamjax.config.backbone import VideoTransformerConfig
from wamjax.config.encoders import (
    CLIP_B_32_TEXT,
    CLIP_VIT_H_14,
    MAE_VIT_B_16,
    UMT5_XXL,
    ClipTextConfig,
    ClipVisionConfig,
    Umt5Config,
)
from wamjax.config.schema import RunConfig
from wamjax.config.wan_vae import WAN_2_1_VAE, WAN_2_2_VAE, WanVaeConfig
from wamjax.errors import ConfigError
from wamjax.flops import layers
from wamjax.flops.wan_vae import vae_encode_flops


def umt5_flops(config: Umt5Config, tokens: int) -> int:
    """Returns the FLOPs of encoding one prompt of ``tokens`` tokens, padding included: all are computed.

    Per block ``8 l d k e`` of projections, ``4 l^2 k e`` of scores, ``6 l d f`` of the gated feed-forward layer.
    """
    inner = config.num_heads * config.head_dim
    block = 3 * layers.linear(tokens, config.width, inner) + layers.linear(tokens, inner, config.width)
    block += layers.attention_scores(tokens**2, inner)
    block += 2 * layers.linear(tokens, config.width, config.ffn_width)
    return config.num_layers * (block + layers.linear(tokens, config.ffn_width, config.width))


def clip_vision_flops(config: ClipVisionConfig) -> int:
    """Returns the FLOPs of encoding one image; all blocks, though Wan reads what enters the last."""
    tokens, d = config.num_patches + 1, config.width
    block = layers.self_projections(tokens, d) + layers.attention_scores(tokens**2, d)
    block += layers.ffn(tokens, d, config.ffn_width)
    patches = layers.linear(config.num_patches, config.num_channels * config.patch_size**2, d)
    return patches + config.num_layers * block


def clip_text_flops(config: ClipTextConfig) -> int:
    """Returns the FLOPs of encoding one prompt, padding included, and of projecting its last token."""
    tokens, d = config.max_tokens, config.width
    block = layers.self_projections(tokens, d) + layers.ffn(tokens, d, config.ffn_width)
    block += layers.attention_scores(tokens * (tokens + 1) // 2, d)  # causal
    return config.num_layers * block + layers.linear(1, d, config.out_width)


def encoder_flops(
    config: RunConfig,
    *,
    vae: WanVaeConfig | None = None,
    text: Umt5Config = UMT5_XXL,
    image: ClipVisionConfig = CLIP_VIT_H_14,
) -> dict[str, int]:
    """Returns what encoding the clip of one sample costs, by encoder; all 0 for the small model, which has none.

    A backbone with condition channels has its clip encoded a second time, as its condition: the first frame and zeros
    (Wan I2V). A chunked encoding costs a little more (``flops.wan_vae``).

    Args:
      config: The run.
      vae: The video autoencoder; None for Wan 2.1's or 2.2's, whichever has such latents.
      text: The text encoder.
      image: The image encoder.

    Returns:
      ``vae``, ``text`` and ``image``.

    Raises:
      ConfigError: An encoder does not give what the backbone reads.
      DataError: The autoencoder does not take such a clip.
    """
    backbone, clip = config.backbone, config.clip
    if config.gpt is not None:
        pictures = config.layout.num_blocks * config.gpt.num_views
        return {"vae": 0, "text": clip_text_flops(CLIP_B_32_TEXT), "image": pictures * clip_vision_flops(MAE_VIT_B_16)}
    if backbone is None:
        return {"vae": 0, "text": 0, "image": 0}
    codec = vae or _find_vae(config, backbone)
    if backbone.text_width != text.width:
        raise ConfigError(
            f"config.backbone.text_width={backbone.text_width} and the text encoder gives {text.width}; name the one "
            "it was trained with"
        )
    images = 0
    if backbone.image_width is not None:
        tokens = image.num_patches + 1
        if backbone.image_width != image.width or clip.image_tokens % tokens:
            raise ConfigError(
                f"config.backbone.image_width={backbone.image_width} and config.clip.image_tokens={clip.image_tokens}; "
                f"the image encoder gives {tokens} tokens of {image.width} per image"
            )
        images = clip.image_tokens // tokens
    num_clips = 2 if backbone.in_channels > backbone.out_channels else 1
    return {
        "vae": num_clips * vae_encode_flops(codec, clip.num_frames, clip.height, clip.width),
        "text": umt5_flops(text, clip.text_tokens),
        "image": images * clip_vision_flops(image),
    }


def _find_vae(config: RunConfig, backbone: VideoTransformerConfig) -> WanVaeConfig:
    """Returns the published autoencoder whose latents ``backbone`` predicts."""
    for codec in (WAN_2_1_VAE, WAN_2_2_VAE):
        stride = (codec.temporal_compression, codec.spatial_compression, codec.spatial_compression)
        if (codec.latent_channels, stride) == (backbone.out_channels, config.clip.stride):
            return codec
    raise ConfigError(
        f"config.clip.stride={config.clip.stride} with config.backbone.out_channels={backbone.out_channels} are the "
        "latents of no published Wan autoencoder (16 channels at 4, 8, 8; 48 at 4, 16, 16); name its configuration"
    )
