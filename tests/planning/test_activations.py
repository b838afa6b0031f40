"""Kept activations against what JAX's own derivative of the loss keeps, to the byte."""

import dataclasses
from typing import Any

import jax
import pytest
from flax import nnx

from tests.tiny import TINY
from wamjax.batch import batch_spec
from wamjax.config.backbone import BlockConfig, ClipConfig, VideoTransformerConfig
from wamjax.config.choices import Remat
from wamjax.config.schema import LayoutConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainConfig
from wamjax.layout import build_layout
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.planning.activations import Activations, attention_workspace, plan_activations
from wamjax.planning.machine import machine_of_chips, machine_of_topology
from wamjax.planning.shards import make_shard

LAYERS = 3  # a size that nothing else here has first
POLICIES: tuple[Remat, ...] = ("none", "products", "exchanged", "attention", "self_attention", "full")
SHORT, LONG = (
    ClipConfig(num_frames=9, height=32, width=48, text_tokens=7),
    ClipConfig(num_frames=17, height=96, width=160, text_tokens=7),
)  # 18 tokens, and 300: a chunk of queries and a rest


def video(clip: ClipConfig, remat: Remat) -> RunConfig:
    block = BlockConfig(width=24, num_heads=2, ffn_width=40, compute_dtype="bfloat16")
    backbone = VideoTransformerConfig(
        block=block, num_layers=LAYERS, in_channels=4, out_channels=4, time_width=10, text_width=6, remat=remat
    )
    return RunConfig(
        backbone=backbone,
        clip=clip,
        layout=LayoutConfig(formulation="video", pad_multiple=8),
        parallel=ParallelConfig(attention_kernel="rectangles"),
        train=TrainConfig(global_batch_size=2),
        optimizer=OptimizerConfig(ema_decay=0.0),
    )


def small(remat: Remat) -> RunConfig:
    return dataclasses.replace(
        TINY,
        model=dataclasses.replace(TINY.model, num_layers=LAYERS, remat=remat, compute_dtype="bfloat16"),
        parallel=ParallelConfig(attention_kernel="rectangles"),
        train=dataclasses.replace(TINY.train, global_batch_size=2),
    )


def residual_bytes(config: RunConfig) -> int:
    """Returns the bytes of what the derivative of the loss keeps of every layer, parameters apart."""
    objective, samples = build_objective(config), config.train.global_batch_size
    graphdef, variables = abstract_model(objective)
    params = nnx.to_pure_dict(variables)

    def residuals(params: Any, batch: Any) -> Any:
        noise = objective.draw_noise(jax.random.key(0), samples)

        def loss(params: Any) -> jax.Array:
            return objective.total(objective.losses(nnx.merge(graphdef, params), batch, noise))

        return jax.vjp(loss, params)[1]

    kept = jax.tree.leaves(jax.eval_shape(residuals, params, batch_spec(config, samples)))
    own = {leaf.shape for leaf in jax.tree.leaves(params)}
    stacked = [leaf for leaf in kept if leaf.shape[:1] == (LAYERS,) and leaf.shape not in own]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in stacked)


def planned(config: RunConfig) -> Activations:
    layout = build_layout(config)
    return plan_activations(make_shard(config, layout, machine_of_chips("h100:1")), layout.full_pass().schedule)


@pytest.mark.parametrize(
    ("clip", "remat"),
    [
        (LONG, "self_attention"),
        *(pytest.param(clip, remat, marks=pytest.mark.slow) for clip in (SHORT, LONG) for remat in POLICIES),
    ],
)
def test_kept_activations_are_those_of_the_derivative(clip: ClipConfig, remat: Remat) -> None:
    config = video(clip, remat)
    assert planned(config).kept == residual_bytes(config)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["products", "attention"])
def test_kept_activations_of_the_small_model_are_those_of_its_derivative(remat: Remat) -> None:
    config = small(remat)
    assert planned(config).kept == residual_bytes(config)


def test_offload_moves_block_inputs_to_the_host_and_nothing_else() -> None:
    device, host = planned(video(LONG, "attention")), planned(video(LONG, "offload"))
    assert device.kept - host.kept == host.offloaded > 0
    assert host.by_array.keys() == device.by_array.keys() - {"block input"}


def test_partial_gradients_of_queries_are_one_for_each_block_of_keys() -> None:
    # 76,800 keys in blocks of 7,680, the largest multiple of 128 up to 8,192 that divides them: ten partial gradients.
    clip = ClipConfig(num_frames=81, height=720, width=1280)
    config = dataclasses.replace(
        video(clip, "attention"),
        layout=LayoutConfig(formulation="video", pad_multiple=2560),
        parallel=ParallelConfig(),
        train=TrainConfig(global_batch_size=4),
    )
    layout, machine = build_layout(config), machine_of_topology("v5p:2x2x1")
    schedule = layout.full_pass().schedule
    splash = make_shard(config, layout, machine)
    assert splash.laid_out_inner == 2 * 128  # two heads of 12, each in a row of 128 lanes
    wide = dataclasses.replace(splash.block, width=2 * 128)
    splash = dataclasses.replace(splash, block=wide)
    assert splash.laid_out_inner == splash.inner
    plain = dataclasses.replace(splash, kernel="cudnn")
    heads = splash.tokens * splash.inner * splash.itemsize
    assert attention_workspace(splash, schedule) - attention_workspace(plain, schedule) == 10 * heads
