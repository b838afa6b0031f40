"""DreamZero on DROID: video and actions denoised together by Wan 2.1's 14B image-to-video transformer.

Command:   wamjax plan --config=experiments/systems/dreamzero_14b_droid.py --topology=v5p:4x4x4 --compile
Paper:     DreamZero (arXiv 2602.15922), its released code and configurations
Sequence:  clean and noisy 9 x 22 x 40, 4 x (24 actions + 1 state) = 15,940 tokens, padded to 16,128
Mesh:      64 chips of TPU v5p: fsdp 64
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.backbone import ActionsConfig, ClipConfig
from wamjax.config.bridge import to_config_dict
from wamjax.config.presets import WAN_2_1_I2V_14B
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
    block = dataclasses.replace(WAN_2_1_I2V_14B.block, compute_dtype="bfloat16")
    config = RunConfig(
        name="dreamzero_14b_droid",
        backbone=dataclasses.replace(WAN_2_1_I2V_14B, block=block, remat="self_attention"),
        # Three views on a canvas of 352 x 640, 33 frames at 5 Hz.
        clip=ClipConfig(num_frames=33, height=352, width=640),
        actions=ActionsConfig(modules="category"),
        layout=LayoutConfig(num_blocks=4, frames_per_block=2, actions_per_block=24, order="grouped", pad_unit=128),
        objective=ObjectiveConfig(shift=5.0, weighting="gaussian"),
        data=DataConfig(action_dim=32, state_dim=64),
        # Its released sampler: 16 steps, the model run at 8 of them (dit_step_mask), actions unguided.
        sampling=SamplingConfig(solver="unipc", steps=16, guidance=5.0, evaluated_steps=(0, 1, 2, 6, 10, 13, 14, 15)),
        optimizer=OptimizerConfig(peak_lr=1e-5, warmup_steps=5000, b1=0.95, b2=0.999, weight_decay=1e-5, ema_decay=0.0),
        parallel=ParallelConfig(fsdp=-1, context=0, blocks="explicit"),
        train=TrainConfig(num_steps=100_000, global_batch_size=128),
    )
    return to_config_dict(config)
