"""The tiny twin of a system: the same formulation, modules and objective at a size that a laptop trains in seconds.

What makes a system what it is stays as configured; widths, depth, frames and pixels shrink to the least that keeps
every part. Nothing here knows a system by name.
"""

from __future__ import annotations

import dataclasses

from wamjax.config.backbone import ClipConfig, VideoTransformerConfig
from wamjax.config.blocks import is_small
from wamjax.config.gpt import GptPolicyConfig
from wamjax.config.schema import LayoutConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainConfig
from wamjax.config.vla import VlaConfig
from wamjax.errors import ConfigError

_WIDTH, _HEADS, _FFN, _LAYERS, _TEXT_WIDTH, _IMAGE_WIDTH, _CHANNELS = 48, 2, 64, 2, 32, 16, 4
_EXPERT_WIDTH, _EXPERT_FFN = 32, 40
_PLAN_DIM = 6
_STATE_DIM = 8  # of a head of a recurrent layer
_TOKENS = (1, 2)  # rows and columns of a latent frame
_ACTIONS_PER_FRAME = 2


def tiny_twin(config: RunConfig) -> RunConfig:
    """Returns the tiny twin of a run with a backbone.

    Raises:
      ConfigError: The run has no backbone.
    """
    if is_small(config):
        raise ConfigError(
            f"config.backbone, config.vla and config.gpt of {config.name} are none; tiny twins are made of runs with "
            "one of them"
        )
    layout = _twin_layout(config.layout) if config.gpt is None else dataclasses.replace(config.layout, num_blocks=3)
    return dataclasses.replace(
        config,
        name=f"{config.name}_tiny",
        backbone=None if config.backbone is None else _twin_backbone(config.backbone),
        vla=None if config.vla is None else _twin_vla(config.vla),
        gpt=None if config.gpt is None else _twin_gpt(config.gpt),
        clip=config.clip if config.backbone is None else _twin_clip(config, layout),
        actions=dataclasses.replace(
            config.actions,
            hidden_width=16,
            expert_width=_EXPERT_WIDTH,
            expert_ffn_width=_EXPERT_FFN,
            plan_dim=_PLAN_DIM,
            plan_layers=_LAYERS,
        ),
        prefix=dataclasses.replace(
            config.prefix, width=_EXPERT_WIDTH if config.prefix.width else 0, ffn_width=_EXPERT_FFN, num_key_heads=1
        ),
        layout=layout,
        data=dataclasses.replace(config.data, action_dim=4, state_dim=4),
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=2, schedule="constant", ema_decay=0.0),
        parallel=ParallelConfig(attention_kernel=config.parallel.attention_kernel),
        train=TrainConfig(num_steps=20, global_batch_size=8),
    )


def _twin_backbone(backbone: VideoTransformerConfig) -> VideoTransformerConfig:
    block = dataclasses.replace(
        backbone.block,
        width=_WIDTH,
        num_heads=_HEADS,
        ffn_width=_FFN,
        context_width=_TEXT_WIDTH if backbone.block.context_width else None,
        num_key_heads=1 if backbone.block.num_key_heads else None,
        modulation_rank=8,
        attention=tuple(
            dataclasses.replace(each, key_dim=_STATE_DIM, value_dim=_STATE_DIM) for each in backbone.block.attention
        ),
        compute_dtype="float32",
    )
    beside = backbone.in_channels - backbone.out_channels
    return dataclasses.replace(
        backbone,
        block=block,
        num_layers=max(_LAYERS, len(block.attention)),
        in_channels=_CHANNELS + beside,
        out_channels=_CHANNELS,
        time_width=_WIDTH if block.modulation == "low_rank" else 16,
        text_width=_TEXT_WIDTH,
        image_width=_IMAGE_WIDTH if backbone.block.image_branch else None,
        remat="none",
    )


def _twin_vla(vla: VlaConfig) -> VlaConfig:
    vision = dataclasses.replace(
        vla.vision, width=_EXPERT_WIDTH, num_layers=_LAYERS, num_heads=_HEADS, ffn_width=_EXPERT_FFN, image_size=8,
        patch_size=4,
    )  # fmt: skip
    return dataclasses.replace(
        vla,
        vision=vision,
        width=_WIDTH,
        ffn_width=_FFN,
        expert_width=_EXPERT_WIDTH,
        expert_ffn_width=_EXPERT_FFN,
        num_layers=_LAYERS,
        num_heads=_HEADS,
        head_dim=_WIDTH // _HEADS,
        vocab_size=64,
        num_images=min(vla.num_images, 2),
        text_tokens=3,
        compute_dtype="float32",
        remat="none",
    )


def _twin_gpt(gpt: GptPolicyConfig) -> GptPolicyConfig:
    return dataclasses.replace(
        gpt,
        width=_WIDTH,
        num_layers=_LAYERS,
        num_heads=_HEADS,
        ffn_width=_FFN,
        image_size=8,
        patch_size=4,
        image_width=_IMAGE_WIDTH,
        text_width=_TEXT_WIDTH,
        num_latents=2,
        resampler_layers=2,
        resampler_heads=_HEADS,
        resampler_head_dim=8,
        decoder_heads=_HEADS,
        ahead=1,
        compute_dtype="float32",
        remat="none",
    )


def _twin_layout(layout: LayoutConfig) -> LayoutConfig:
    frames = min(layout.frames_per_block, 2)
    return dataclasses.replace(
        layout,
        num_blocks=min(layout.num_blocks, 2),
        frames_per_block=frames,
        actions_per_block=_ACTIONS_PER_FRAME * frames,
        pad_multiple=1,
        pad_unit=1,
    )


def _twin_clip(config: RunConfig, layout: LayoutConfig) -> ClipConfig:
    assert config.backbone is not None
    stride, patch = config.clip.stride, config.backbone.patch
    first = 0 if layout.formulation == "alternating" else 1
    latent_frames = first + layout.num_blocks * layout.frames_per_block
    if layout.formulation == "latent_frames":
        latent_frames = 2 * layout.frames_per_block
    height, width = (count * step * size for count, step, size in zip(_TOKENS, stride[1:], patch[1:], strict=True))
    return dataclasses.replace(
        config.clip,
        num_frames=1 + (latent_frames - 1) * stride[0],
        height=height,
        width=width,
        text_tokens=3,
        image_tokens=3,
    )
