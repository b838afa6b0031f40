"""Video pretraining at the size of Summer-22B: what 22 billion parameters and 500 billion tokens cost.

Command:   wamjax plan --config=experiments/systems/summer_22b.py --topology=v5p:8x8x8
Paper:     none with sizes: the published estimate is 6 x 22e9 x 500e9 = 66 ZFLOPs of "full video pretraining"
Sequence:  21 x 30 x 52 = 32,760 tokens, padded to 32,768
Mesh:      512 chips of TPU v5p: fsdp 256, context 2
Differs:   a cost preset. The architecture is not published: Wan's block 6,144 wide, 43 layers deep, comes to 22 billion
           parameters; clips of 480p, batch and the Wan 2.1 autoencoder are ours. 59,619 steps see 500 billion tokens.
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.backbone import ClipConfig
from wamjax.config.bridge import to_config_dict
from wamjax.config.presets import WAN_2_1_T2V_14B
from wamjax.config.schema import (
    LayoutConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)


def get_config() -> config_dict.ConfigDict:
    block = dataclasses.replace(
        WAN_2_1_T2V_14B.block, width=6144, num_heads=48, ffn_width=16_384, compute_dtype="bfloat16"
    )
    config = RunConfig(
        name="summer_22b",
        backbone=dataclasses.replace(WAN_2_1_T2V_14B, block=block, num_layers=43, remat="attention"),
        clip=ClipConfig(num_frames=81, height=480, width=832),
        layout=LayoutConfig(formulation="video", pad_multiple=512),
        objective=ObjectiveConfig(shift=5.0),
        optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=1000, ema_decay=0.0),
        parallel=ParallelConfig(fsdp=-1, context=0, blocks="explicit", rules="fsdp_context"),
        train=TrainConfig(num_steps=59_619, global_batch_size=256),
    )
    return to_config_dict(config)
