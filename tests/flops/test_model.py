"""Closed forms of the world-action model against the jaxpr of its real training step."""

import dataclasses

import jax
import pytest
from flax import nnx

from wamjax.batch import batch_spec
from wamjax.config.schema import (
    DataConfig,
    FinetuneConfig,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from wamjax.flops.jaxpr import count_jaxpr
from wamjax.flops.model import COMPONENTS, count_flops
from wamjax.flops.parameters import count_parameters
from wamjax.flops.summary import describe
from wamjax.layout import build_layout, joint_layout
from wamjax.models.world_action import WorldActionModel
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.parallel.mesh import build_mesh
from wamjax.training.program import build_program

BATCH = 8
# Every size differs from every other, so that no two products can be taken for one another.
SMALL = RunConfig(
    model=ModelConfig(
        width=48, num_layers=3, num_heads=4, ffn_width=80, patch=(1, 8, 8), text_tokens=5, text_width=22, time_width=34,
        action_hidden=26,
    ),
    layout=LayoutConfig(num_blocks=2, frames_per_block=2, actions_per_block=4),
    data=DataConfig(canvas=(16, 24), action_dim=7, state_dim=9),
    optimizer=OptimizerConfig(),
    train=TrainConfig(global_batch_size=BATCH),
)  # fmt: skip
VARIANTS = {
    "joint": {},
    "natural order, two states": {"layout": {"order": "natural", "states_per_block": 2}},
    "padded": {"layout": {"pad_multiple": 64}},
    "no state, clean first frame": {"layout": {"states_per_block": 0, "noisy_first_frame": False}},
    "one block": {"layout": {"num_blocks": 1}},
    "tall rectangles": {"layout": {"num_blocks": 1, "frames_per_block": 2}, "data": {"canvas": (256, 176)}},
    "bfloat16": {"model": {"compute_dtype": "bfloat16"}},
}
UPDATES = ("blocks.*attention", "blocks.mlp")
FINETUNED = {
    "updates only": {"frozen": ("*",), "lora_targets": UPDATES, "lora_rank": 3},
    "updates of queries, and the action decoder": {
        "frozen": ("*",), "trained": ("action_decoder",), "lora_targets": ("blocks.self_attention.query",),
    },
    "updates everywhere": {"lora_targets": ("*",), "lora_rank": 5},
    "heads": {"frozen": ("*",), "trained": ("video_head", "action_decoder.out")},
    "head's offsets": {"frozen": ("*",), "trained": ("head_modulation",)},
    "values of text": {"frozen": ("*",), "trained": ("blocks.cross_attention.value",)},
    "norms of keys": {"frozen": ("*",), "trained": ("blocks.*.key_scale",)},
    "last layers of blocks": {"frozen": ("*",), "trained": ("blocks.mlp.down",)},
    "prompts": {"frozen": ("*",), "trained": ("prompts.table",)},
    "blocks kept": {"frozen": ("blocks",)},
    "timesteps kept": {"frozen": ("time_embedding", "blocks.modulation", "prompts")},
    "action encoder": {"frozen": ("*",), "trained": ("action_encoder.mix.bias",)},
}  # fmt: skip
# Tracing a step takes most of a second: rematerialisation is tried where it interacts with something.
REMATERIALISED = ("joint", "padded", "tall rectangles", "bfloat16")
STEPS = [
    *((variant, "none") for variant in VARIANTS),
    *((variant, "attention") for variant in REMATERIALISED),
    *(pytest.param(variant, "full", marks=pytest.mark.slow) for variant in REMATERIALISED),
]


def vary(config, **parts):
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **fields) for name, fields in parts.items()}
    )


@pytest.mark.parametrize(("variant", "remat"), STEPS)
def test_hardware_flops_equal_the_jaxpr_of_the_training_step(variant, remat):
    config = vary(vary(SMALL, **VARIANTS[variant]), model={**VARIANTS[variant].get("model", {}), "remat": remat})
    program = build_program(config, build_mesh(config.parallel))
    traced = program.step.trace(program.abstract_state, batch_spec(config, BATCH))  # pyright: ignore[reportFunctionMemberAccess]
    assert count_jaxpr(traced.jaxpr).total == BATCH * count_flops(config, program.layout).hardware_total


@pytest.mark.parametrize(
    ("variant", "remat"),
    [
        *((variant, "attention") for variant in FINETUNED),
        ("updates only", "full"),
        pytest.param("updates only", "none", marks=pytest.mark.slow),
        ("heads", "none"),
    ],
)
def test_hardware_flops_equal_the_jaxpr_of_a_finetuning_step(variant, remat):
    config = dataclasses.replace(vary(SMALL, model={"remat": remat}), finetune=FinetuneConfig(**FINETUNED[variant]))
    program = build_program(config, build_mesh(config.parallel))
    traced = program.step.trace(program.abstract_state, batch_spec(config, BATCH))  # pyright: ignore[reportFunctionMemberAccess]
    assert count_jaxpr(traced.jaxpr).total == BATCH * count_flops(config, program.layout).hardware_total


@pytest.mark.parametrize("variant", FINETUNED)
def test_parameter_count_includes_low_rank_updates(variant):
    config = dataclasses.replace(SMALL, finetune=FinetuneConfig(**FINETUNED[variant]))
    real = nnx.to_pure_dict(nnx.filter_state(abstract_model(build_objective(config))[1], nnx.Param))
    assert sum(count_parameters(config).values()) == sum(leaf.size for leaf in jax.tree.leaves(real))


