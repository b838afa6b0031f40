"""DreamZero on Wan 2.2's 5B transformer: the smaller backbone of its released code, on frames of 160 x 320.

Command:   wamjax plan --config=experiments/systems/dreamzero_5b.py --topology=v5p:2x4x4 --compile
Paper:     DreamZero (arXiv 2602.15922), its released code and configurations
Sequence:  clean and noisy 9 x 5 x 10, 4 x (24 actions + 1 state) = 1,000 tokens, padded to 1,024
Mesh:      32 chips of TPU v5p: fsdp 32
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.backbone import ActionsConfig, ClipConfig
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
    block = dataclasses.replace(WAN_2_2_TI2V_5B.block, compute_dtype="bfloat16")
    config = RunConfig(
        name="dreamzero_5b",
        backbone=dataclasses.replace(WAN_2_2_TI2V_5B, block=block, remat="attention"),
        # 33 frames at 5 Hz; Wan 2.2's autoencoder has one latent for 16 x 16 pixels, so a latent frame is 50 tokens.
        clip=ClipConfig(num_frames=33, height=160, width=320, stride=(4, 16, 16)),
        actions=ActionsConfig(modules="category"),
        layout=LayoutConfig(num_blocks=4, frames_per_block=2, actions_per_block=24, order="grouped", pad_multiple=128),
        objective=ObjectiveConfig(shift=5.0, weighting="gaussian"),
        data=DataConfig(action_dim=32, state_dim=64),
        # Its released sampler: 16 steps, the model run at 8 of them (dit_step_mask), actions unguided.
        sampling=SamplingConfig(solver="unipc", steps=16, guidance=5.0, evaluated_steps=(0, 1, 2, 6, 10, 13, 14, 15)),
        optimizer=OptimizerConfig(peak_lr=1e-5, warmup_steps=5000, b1=0.95, b2=0.999, weight_decay=1e-5, ema_decay=0.0),
        parallel=ParallelConfig(fsdp=-1, context=0, blocks="explicit"),
        train=TrainConfig(num_steps=100_000, global_batch_size=128),
    )
    return to_config_dict(config)
