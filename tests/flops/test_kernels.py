"""What attention kernels out of the jaxpr's sight say they compute: against the kernels' own blocks, and in a step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from tests.flops.steps import build, closed_form, vary, walk_step
from tests.flops.test_steps import CLIP, JOINT
from tests.layout.random_layouts import random_layout
from wamjax.config.choices import Remat
from wamjax.config.schema import ParallelConfig, RunConfig
from wamjax.flops.jaxpr import trace_flops
from wamjax.layout import Schedule, joint_layout, video_layout
from wamjax.layout.kernels import computed_pairs, pad_to_lanes
from wamjax.nn import splash
from wamjax.training import program as program_module

SPLASH = {
    "a whole clip": lambda: video_layout((8, 8, 16)),
    "a padded clip": lambda: video_layout((9, 30, 52), pad_multiple=1024),
    "joint": lambda: joint_layout(
        num_blocks=3, frames_per_block=2, grid=(6, 8), actions_per_block=3, states_per_block=1, pad_multiple=256
    ),
    "joint, units of whole blocks": lambda: joint_layout(
        num_blocks=2, frames_per_block=2, grid=(6, 8), actions_per_block=3, states_per_block=1, pad_unit=128,
        order="grouped",
    ),
    "token by token": lambda: joint_layout(
        num_blocks=3, frames_per_block=2, grid=(6, 8), actions_per_block=3, states_per_block=1, pad_multiple=512,
        token_causal_context=True,
    ),
    "random": lambda: random_layout(3, multiple=384),
}  # fmt: skip


def blocks_of(info: Any, shape: tuple[int, int], sides: tuple[int, int]) -> int:
    """Pairs in the blocks that a kernel does not skip."""
    if info.block_mask is None:
        return shape[0] * shape[1]
    return int(np.count_nonzero(np.asarray(info.block_mask))) * sides[0] * sides[1]


@pytest.mark.parametrize("name", SPLASH)
def test_splash_pairs_are_those_of_the_blocks_the_kernel_visits(name: str) -> None:
    schedule = SPLASH[name]().full_pass().schedule
    kernel = splash._make_kernel(schedule, None, False)
    (computed,), sides = computed_pairs("splash", schedule), kernel.kwargs["block_sizes"]
    shape = (schedule.num_queries, schedule.num_keys)
    assert computed.forward == blocks_of(kernel.fwd_mask_info, shape, (sides.block_q, sides.block_kv))
    assert computed.backward == blocks_of(kernel.dkv_mask_info, shape, (sides.block_q_dkv, sides.block_kv_dkv))
    assert computed.forward >= schedule.num_pairs


def test_splash_completes_the_last_block() -> None:
    assert pad_to_lanes(Schedule(300, 77, ())) == Schedule(384, 128, ())


def test_splash_call_says_what_it_computes_forward_and_backward() -> None:
    schedule = SPLASH["joint"]().full_pass().schedule
    shape = (2, 3, schedule.num_queries, 8)
    q = jax.ShapeDtypeStruct(shape, jnp.float32)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(splash.attend_splash(q, k, v, schedule, name="attention", interpret=True))

    (computed,) = computed_pairs("splash", schedule)
    unit = 2 * 2 * 3 * 8
    assert trace_flops(attend, q, q, q).total == 2 * unit * computed.forward
    with_gradients = trace_flops(jax.value_and_grad(attend, argnums=(0, 1, 2)), q, q, q)
    # Beside the kernel's five products, output times gradient of every query.
    backward = 5 * computed.backward + schedule.num_queries
    assert with_gradients.total == unit * (2 * computed.forward + backward)


# 128 tokens and multiples of it, as the kernel takes them.
LONG_CLIP = vary(CLIP, clip={"height": 64, "width": 128}, layout={"pad_multiple": 256})
LONG_JOINT = vary(JOINT, layout={"pad_unit": 128, "pad_multiple": 512})


@pytest.mark.parametrize(
    ("config", "parallel", "remat"),
    [
        pytest.param(LONG_CLIP, ParallelConfig(fsdp=-1), "full", marks=pytest.mark.slow),
        (LONG_CLIP, ParallelConfig(fsdp=-1, context=2, rules="fsdp_context", blocks="explicit"), "products"),
        pytest.param(LONG_JOINT, ParallelConfig(fsdp=-1), "attention", marks=pytest.mark.slow),
        pytest.param(
            LONG_JOINT,
            ParallelConfig(fsdp=-1, context=4, rules="fsdp_context", context_method="ring", blocks="explicit"),
            "full",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            LONG_JOINT, ParallelConfig(fsdp=-1, context=4, context_method="all_gather"), "none", marks=pytest.mark.slow
        ),
    ],
    ids=["clip", "clip, explicit", "joint", "joint, ring", "joint, gathered"],
)
def test_step_with_splash_executes_the_closed_form(
    config: RunConfig, parallel: ParallelConfig, remat: Remat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced and never run, so that no TPU is needed.
    monkeypatch.setattr(program_module, "check_platform", lambda *_: None)
    parallel = dataclasses.replace(parallel, attention_kernel="splash")
    program = build(vary(config, parallel=parallel, backbone={"remat": remat}))
    assert walk_step(program) == 8 * closed_form(program).hardware_total


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "products"])
def test_step_with_cudnn_executes_the_closed_form(remat: Remat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced and never run: neither a GPU nor the library is needed.
    monkeypatch.setattr(program_module, "check_platform", lambda *_: None)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    heads = {"width": 32, "num_heads": 4, "attention_width": 32}
    parallel = ParallelConfig(fsdp=-1, attention_kernel="cudnn")
    # Its backward pass takes even lengths alone.
    even = vary(JOINT, clip={"text_tokens": 12}, layout={"actions_per_block": 4, "states_per_block": 2})
    program = build(vary(even, parallel=parallel, backbone={"remat": remat, "block": heads}))
    assert walk_step(program) == 8 * closed_form(program).hardware_total
