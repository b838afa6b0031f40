"""Pi-0.5 on DROID: the vision-language-action baseline, which generates no video.

Command:   wamjax plan --config=experiments/systems/pi05_droid.py --topology=v5p:4x4x4
Paper:     Pi-0.5 (arXiv 2504.16054); sizes and hyperparameters of openpi, training config pi05_full_droid_finetune
Sequence:  3 x 256 of images, 200 of text, 16 actions = 984 tokens, padded to 984
Mesh:      64 chips of TPU v5p: fsdp 64
Differs:   the horizon is the 16 actions that openpi trains on DROID with (its config for inference has 15); the third
           image is absent there (view_mask), and computed all the same. The learning rate stays at its peak, which
           openpi's hardly leaves in these steps. Its tokenizer is not wired to a dataset: it plans, builds and trains
           on batches that are given to it, and its twin in experiments/sweeps/formulations.py trains and acts on bytes.
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.bridge import to_config_dict
from wamjax.config.schema import (
    DataConfig,
    LayoutConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from wamjax.config.vla import PI05


def get_config() -> config_dict.ConfigDict:
    config = RunConfig(
        name="pi05_droid",
        vla=dataclasses.replace(PI05, compute_dtype="bfloat16", remat="attention"),
        layout=LayoutConfig(
            formulation="policy", num_blocks=1, frames_per_block=1, actions_per_block=16, states_per_block=0
        ),
        objective=ObjectiveConfig(action_beta=(1.5, 1.0)),
        data=DataConfig(action_dim=32),
        # openpi, src/openpi/training/optimizer.py, AdamW, and the schedule of the config.
        optimizer=OptimizerConfig(
            peak_lr=5e-5,
            warmup_steps=1000,
            schedule="constant",
            b1=0.9,
            b2=0.95,
            weight_decay=1e-10,
            clip_norm=1.0,
            ema_decay=0.99,
        ),
        parallel=ParallelConfig(fsdp=-1, blocks="explicit", attention_kernel="rectangles"),
        train=TrainConfig(num_steps=100_000, global_batch_size=256),
    )
    return to_config_dict(config)
