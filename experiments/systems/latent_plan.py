"""Latent plans on Wan 2.1 1.3B: a posterior reads what follows, a prior the present, actions are decoded from a plan.

Command:   wamjax plan --config=experiments/systems/latent_plan.py --topology=v5p:2x2x4
Paper:     Play-LMP (arXiv 1903.01973): plans of 256 dims, beta 0.01. Its networks are small and convolutional or
           recurrent; the video transformer, its sizes and those of the decoder are of our choice
Sequence:  state, prior, posterior and 3 frames of 14 x 28 = 1,179 tokens, padded to 1,280
Mesh:      16 chips of TPU v5p: fsdp 16
Differs:   windows, batch, steps and learning rate are not the paper's: those of Fast-WAM on LIBERO, for comparison. A
           prompt stands in for the goal picture, and both Gaussians read it; the posterior reads frames and no actions;
           actions are regressed together by squared error where Play-LMP has a recurrent decoder and a mixture of
           logistics; the divergence is not annealed. No loss is on video.
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.backbone import ActionsConfig, ClipConfig
from wamjax.config.bridge import to_config_dict
from wamjax.config.presets import WAN_2_1_T2V_1_3B
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
    block = dataclasses.replace(WAN_2_1_T2V_1_3B.block, compute_dtype="bfloat16")
    config = RunConfig(
        name="latent_plan",
        backbone=dataclasses.replace(WAN_2_1_T2V_1_3B, block=block, remat="attention"),
        # Two views side by side, 33 frames, every fourth: 3 latent frames of 28 x 56 latents.
        clip=ClipConfig(num_frames=9, height=224, width=448, text_tokens=128, masks_text=True),
        actions=ActionsConfig(modules="plan", expert_width=512, expert_ffn_width=2048, plan_dim=256, plan_layers=4),
        layout=LayoutConfig(
            formulation="plan",
            family="representation",
            num_blocks=1,
            frames_per_block=2,
            actions_per_block=32,
            pad_multiple=128,
        ),
        objective=ObjectiveConfig(plan_weight=0.01, plan_balance=0.5),
        data=DataConfig(action_dim=7, state_dim=8),
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
