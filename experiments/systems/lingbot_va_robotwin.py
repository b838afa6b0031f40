"""LingBot-VA on RoboTwin, as released: chunks of video and actions take turns in the blocks of Wan 2.2's 5B model.

Command:   wamjax plan --config=experiments/systems/lingbot_va_robotwin.py --topology=v5p:4x4x4 --compile
Paper:     LingBot-VA (arXiv 2601.21998); sizes and hyperparameters of its released code and configurations
Sequence:  noisy and clean, 32 x (12 x 10 video + 16 actions) = 8,704 tokens, padded to 8,704
Mesh:      64 chips of TPU v5p: fsdp 64
Differs:   a cost preset. The chunk is always 4 latent frames and the window all of the past, where the released
           training draws 1 to 4 frames and 4 to 64 half chunks; the length of a clip and the batch are ours.
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
        name="lingbot_va_robotwin",
        backbone=dataclasses.replace(WAN_2_2_TI2V_5B, block=block, remat="attention"),
        # Head camera of 256 x 320 over two wrist cameras of half that size: 32 latent frames of 24 x 20 latents.
        clip=ClipConfig(num_frames=125, height=384, width=320, stride=(4, 16, 16)),
        actions=ActionsConfig(modules="linear"),
        layout=LayoutConfig(
            formulation="alternating", num_blocks=8, frames_per_block=4, actions_per_block=64, states_per_block=0
        ),
        objective=ObjectiveConfig(
            shift=5.0,
            action_shift=1.0,
            weighting="gaussian",
            prompt_dropout=0.1,
            history_noise=0.5,
            history_max_time=0.5,
        ),
        data=DataConfig(action_dim=30),
        sampling=SamplingConfig(steps=3, action_steps=10, guidance=5.0),
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
        parallel=ParallelConfig(fsdp=-1, context=0, blocks="explicit"),
        train=TrainConfig(num_steps=50_000, global_batch_size=64),
    )
    return to_config_dict(config)
