"""Quickstart: a small world-action model on recorded Meta-World episodes, two cameras on one canvas.

Command:   make quickstart
     or    wamjax train --config=experiments/quickstart.py --workdir=runs/quickstart --cpu_devices=2
           wamjax eval --workdir=runs/quickstart --cpu_devices=2
Data:      datasets/metaworld (committed; its README has the command and seeds that made it)
Expected:  on two CPU cores (two simulated devices, jax 0.10.2, Python 3.11) 4 min 50 s of training and 1 min 20 s of
           evaluation, 2.9 GB; on 96 windows of 17 held-out episodes action error 0.049 [0.043, 0.056] (training mean
           0.383, repeat the last action 0.130), PSNR 30.6 dB (copy the last frame 27.8), action sensitivity 0.20
           [0.12, 0.36]; 20 of 20 unseen reach goals solved in closed loop [84 %, 100 %].
"""

from ml_collections import config_dict

from wamjax.config.bridge import to_config_dict
from wamjax.config.schema import (
    DataConfig,
    EvaluateConfig,
    LayoutConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)


def get_config() -> config_dict.ConfigDict:
    config = RunConfig(
        name="quickstart",
        model=ModelConfig(
            width=128,
            num_layers=4,
            num_heads=4,
            ffn_width=512,
            patch=(1, 24, 24),
            text_tokens=2,
            text_width=32,
            max_prompts=4,
            action_hidden=128,
            grid_embedding="learned",
        ),
        layout=LayoutConfig(
            num_blocks=2,
            frames_per_block=2,
            actions_per_block=8,
            noisy_first_frame=False,
            clean_last_block=False,
            pad_multiple=8,
        ),
        objective=ObjectiveConfig(
            shift=5.0,
            weighting="uniform",
            video_prediction="x0",
            video_residual="last_clean",
            action_prediction="x0",
            min_time=0.2,
        ),
        data=DataConfig(
            path="datasets/metaworld",
            canvas=(48, 96),
            views=(
                ("observation.images.front", 0, 0, 48, 48),
                ("observation.images.side", 0, 48, 48, 48),
            ),
            frame_stride=4,
        ),
        optimizer=OptimizerConfig(peak_lr=2e-3, warmup_steps=30),
        parallel=ParallelConfig(fsdp=-1, context=-1),
        train=TrainConfig(num_steps=800, global_batch_size=16),
        evaluate=EvaluateConfig(rollout_tasks=("reach-v3",)),
    )
    return to_config_dict(config)
