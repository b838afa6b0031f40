"""The smallest configuration that has every part, and a batch of it: used wherever a test needs a model."""

import jax
import jax.numpy as jnp

from wamjax.batch import WamBatch, fake_batch
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

# For programs that are compiled once and run once on a handful of numbers: LLVM would take most of the time.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}

TINY = RunConfig(
    model=ModelConfig(
        width=16,
        num_layers=2,
        num_heads=4,
        ffn_width=32,
        patch=(1, 8, 8),
        text_tokens=2,
        text_width=8,
        time_width=16,
        action_hidden=16,
        grid_embedding="learned",
    ),
    layout=LayoutConfig(num_blocks=2, frames_per_block=2, actions_per_block=4, noisy_first_frame=False, pad_multiple=8),
    objective=ObjectiveConfig(video_prediction="x0", video_residual="last_clean", action_prediction="x0"),
    data=DataConfig(canvas=(16, 24), views=(("left", 0, 0, 16, 8), ("right", 0, 8, 16, 16)), frame_stride=2),
    optimizer=OptimizerConfig(warmup_steps=1, peak_lr=1e-2),
    parallel=ParallelConfig(fsdp=1),
    train=TrainConfig(num_steps=4, global_batch_size=8),
    evaluate=EvaluateConfig(solver_steps=3),
)


def tiny_batch(config: RunConfig = TINY, batch_size: int = 2) -> WamBatch:
    """Returns a fake batch as device arrays."""
    return jax.tree.map(jnp.asarray, fake_batch(config, batch_size))
