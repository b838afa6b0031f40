"""Closed forms of backbones against the jaxpr of their real training step: what is kept, repeated, split and fused."""

import dataclasses
import itertools
import random
from typing import Any, get_args

import pytest
from flax import nnx

from tests.flops.steps import build, closed_form, vary, walk_evaluation, walk_step
from wamjax.config.backbone import ActionsConfig, BlockConfig, ClipConfig, VideoTransformerConfig
from wamjax.config.choices import Remat
from wamjax.config.schema import (
    DataConfig,
    FinetuneConfig,
    LayoutConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from wamjax.flops.model import count_flops
from wamjax.flops.optimizer import optimizer_flops
from wamjax.flops.parameters import count_trained_parameters, list_parameters
from wamjax.layout import build_layout
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.parallel.parameters import flatten_params
from wamjax.training.trainable import trained_paths

# Every size differs from every other, so that no two products can be taken for one another.
WAN = VideoTransformerConfig(
    block=BlockConfig(width=24, num_heads=4, ffn_width=40, compute_dtype="bfloat16"),
    num_layers=3, in_channels=5, out_channels=5, time_width=10, text_width=16,
)  # fmt: skip
COSMOS = dataclasses.replace(
    WAN,
    block=BlockConfig(
        width=24, num_heads=4, ffn_width=40, context_width=16, qk_norm="head", use_bias=False,
        modulation="low_rank", modulation_rank=7, gelu="exact",
    ),
    use_patch_bias=False, time_width=24, text_embedding="none",
)  # fmt: skip
I2V = dataclasses.replace(
    WAN, block=dataclasses.replace(WAN.block, image_branch=True), in_channels=9, image_width=56, image_positions=6
)
CLIP = RunConfig(
    backbone=WAN,
    clip=ClipConfig(num_frames=9, height=32, width=64, text_tokens=11),
    layout=LayoutConfig(formulation="video", pad_multiple=32),
    optimizer=OptimizerConfig(ema_decay=0.0),
    train=TrainConfig(global_batch_size=8),
)
JOINT = dataclasses.replace(
    CLIP,
    backbone=I2V,
    clip=dataclasses.replace(CLIP.clip, image_tokens=6),
    actions=ActionsConfig(modules="category", hidden_width=13),
    layout=LayoutConfig(num_blocks=2, frames_per_block=1, actions_per_block=3, pad_unit=8, pad_multiple=32),
    data=DataConfig(action_dim=7, state_dim=17),
)
KINDS = {
    "table": CLIP,
    "low rank": vary(CLIP, backbone=COSMOS),
    "low rank, projected text": vary(
        CLIP, backbone=dataclasses.replace(COSMOS, text_embedding="projection", text_width=19)
    ),
    "learned positions": vary(CLIP, backbone=dataclasses.replace(COSMOS, learned_positions=(3, 4, 5))),
    "wide attention": vary(CLIP, backbone={"block": {"attention_width": 32}}),
    "joint": JOINT,
    "joint, two embodiments": vary(JOINT, actions={"num_categories": 2}),
}  # fmt: skip
FINETUNED = {
    "whole": {},
    "updates of attention": {"frozen": ("*",), "lora_targets": ("*blocks.*attention",), "lora_rank": 3},
    # All but the networks of actions and states, which can take none.
    "updates everywhere": {"frozen": ("*",), "lora_targets": ("[!as]*",), "lora_rank": 5},
    "updates beside what is trained": {"lora_targets": ("*blocks.mlp",), "lora_rank": 2},
    "blocks kept": {"frozen": ("*blocks",)},
    "blocks alone": {"frozen": ("*",), "trained": ("*blocks",)},
    "head": {"frozen": ("*",), "trained": ("*head_out",)},
    "head's modulation": {"frozen": ("*",), "trained": ("*head_modulation",)},
    "text": {"frozen": ("*",), "trained": ("*cross_attention.value",)},
    "last layers of blocks": {"frozen": ("*",), "trained": ("*blocks.mlp.down",)},
    "time": {"frozen": ("*",), "trained": ("*time_embedding",)},
}
REMATS = get_args(Remat)


def check(config: RunConfig, num_devices: int = 8) -> None:
    program = build(config, num_devices)
    count, samples = closed_form(program), config.train.global_batch_size
    assert walk_step(program) == samples * count.hardware_total


def cases(number: int, seed: int) -> list[tuple[str, str, str]]:
    every = list(itertools.product(KINDS, FINETUNED, REMATS))
    return random.Random(seed).sample(every, number)


@pytest.mark.parametrize(
    "remat",
    [pytest.param(r, marks=() if r in ("none", "exchanged", "self_attention") else pytest.mark.slow) for r in REMATS],
)
def test_hardware_flops_equal_the_jaxpr_under_every_policy(remat: Remat) -> None:
    check(vary(JOINT, backbone={"remat": remat}))


@pytest.mark.parametrize(("kind", "finetuned", "remat"), cases(2, seed=0))
def test_hardware_flops_of_random_variants_equal_the_jaxpr(kind: str, finetuned: str, remat: Remat) -> None:
    check(vary(KINDS[kind], finetune=FinetuneConfig(**FINETUNED[finetuned]), backbone={"remat": remat}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "finetuned", "remat"),
    list(itertools.product(KINDS, FINETUNED, ("none", "exchanged", "attention", "full"))),
)
def test_hardware_flops_of_all_variants_equal_the_jaxpr(kind: str, finetuned: str, remat: Remat) -> None:
    check(vary(KINDS[kind], finetune=FinetuneConfig(**FINETUNED[finetuned]), backbone={"remat": remat}))


CONTEXTS = [
    (method, blocks, kernel)
    for method in ("ulysses", "all_gather", "ring", "ulysses_ring")
    for blocks in ("sharded", "explicit")
    for kernel in ("rectangles", "blockwise")
]


def over_context(method: Any, blocks: Any, kernel: Any, **layout: Any) -> RunConfig:
    size = 8 if method == "ulysses_ring" else 4
    parallel = ParallelConfig(
        fsdp=8 // size, context=size, context_method=method, blocks=blocks, attention_kernel=kernel,
        rules="fsdp_context",
    )  # fmt: skip
    return vary(JOINT, parallel=parallel, backbone={"remat": "full"}, layout=layout)


@pytest.mark.parametrize(
    ("method", "blocks", "kernel"),
    CONTEXTS,
)
@pytest.mark.slow
def test_every_context_method_counts(method: str, blocks: str, kernel: str) -> None:
    check(over_context(method, blocks, kernel))


def test_vectors_of_low_rank_modulation_carry_gradients_of_their_own() -> None:
    # The embedding itself is kept: only what all blocks share needs a gradient.
    finetune = FinetuneConfig(frozen=("*",), trained=("time_embedding.project",))
    check(vary(KINDS["low rank"], finetune=finetune, backbone={"remat": "none"}), num_devices=1)


def test_step_of_muon_is_samples_and_the_products_of_its_orthogonalisation() -> None:
    finetune = FinetuneConfig(frozen=("blocks.cross_attention",), lora_targets=("blocks.mlp.up",), lora_rank=3)
    config = vary(CLIP, optimizer=OptimizerConfig(kind="muon", ema_decay=0.0), finetune=finetune)
    program, matrices = build(config, 1), {(24, 24): 4, (24, 40): 1}  # of self-attention, and down
    expected = sum(3 * 5 * number * (4 * m * m * n + 2 * m**3) for (m, n), number in matrices.items())
    assert optimizer_flops(config) == expected
    assert walk_step(program) == 8 * closed_form(program).hardware_total + expected
    assert optimizer_flops(CLIP) == 0


def test_ring_of_two_counts() -> None:
    parallel = ParallelConfig(fsdp=4, context=2, context_method="ring")
    check(vary(JOINT, parallel=parallel))


@pytest.mark.parametrize("kernel", [pytest.param("rectangles", marks=pytest.mark.slow), "blockwise"])
def test_every_kernel_counts_where_text_is_on_every_device(kernel: str) -> None:
    check(vary(over_context("ulysses", "explicit", kernel), backbone={"remat": "products"}))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_the_real_model_path_by_path(kind: str) -> None:
    finetune = FinetuneConfig(frozen=("*blocks",), lora_targets=("*attention", "*time_embedding"), lora_rank=3)
    for config in (KINDS[kind], vary(KINDS[kind], finetune=finetune)):
        variables = abstract_model(build_objective(config))[1]
        real = flatten_params(nnx.to_pure_dict(nnx.filter_state(variables, nnx.Param)))
        listed = list_parameters(config)
        assert {path: parameter.size for path, parameter in listed.items()} == {p: x.size for p, x in real.items()}
        trained = trained_paths(variables, config.finetune)
        assert count_trained_parameters(config) == sum(real[path].size for path in trained)


def test_validation_executes_the_forward_closed_form() -> None:
    program = build(over_context("ulysses", "explicit", "rectangles"))
    assert walk_evaluation(program) == 8 * sum(closed_form(program).hardware_forward.values())


@pytest.mark.parametrize("kind", KINDS)
def test_model_flops_of_a_backbone_trained_whole_are_three_forwards(kind: str) -> None:
    count = count_flops(KINDS[kind], build_layout(KINDS[kind]))
    assert count.model == {name: 3 * flops for name, flops in count.forward.items()}


def test_model_flops_of_a_kept_backbone_have_no_gradients_of_its_kernels() -> None:
    whole = count_flops(JOINT, build_layout(JOINT))
    config = vary(JOINT, finetune=FinetuneConfig(frozen=("video",)))
    count = count_flops(config, build_layout(config))
    # Actions and states go through the blocks: gradients of inputs there, back to their encoders; none of text.
    for name in ("self_projections", "cross_qo", "ffn"):
        assert count.model[name] == 2 * whole.forward[name]
    assert count.model["self_scores"] == 3 * whole.forward["self_scores"]
    assert count.model["cross_scores"] == 2 * whole.forward["cross_scores"]
    for name in ("cross_kv", "text_embed", "image_embed", "time_embed", "patch"):
        assert count.model[name] == whole.forward[name]
    assert count.model["head"] == 2 * whole.forward["head"]
    assert count.num_trained_parameters < count.num_parameters
