"""Pretraining of Wan 2.1's 1.3B text-to-video transformer on clips of 81 frames at 480 x 832.

Command:   wamjax plan --config=experiments/pretrain/wan_1_3b_480p.py --topology=v5p:2x2x4 --compile
Paper:     Wan (arXiv 2503.20314); sizes of wan/configs/wan_t2v_1_3B.py
Sequence:  21 x 30 x 52 = 32,760 tokens, padded to 32,768
Mesh:      16 chips of TPU v5p: fsdp 16
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.backbone import ClipConfig
from wamjax.config.bridge import to_config_dict
from wamjax.config.presets import WAN_2_1_T2V_1_3B
from wamjax.config.schema import (
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
        name="wan_1_3b_480p",
        backbone=dataclasses.replace(WAN_2_1_T2V_1_3B, block=block, remat="products"),
        clip=ClipConfig(num_frames=81, height=480, width=832),
        layout=LayoutConfig(formulation="video", pad_multiple=1024),
        objective=ObjectiveConfig(shift=5.0, weighting="gaussian"),
        optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=2000, b1=0.9, b2=0.95, ema_decay=0.0),
        parallel=ParallelConfig(fsdp=-1, context=0, rules="fsdp_context", blocks="explicit"),
        train=TrainConfig(num_steps=100_000, global_batch_size=16),
    )
    return to_config_dict(config)
