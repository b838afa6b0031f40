"""A whole model trains the same whichever way its attention is shared over the context axis."""

import contextlib
import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from tests.tiny import TINY
from wamjax.batch import fake_batch
from wamjax.config.backbone import BlockConfig
from wamjax.config.schema import ParallelConfig
from wamjax.layout import joint_layout
from wamjax.models.block import Conditioning
from wamjax.models.stack import run_blocks, stack_blocks
from wamjax.nn.attention import describe_attention, token_order
from wamjax.nn.rotary import rotary_table
from wamjax.parallel.explicit import make_placement
from wamjax.parallel.mesh import build_mesh, make_global_batch
from wamjax.parallel.rules import placing
from wamjax.training.program import build_program

MESHES = (
    {"context": 4},
    {"data": 2, "fsdp": 2, "context": 2},
    {"fsdp": 2, "context": 4, "rules": "fsdp_context"},
    {"context": 4, "tensor": 2},
)


@functools.cache
def _step(**parallel):
    """Loss and gradient norm of a training step."""
    config = dataclasses.replace(
        TINY,
        parallel=ParallelConfig(**{"fsdp": 1, **parallel}),
    )
    sizes = config.parallel
    num_devices = sizes.data * sizes.fsdp * sizes.context * sizes.tensor
    mesh = build_mesh(config.parallel, jax.devices()[:num_devices])
    program = build_program(config, mesh)
    _, metrics = program.step(program.init(), make_global_batch(fake_batch(config, 8), mesh))
    return [float(metrics[name]) for name in ("loss/total", "optimizer/grad_norm")]


def test_blocks_on_a_ring_with_balanced_tokens_equal_one_device():
    sizes = {"num_blocks": 2, "frames_per_block": 1, "grid": (1, 2), "actions_per_block": 2, "states_per_block": 1}
    layout_pass = joint_layout(**sizes, pad_multiple=8).full_pass()
    config = BlockConfig(width=8, num_heads=1, ffn_width=8)
    blocks = stack_blocks(jax.random.key(0), config, 1)
    keys = jax.random.split(jax.random.key(1), 4)
    slots = 1 + max(slot for slot, _ in layout_pass.slot_runs())
    conditioning = Conditioning(
        embedding=jax.random.normal(keys[0], (2, slots, 8)),
        modulation=jax.random.normal(keys[1], (2, slots, 6, 8)),
        runs=layout_pass.slot_runs(),
        rotation=rotary_table(layout_pass, 8, 100.0),
        text=jax.random.normal(keys[2], (2, 3, 8)),
    )
    x = jax.random.normal(keys[3], (2, layout_pass.num_tokens, 8))
    live = np.any(layout_pass.schedule.dense_mask(), axis=1)[:, None]

    def run(placement):
        def output(x):
            with placing(placement) if placement else contextlib.nullcontext():
                return run_blocks(blocks, x, layout_pass, conditioning, None, remat="none", return_cache=False)[0]

        return jax.jit(output)(x) * live

    parallel = ParallelConfig(fsdp=1, context=2, context_method="ring")
    placement = make_placement(parallel, build_mesh(parallel, jax.devices()[:2]))
    assert token_order(placement, layout_pass.schedule, 1) is not None
    np.testing.assert_allclose(run(placement), run(None), rtol=2e-5, atol=1e-5)
    description = describe_attention(placement, layout_pass.schedule, config)
    assert "context ring: 1 parts of the heads x 2 parts of the sequence; tokens in" in description


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize(
    ("method", "kernel", "blocks"),
    [
        *itertools.product(
            ("ring", "all_gather", "ulysses_ring"), ("rectangles", "blockwise"), ("sharded", "explicit")
        ),
        ("ulysses", "blockwise", "sharded"),
        ("ulysses", "blockwise", "explicit"),
    ],
)
def test_every_method_trains_as_one_device_does(method, kernel, blocks, mesh):
    if blocks == "explicit" and "tensor" in mesh:
        pytest.skip("explicit blocks are for tensor=1")
    expected = _step()
    measured = _step(**mesh, context_method=method, attention_kernel=kernel, blocks=blocks)
    np.testing.assert_allclose(measured, expected, rtol=1e-5)
