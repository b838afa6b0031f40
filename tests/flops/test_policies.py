"""Closed forms of policies without video against the jaxpr of their real training step."""

import dataclasses
import itertools
import math
import random

import pytest
from flax import nnx

from tests.flops.steps import build, closed_form, vary, walk_evaluation, walk_step
from wamjax.config.gpt import GR1, GptPolicyConfig
from wamjax.config.schema import (
    DataConfig,
    FinetuneConfig,
    LayoutConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from wamjax.config.vla import PI05, VisionConfig, VlaConfig
from wamjax.flops.model import count_flops
from wamjax.flops.parameters import count_parameters, list_parameters
from wamjax.layout import build_layout
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.parallel.parameters import flatten_params
from wamjax.parallel.rule_tables import build_rules
from wamjax.planning.placement import place_parameters

# Every size differs from every other, so that no two products can be taken for one another.
VLA = RunConfig(
    vla=VlaConfig(
        vision=VisionConfig(width=24, num_layers=2, num_heads=3, ffn_width=56, image_size=12, patch_size=4),
        width=32, ffn_width=40, expert_width=16, expert_ffn_width=72, num_layers=3, num_heads=4, num_key_heads=2,
        head_dim=20, vocab_size=17, num_images=2, text_tokens=5, compute_dtype="bfloat16", remat="attention",
    ),
    layout=LayoutConfig(formulation="policy", num_blocks=1, actions_per_block=7, states_per_block=0),
    data=DataConfig(action_dim=13),
    optimizer=OptimizerConfig(ema_decay=0.0),
    parallel=ParallelConfig(blocks="explicit", attention_kernel="rectangles"),
    train=TrainConfig(global_batch_size=8),
)  # fmt: skip
GPT = RunConfig(
    gpt=GptPolicyConfig(
        width=32, num_layers=3, num_heads=4, ffn_width=56, image_size=12, patch_size=4, image_width=24, text_width=10,
        num_latents=2, resampler_layers=2, resampler_heads=3, resampler_head_dim=12, decoder_heads=2, ahead=2,
        compute_dtype="bfloat16", remat="attention",
    ),
    layout=LayoutConfig(formulation="queries", num_blocks=5, actions_per_block=1, states_per_block=1),
    data=DataConfig(action_dim=7, state_dim=9),
    optimizer=OptimizerConfig(ema_decay=0.0),
    train=TrainConfig(global_batch_size=8),
)  # fmt: skip
OF_GPT = {
    "whole": {},
    "blocks alone": {"frozen": ("*",), "trained": ("blocks",)},
    "resampler alone": {"frozen": ("*",), "trained": ("resampler.layers",)},
    "decoder alone": {"frozen": ("*",), "trained": ("decoder",)},
}
FINETUNED = {
    "whole": {},
    "expert alone": {"frozen": ("vision", "prefix")},
    "vision alone": {"frozen": ("*",), "trained": ("vision",)},
    "last norm of vision": {"frozen": ("*",), "trained": ("vision.norm",)},
    "table alone": {"frozen": ("*",), "trained": ("prefix.table",)},
    "updates of attention": {"frozen": ("*",), "lora_targets": ("*blocks.*attention",), "lora_rank": 3},
    "times": {"frozen": ("*",), "trained": ("*time*",)},
}
REMATS = ("none", "products", "exchanged", "attention", "full")


@pytest.mark.parametrize("finetuned", ["whole"])
def test_hardware_flops_equal_the_jaxpr(finetuned: str) -> None:
    program = build(vary(VLA, finetune=FinetuneConfig(**FINETUNED[finetuned])))
    assert walk_step(program) == 8 * closed_form(program).hardware_total


def test_hardware_flops_of_a_gpt_equal_the_jaxpr() -> None:
    program = build(GPT)
    assert walk_step(program) == 8 * closed_form(program).hardware_total


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("finetuned", OF_GPT)
def test_hardware_flops_of_variants_of_a_gpt_equal_the_jaxpr(finetuned: str, remat: str) -> None:
    program = build(vary(GPT, finetune=FinetuneConfig(**OF_GPT[finetuned]), gpt={"remat": remat}))
    assert walk_step(program) == 8 * closed_form(program).hardware_total
    assert walk_evaluation(program) == 8 * sum(closed_form(program).hardware_forward.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("finetuned", "remat", "dtype", "blocks"),
    random.Random(0).sample(
        list(itertools.product(FINETUNED, REMATS, ("float32", "bfloat16"), ("sharded", "explicit"))), 20
    ),
)
def test_hardware_flops_of_variants_equal_the_jaxpr(finetuned: str, remat: str, dtype: str, blocks: str) -> None:
    program = build(
        vary(
            VLA,
            finetune=FinetuneConfig(**FINETUNED[finetuned]),
            vla={"remat": remat, "compute_dtype": dtype},
            parallel={"blocks": blocks},
        )
    )
    assert walk_step(program) == 8 * closed_form(program).hardware_total
    assert walk_evaluation(program) == 8 * sum(closed_form(program).hardware_forward.values())


@pytest.mark.parametrize("config", [VLA, GPT], ids=["vla", "gpt"])
def test_parameters_and_their_places_are_those_of_the_real_model(config: RunConfig) -> None:
    program = build(config)
    variables = abstract_model(build_objective(config))[1]
    real = flatten_params(nnx.to_pure_dict(nnx.filter_state(variables, nnx.Param)))
    assert {path: p.size for path, p in list_parameters(config).items()} == {p: x.size for p, x in real.items()}
    held = {p: x.sharding.shard_shape(x.shape) for p, x in flatten_params(program.abstract_params).items()}
    placed = place_parameters(config, dict(program.mesh.shape), build_rules(config.parallel).parameters)
    assert {place.path: place.local for place in placed} == {path: math.prod(shape) for path, shape in held.items()}


@pytest.mark.parametrize("config", [VLA, GPT], ids=["vla", "gpt"])
def test_model_flops_trained_whole_are_three_forwards(config: RunConfig) -> None:
    count = count_flops(config, build_layout(config))
    assert count.model == {name: 3 * flops for name, flops in count.forward.items()}


def pi05(num_actions: int) -> RunConfig:
    layout = dataclasses.replace(VLA.layout, actions_per_block=num_actions)
    return dataclasses.replace(VLA, vla=PI05, layout=layout, data=DataConfig(action_dim=32))


def test_pi05_of_three_images_costs_what_is_published_of_it() -> None:
    # Published as about 4.67e12, three digits: 0.11 % either way. By hand, of 27 and 18 layers:
    vision = 3 * (27 * 256 * (8 * 1152**2 + 4 * 256 * 1152 + 4 * 1152 * 4304) + 2 * 256 * 1152 * (588 + 2048))

    def tower(tokens: int, width: int, units: int) -> int:
        return 18 * tokens * (4 * width * 2048 + 4 * width * 256 + 6 * width * units)

    pairs = 968**2 + 50 * 1018
    scores = 18 * 4 * 2048 * pairs
    modulation = (2 * 18 + 1) * 2 * 1024 * 3072 + 2 * 2 * 1024**2  # a sample has one timestep
    ends = 2 * 2 * 50 * 32 * 1024
    forward = vision + tower(968, 2048, 16_384) + tower(50, 1024, 4096) + scores + modulation + ends
    found = count_flops(pi05(50), build_layout(pi05(50))).forward_total
    assert found == forward == 4_674_372_829_184
    assert found == pytest.approx(4.67e12, rel=0.0011)


def test_pi05_has_the_parameters_of_its_towers() -> None:
    # Summed by hand. SigLIP So400m/14 with patches and 256 positions, without its pooling head; Gemma 2B without its
    # last norm (2,048), whose published total is 2,506,172,416 with 256,000 rows; openpi tells 311M of its gemma_300m,
    # whose 2 x 18 + 1 norms of 1,024 are layers of 1,024 x 3,072 here, beside time and action layers.
    parts = count_parameters(pi05(16))
    block = 4 * (1152**2 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    assert parts["vision"] == 27 * block + (588 + 1 + 256 + 2) * 1152 + 1152 * 2048 + 2048
    assert parts["prefix"] == 2_506_172_416 + (257_152 - 256_000) * 2048 - 2048
    norms = 37 * (1024 * 3072 + 3072)
    layers = 18 * (1024 * (2 * 2048 + 2 * 256) + 3 * 1024 * 4096)
    ends = 2 * (1024**2 + 1024) + 32 * 1024 + 1024 + 1024 * 32 + 32
    assert parts["expert"] == norms + layers + ends
    assert layers + 37 * 1024 == pytest.approx(311e6, rel=0.002)


def test_gr1_costs_what_its_parts_do() -> None:
    config = dataclasses.replace(
        GPT, gpt=GR1, layout=dataclasses.replace(GPT.layout, num_blocks=10), data=DataConfig(action_dim=7, state_dim=7)
    )
    count, parts = count_flops(config, build_layout(config)), count_parameters(config)
    # Of one picture, the resampler: queries and outputs of 9 latents, keys and values of 205 tokens, three layers.
    assert count.forward["cross_qo"] == 20 * 3 * 2 * 2 * 9 * 768 * 512
    assert count.forward["cross_kv"] == 20 * 3 * 2 * 2 * 205 * 768 * 512
    assert count.forward["cross_scores"] == 20 * 3 * 4 * 9 * 205 * 512
    # 12 blocks over 370 tokens, 2 over 14 frames of 10 + 196; and the resampler's feed-forward layers.
    assert count.forward["self_projections"] == 8 * 384**2 * (12 * 370 + 2 * 14 * 206)
    assert count.forward["self_scores"] == 4 * 384 * (12 * 37_840 + 2 * 14 * 206**2)
    assert count.forward["ffn"] == 16 * 384**2 * (12 * 370 + 2 * 14 * 206) + 20 * 3 * 16 * 768**2 * 9
    # The paper tells of 46M trained parameters (GR-1, section 3.2: 195M, of which 46M are trainable).
    assert sum(parts.values()) == pytest.approx(46e6, rel=0.02)
