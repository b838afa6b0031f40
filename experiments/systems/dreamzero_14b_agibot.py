"""DreamZero on AgiBot: the 14B model of dreamzero_14b_droid at 30 Hz of control, 48 actions per block.

Command:   wamjax plan --config=experiments/systems/dreamzero_14b_agibot.py --topology=v5p:4x4x4 --compile
Paper:     DreamZero (arXiv 2602.15922), its released code and configurations
Sequence:  clean and noisy 9 x 22 x 40, 4 x (48 actions + 1 state) = 16,036 tokens, padded to 16,640
Mesh:      64 chips of TPU v5p: fsdp 64
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.backbone import ActionsConfig, ClipConfig
from wamjax.config.bridge import to_config_dict
from wamjax.config.presets import WAN_2_1_I2V_14B
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
    block = dataclasses.replace(WAN_2_1_I2V_14B.block, compute_dtype="bfloat16")
    config = RunConfig(
        name="dreamzero_14b_agibot",
        backbone=dataclasses.replace(WAN_2_1_I2V_14B, block=block, remat="attention"),
        # Head and two wrist cameras on a canvas of 352 x 640 with one corner black, 33 frames at 5 Hz.
        clip=ClipConfig(num_frames=33, height=352, width=640),
        actions=ActionsConfig(modules="category"),
        layout=LayoutConfig(num_blocks=4, frames_per_block=2, actions_per_block=48, order="grouped", pad_unit=128),
        objective=ObjectiveConfig(shift=5.0, weighting="gaussian"),
        data=DataConfig(action_dim=32, state_dim=64),
        optimizer=OptimizerConfig(peak_lr=1e-5, warmup_steps=5000, b1=0.95, b2=0.999, weight_decay=1e-5, ema_decay=0.0),
        parallel=ParallelConfig(fsdp=-1, context=0, blocks="explicit"),
        train=TrainConfig(num_steps=100_000, global_batch_size=128),
    )
    return to_config_dict(config)
