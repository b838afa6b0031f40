"""Quickstart: a small world-action model on recorded Meta-World episodes, two cameras on one canvas.

Command:   make quickstart
     or    wamjax train --config=experiments/quickstart.py --workdir=runs/quickstart --cpu_devices=2
           wamjax eval --workdir=runs/quickstart --cpu_devices=2
Data:      datasets/metaworld (committed; its README has the command and seeds that made it)
Expected:  a few minutes on two CPU cores; on held-out episodes the action error is at most half that of predicting
           the training mean and below repeating the last action, and predicted frames beat copying the last frame.
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