def test_model_flops_of_updates_are_forward_and_input_gradients_and_their_own_products():
    config = dataclasses.replace(SMALL, finetune=FinetuneConfig(**FINETUNED["last layers of blocks"]))
    count, whole = (count_flops(c, build_layout(c)) for c in (config, SMALL))
    d, f, n, depth = 48, 80, count.num_tokens, 3
    # The first layer has a gradient of its last kernel alone; the others have all input gradients as well.
    own, layer = 2 * n * d * f, {name: whole.forward[name] // depth for name in whole.forward}
    assert count.model["ffn"] - count.forward["ffn"] == own * (1 + 3 + 3)
    assert count.model["self_projections"] - count.forward["self_projections"] == 2 * layer["self_projections"]
    assert count.model["cross_kv"] == count.forward["cross_kv"]
    assert count.model["cross_scores"] - count.forward["cross_scores"] == 2 * layer["cross_scores"]
    assert count.model["patch"] == count.forward["patch"]
    assert count.model["head"] - count.forward["head"] == whole.forward["head"]


@pytest.mark.parametrize("variant", REMATERIALISED)
def test_hardware_forward_flops_equal_the_jaxpr_of_the_validation_loss(variant):
    config = vary(SMALL, **VARIANTS[variant])
    program = build_program(config, build_mesh(config.parallel))
    traced = program.evaluate.trace(program.abstract_params, batch_spec(config, BATCH), 0)  # pyright: ignore[reportFunctionMemberAccess]
    count = count_flops(config, program.layout)
    assert count_jaxpr(traced.jaxpr).total == BATCH * sum(count.hardware_forward.values())


def test_model_flops_are_the_hardware_flops_of_an_unpadded_step_without_recomputation():
    padded = vary(SMALL, layout={"pad_multiple": 64}, model={"remat": "full"})
    count, plain = count_flops(padded, build_layout(padded)), count_flops(SMALL, build_layout(SMALL))
    assert count.tokens["padding"] > 0
    assert count.model == plain.model == plain.hardware
    assert count.forward == plain.forward == plain.hardware_forward
    assert count.hardware_total > count.model_total


def test_model_flops_fall_short_of_three_forwards_by_the_gradients_of_raw_data():
    count = count_flops(SMALL, build_layout(SMALL))
    d, video = SMALL.model.width, count.tokens["clean_video"] + count.tokens["noisy_video"]
    pixels = 2 * video * (3 * 8 * 8) * d
    sinusoids = 2 * (1 + 1 + 2) * 34 * d  # the clean slot, the first frame's and two blocks'
    actions, states = 2 * (2 * 4) * 7 * d, 2 * 2 * 9 * 26
    assert count.three_forwards - count.model_total == pixels + sinusoids + actions + states


def test_forward_components_equal_hand_counts():
    count = count_flops(SMALL, build_layout(SMALL))
    tokens, d, depth = 2 * 5 * 6 + 2 * (4 + 1), 48, 3
    assert count.num_tokens == tokens
    assert count.forward == {
        "self_projections": 8 * d * d * tokens * depth,
        "self_scores": 4 * d * count.num_pairs * depth,
        "cross_qo": 4 * d * d * tokens * depth,
        "cross_kv": 4 * d * d * 5 * depth,
        "cross_scores": 4 * d * tokens * 5 * depth,
        "ffn": 4 * d * 80 * tokens * depth,
        "patch": 2 * (2 * 5 * 6) * 192 * d,
        "head": 2 * (5 * 6) * d * 192,
        "text_embed": 2 * 5 * (22 * d + d * d),
        "image_embed": 0,
        "time_embed": 2 * 4 * (34 * d + d * d + 6 * d * d),
        "action_state": 2 * 8 * (7 * d + 2 * d * d + d * d) + 2 * 2 * (9 * 26 + 26 * d) + 2 * 8 * (d * 26 + 26 * 7),
    }
    assert tuple(count.forward) == COMPONENTS


def test_dreamzero_layout_in_this_model_attends_the_published_pairs():
    layout = joint_layout(
        num_blocks=4, frames_per_block=2, grid=(22, 40), actions_per_block=24, states_per_block=1
    )  # fmt: skip
    config = vary(SMALL, layout={"num_blocks": 4, "actions_per_block": 24}, data={"frame_stride": 12})
    count = count_flops(config, layout)
    assert (count.num_tokens, count.num_pairs, count.num_dense_pairs) == (15_940, 76_576_484, 15_940**2)
    assert count.forward["self_scores"] == 4 * 48 * 76_576_484 * 3


def test_parameter_count_equals_the_real_model():
    config = SMALL
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: WorldActionModel(jax.random.key(0), config)), nnx.Param))
    real = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(count_parameters(config).values()) == real
    assert count_flops(config, build_layout(config)).num_parameters == real


def test_six_n_t_is_six_times_parameters_times_tokens_without_padding():
    padded = vary(SMALL, layout={"pad_multiple": 64})
    count = count_flops(padded, build_layout(padded))
    assert count.six_n_t == 6 * count.num_parameters * 70


def test_describe_prints_every_total_and_leaves_absent_components_out():
    count = count_flops(SMALL, build_layout(SMALL))
    table = describe(count)
    for number in (count.forward_total, count.model_total, count.hardware_total, count.six_n_t, count.num_pairs):
        assert f"{number:,}" in table
    assert "image embedding" not in table
    assert max(map(len, table.splitlines())) <= 120
