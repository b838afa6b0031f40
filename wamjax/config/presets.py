"""The published video transformers, as configurations.

Sources: Wan 2.1, wan/configs/wan_{t2v_1_3B,t2v_14B,i2v_14B}.py; Wan 2.2, wan/configs/wan_{ti2v_5B,t2v_A14B,i2v_A14B}.py
(sizes and ``boundary``); diffusers, scripts/convert_wan_to_diffusers.py (channels, image branch) and
scripts/convert_cosmos_to_diffusers.py (Cosmos 2.0); Cosmos-Predict2, cosmos_predict2/configs/base/
config_{text2image,video2world}.py. A test holds their numbers of parameters to the reference classes'.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wamjax.config.backbone import BlockConfig, RotaryConfig, TwoExpertConfig, VideoTransformerConfig

_CLIP_WIDTH = 1280  # CLIP ViT-H/14
_CLIP_TOKENS = 257
_LATENT_CHANNELS = 16  # Wan 2.1's VAE
# Image to video: noise, 4 channels of mask (one per pixel frame of a latent frame), the encoded condition.
_CONDITIONED_CHANNELS = _LATENT_CHANNELS + 4 + _LATENT_CHANNELS


def _wan(
    width: int, num_layers: int, ffn_width: int, *, in_channels: int, image: bool = False
) -> VideoTransformerConfig:
    return VideoTransformerConfig(
        block=BlockConfig(width=width, num_heads=width // 128, ffn_width=ffn_width, image_branch=image),
        num_layers=num_layers,
        in_channels=in_channels,
        out_channels=_LATENT_CHANNELS,
        image_width=_CLIP_WIDTH if image else None,
    )


def _cosmos(
    width: int, num_layers: int, *, in_channels: int, scale: tuple[float, float, float]
) -> VideoTransformerConfig:
    return VideoTransformerConfig(
        block=BlockConfig(
            width=width,
            num_heads=width // 128,
            ffn_width=4 * width,
            context_width=1024,
            qk_norm="head",
            qk_norm_eps=1e-5,  # diffusers'; Cosmos's own code has 1e-6
            use_bias=False,
            modulation="low_rank",
            modulation_rank=256,
            gelu="exact",
        ),
        num_layers=num_layers,
        in_channels=in_channels,
        out_channels=_LATENT_CHANNELS,
        use_patch_bias=False,
        time_width=width,
        text_width=1024,
        text_embedding="none",
        rotary=RotaryConfig(scale=scale),
        padding_mask=True,
    )


WAN_2_1_T2V_1_3B = _wan(1536, 30, 8960, in_channels=_LATENT_CHANNELS)
WAN_2_1_T2V_14B = _wan(5120, 40, 13824, in_channels=_LATENT_CHANNELS)
WAN_2_1_I2V_14B = _wan(5120, 40, 13824, in_channels=_CONDITIONED_CHANNELS, image=True)
WAN_2_1_FLF2V_14B = dataclasses.replace(WAN_2_1_I2V_14B, image_positions=2 * _CLIP_TOKENS)
# Its VAE has 48 channels; timesteps per token, with the condition in the first latent frame.
WAN_2_2_TI2V_5B = dataclasses.replace(_wan(3072, 30, 14336, in_channels=48), out_channels=48)
WAN_2_2_T2V_A14B = TwoExpertConfig(expert=WAN_2_1_T2V_14B, boundary=0.875)
# Conditioned by channels alone: no image encoder.
WAN_2_2_I2V_A14B = TwoExpertConfig(expert=_wan(5120, 40, 13824, in_channels=_CONDITIONED_CHANNELS), boundary=0.9)
COSMOS_PREDICT2_2B_TEXT2IMAGE = _cosmos(2048, 28, in_channels=_LATENT_CHANNELS, scale=(1.0, 4.0, 4.0))
# One more channel: which frames are the condition.
COSMOS_PREDICT2_2B_VIDEO2WORLD = _cosmos(2048, 28, in_channels=_LATENT_CHANNELS + 1, scale=(1.0, 3.0, 3.0))

PRESETS: Mapping[str, VideoTransformerConfig | TwoExpertConfig] = {
    "wan2.1-t2v-1.3b": WAN_2_1_T2V_1_3B,
    "wan2.1-t2v-14b": WAN_2_1_T2V_14B,
    "wan2.1-i2v-14b": WAN_2_1_I2V_14B,
    "wan2.1-flf2v-14b": WAN_2_1_FLF2V_14B,
    "wan2.2-ti2v-5b": WAN_2_2_TI2V_5B,
    "wan2.2-t2v-a14b": WAN_2_2_T2V_A14B,
    "wan2.2-i2v-a14b": WAN_2_2_I2V_A14B,
    "cosmos-predict2-2b-text2image": COSMOS_PREDICT2_2B_TEXT2IMAGE,
    "cosmos-predict2-2b-video2world": COSMOS_PREDICT2_2B_VIDEO2WORLD,
}
