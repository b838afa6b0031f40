"""Fast-WAM on RoboTwin: actions read the first frame alone, so that no video is denoised to act.

Command:   wamjax plan --config=experiments/systems/fast_wam_robotwin.py --topology=v5p:4x4x4 --compile
Paper:     Fast-WAM (arXiv 2603.16666); sizes and hyperparameters of its released code and configurations
Sequence:  first frame and 2 noisy x 12 x 10, 32 actions = 392 tokens, padded to 392
Mesh:      64 chips of TPU v5p: fsdp 64
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
        name="fast_wam_robotwin",
        backbone=dataclasses.replace(WAN_2_2_TI2V_5B, block=block, remat="attention"),
        # 33 frames of RoboTwin, every fourth: 3 latent frames of 24 x 20 latents; 32 actions.
        clip=ClipConfig(num_frames=9, height=384, width=320, stride=(4, 16, 16), text_tokens=128, masks_text=True),
        actions=ActionsConfig(modules="expert", expert_width=1024, expert_ffn_width=4096),
        layout=LayoutConfig(
            formulation="first_frame",
            family="representation",
            num_blocks=1,
            frames_per_block=2,
            actions_per_block=32,
        ),
        objective=ObjectiveConfig(shift=5.0, weighting="gaussian"),
        data=DataConfig(action_dim=14, state_dim=14),
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
