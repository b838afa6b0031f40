import dataclasses

import jax
import numpy as np
import pytest

from wamjax.batch import fake_batch
from wamjax.config.backbone import BlockConfig, ClipConfig, VideoTransformerConfig
from wamjax.config.schema import LayoutConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainConfig
from wamjax.errors import ConfigError
from wamjax.parallel.mesh import build_mesh, make_global_batch
from wamjax.training.program import build_program

BATCH = 4
CONFIG = RunConfig(
    backbone=VideoTransformerConfig(
        block=BlockConfig(width=16, num_heads=4, ffn_width=32),
        num_layers=2,
        in_channels=4,
        out_channels=4,
        text_width=8,
        time_width=16,
        remat="products",
    ),
    clip=ClipConfig(num_frames=5, height=32, width=48, text_tokens=4),
    layout=LayoutConfig(formulation="video", pad_multiple=8),
    optimizer=OptimizerConfig(warmup_steps=1, ema_decay=0.0),
    train=TrainConfig(num_steps=4, global_batch_size=BATCH),
)


def _two_steps(parallel, num_devices):
    config = dataclasses.replace(CONFIG, parallel=parallel)
    mesh = build_mesh(parallel, jax.devices()[:num_devices])
    program = build_program(config, mesh)
    state, batch = program.init(), make_global_batch(fake_batch(config, BATCH), mesh)
    metrics = []
    for _ in range(2):
        state, measured = program.step(state, batch)
        metrics.append([float(measured[name]) for name in ("loss/total", "optimizer/grad_norm")])
    return metrics


@pytest.mark.parametrize("exchange", ["all_to_all", pytest.param("reduce_scatter", marks=pytest.mark.slow)])
def test_explicit_blocks_train_as_one_device_does(exchange):
    explicit = ParallelConfig(
        data=2, fsdp=2, context=2, rules="fsdp_context", blocks="explicit", gradient_exchange=exchange
    )
    expected = _two_steps(ParallelConfig(fsdp=1), 1)
    np.testing.assert_allclose(_two_steps(explicit, 8), expected, rtol=1e-5)


def test_explicit_blocks_refuse_a_tensor_axis():
    parallel = ParallelConfig(fsdp=4, tensor=2, blocks="explicit")
    with pytest.raises(ConfigError, match=r"tensor=2.*config\.parallel\.blocks=sharded"):
        build_program(dataclasses.replace(CONFIG, parallel=parallel), build_mesh(parallel))
