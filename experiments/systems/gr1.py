"""GR-1 on CALVIN: a small GPT over ten steps whose queries ask for the action and for the frame three steps on.

Command:   wamjax plan --config=experiments/systems/gr1.py --topology=v5e:4x4 --compile
Paper:     GR-1 (arXiv 2312.13139); sizes of bytedance/GR-1, logs/configs.json and models/gr1.py
Sequence:  10 x (instruction, state, 2 x 10 of pictures), 10 + 7 x 2 x 10 queries = 370 tokens, padded to 370
Mesh:      16 chips of TPU v5e: fsdp 16
Differs:   pictures and instruction are features of frozen MAE ViT-B and CLIP ViT-B/32, made beforehand. No dropout (0.1
           there). Queries for frames beyond the ten steps, which carry no loss, are left out. Loss weights of 1, batch,
           steps and learning rate are unverified: the training code is not public. Pretraining on video alone is the
           same run with has_action and state_mask False, one camera's pictures black. Nothing here makes these
           features: it plans, builds and trains on batches that are given to it, and its twin in
           experiments/sweeps/formulations.py trains and acts on features that are patches.
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.bridge import to_config_dict
from wamjax.config.gpt import GR1
from wamjax.config.schema import (
    DataConfig,
    LayoutConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)


def get_config() -> config_dict.ConfigDict:
    config = RunConfig(
        name="gr1",
        gpt=dataclasses.replace(GR1, compute_dtype="bfloat16", remat="full"),
        layout=LayoutConfig(
            formulation="queries", num_blocks=10, frames_per_block=1, actions_per_block=1, states_per_block=1
        ),
        data=DataConfig(action_dim=7, state_dim=7),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=1000, ema_decay=0.0),
        parallel=ParallelConfig(fsdp=-1),
        train=TrainConfig(num_steps=50_000, global_batch_size=512),
    )
    return to_config_dict(config)
