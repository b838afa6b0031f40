"""LingBot-VA as its paper describes it: chunks take turns, and actions have a narrower stack that attends jointly.

Command:   wamjax plan --config=experiments/systems/lingbot_va_mot.py --topology=v5p:4x4x4 --compile
Paper:     LingBot-VA (arXiv 2601.21998)
Sequence:  noisy and clean, 32 x (12 x 10 video + 16 actions) = 8,704 tokens, padded to 8,704
Mesh:      64 chips of TPU v5p: fsdp 64
Differs:   a cost preset, as lingbot_va_robotwin. The paper gives the width of the action stream (768), its depth (the
           video's) and its size (about 350M); the feed-forward width of 4 x 768 is our reading. With the
           cross-attention to text that all blocks have here the action stream is larger than the paper's.
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.backbone import ActionsConfig, ClipConfig
from wamjax.config.bridge import to_config_dict
from wamjax.config.presets import WAN_2_2_TI2V_5B
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
    block = dataclasses.replace(WAN_2_2_TI2V_5B.block, compute_dtype="bfloat16")
    config = RunConfig(
        name="lingbot_va_mot",
        backbone=dataclasses.replace(WAN_2_2_TI2V_5B, block=block, remat="attention"),
        clip=ClipConfig(num_frames=125, height=384, width=320, stride=(4, 16, 16)),
        actions=ActionsConfig(modules="expert", expert_width=768, expert_ffn_width=3072),
        layout=LayoutConfig(
            formulation="alternating", num_blocks=8, frames_per_block=4, actions_per_block=64, states_per_block=0
        ),
        objective=ObjectiveConfig(
            shift=5.0, action_shift=1.0, weighting="gaussian", history_noise=0.5, history_max_time=0.5
        ),
        data=DataConfig(action_dim=30),
        optimizer=OptimizerConfig(
            schedule="constant",
            peak_lr=1e-5,
            warmup_steps=10,
            b1=0.9,
            b2=0.95,
            weight_decay=0.1,
            clip_norm=2.0,
            ema_decay=0.0,
        ),
        parallel=ParallelConfig(fsdp=-1, blocks="explicit"),
        train=TrainConfig(num_steps=50_000, global_batch_size=64),
    )
    return to_config_dict(config)
