"""A vision-language-action model and a world-action model in one: a prefix tower, a video tower and an action expert.

Command:   wamjax plan --config=experiments/systems/hybrid_vla_wam.py --topology=v5p:4x4x4 --compile
Paper:     none: Pi-0.5's prefix (openpi: three images of 256 tokens and 200 of text, all seeing all, width 2,048,
           feed-forward 16,384, one head of keys) beside Fast-WAM (arXiv 2603.16666) on RoboTwin
Sequence:  968 prefix, first frame and 2 noisy x 12 x 10, 32 actions = 1,360 tokens, padded to 1,360
Mesh:      64 chips of TPU v5p: fsdp 64
Differs:   a design of ours, to be compared. The prefix is as deep as Wan 2.2's 5B model and has its 24 heads of 128 (in
           Pi-0.5 18 layers and 8 heads of 256); its embedded tokens come from outside.
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.backbone import ActionsConfig, ClipConfig, PrefixConfig
from wamjax.config.bridge import to_config_dict
from wamjax.config.presets import WAN_2_2_TI2V_5B
from wamjax.config.sampling import SamplingConfig
from wamjax.config.schema import (
    DataConfig,
    LayoutConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)


def get_config() -> config_dict.ConfigDict:
    block = dataclasses.replace(WAN_2_2_TI2V_5B.block, compute_dtype="bfloat16", cross_attention=False)
    config = RunConfig(
        name="hybrid_vla_wam",
        backbone=dataclasses.replace(
            WAN_2_2_TI2V_5B,
            # Text comes through the prefix alone.
            block=dataclasses.replace(block, context_width=WAN_2_2_TI2V_5B.text_width),
            text_embedding="none",
            remat="attention",
        ),
        prefix=PrefixConfig(width=2048, ffn_width=16_384, num_key_heads=1, is_causal=False),
        clip=ClipConfig(num_frames=9, height=384, width=320, stride=(4, 16, 16), text_tokens=968),
        actions=ActionsConfig(modules="expert", expert_width=1024, expert_ffn_width=4096),
        layout=LayoutConfig(
            formulation="first_frame",
            family="representation",
            num_blocks=1,
            frames_per_block=2,
            actions_per_block=32,
            states_per_block=0,
        ),
        objective=ObjectiveConfig(shift=5.0, weighting="gaussian"),
        data=DataConfig(action_dim=14),
        sampling=SamplingConfig(steps=10),
        optimizer=OptimizerConfig(
            peak_lr=1e-4,
            warmup_steps=1500,
            final_lr_fraction=0.01,
            b1=0.9,
            b2=0.95,
            weight_decay=0.01,
            clip_norm=1.0,
            ema_decay=0.0,
        ),
        parallel=ParallelConfig(fsdp=-1, blocks="explicit"),
        train=TrainConfig(num_steps=30_000, global_batch_size=1024),
    )
    return to_config_dict(config)
