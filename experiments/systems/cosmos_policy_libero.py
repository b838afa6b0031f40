"""Cosmos Policy on LIBERO: pictures, states, actions and a value as latent frames of Cosmos-Predict2 2B.

Command:   wamjax plan --config=experiments/systems/cosmos_policy_libero.py --topology=v5p:4x4x4 --compile
Paper:     Cosmos Policy; sizes and hyperparameters of its released code and configurations
Sequence:  9 frames x 14 x 14 = 1,764 tokens, padded to 1,764
Mesh:      64 chips of TPU v5p: fsdp 64
Differs:   the learning rate falls along a cosine to 0.06 of its peak, where the released one falls to 0.3 over 30,000
           steps and then steps down to 0.06. wamjax data cache makes no such samples: it plans
           and builds, and its twin in experiments/sweeps/formulations.py trains and acts.
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.backbone import ClipConfig
from wamjax.config.bridge import to_config_dict
from wamjax.config.presets import COSMOS_PREDICT2_2B_VIDEO2WORLD
from wamjax.config.sampling import SamplingConfig
from wamjax.config.schema import (
    DataConfig,
    LayoutConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)


def get_config() -> config_dict.ConfigDict:
    block = dataclasses.replace(COSMOS_PREDICT2_2B_VIDEO2WORLD.block, compute_dtype="bfloat16")
    config = RunConfig(
        name="cosmos_policy_libero",
        backbone=dataclasses.replace(COSMOS_PREDICT2_2B_VIDEO2WORLD, block=block, remat="attention"),
        # 2 views of 224 x 224, now and after the chunk; every picture is a latent frame of its own.
        clip=ClipConfig(num_frames=4, height=224, width=224, stride=(1, 8, 8)),
        layout=LayoutConfig(
            formulation="latent_frames",
            num_blocks=1,
            frames_per_block=2,
            actions_per_block=16,
            states_per_block=2,
        ),
        data=DataConfig(action_dim=7, state_dim=9),
        sampling=SamplingConfig(solver="adams", steps=5, sigma_min=4.0, sigma_max=80.0),
        optimizer=OptimizerConfig(
            peak_lr=1e-4,
            warmup_steps=1000,
            final_lr_fraction=0.06,
            b1=0.9,
            b2=0.99,
            weight_decay=0.1,
            ema_decay=0.0,
        ),
        parallel=ParallelConfig(fsdp=-1, context=0, blocks="explicit"),
        train=TrainConfig(num_steps=40_000, global_batch_size=1920),
    )
    return to_config_dict(config)
