"""Closed forms of every way in which actions enter a backbone against the jaxpr of its real training step."""

import dataclasses
import itertools
import math
import random

import pytest
from flax import nnx

from tests.flops.steps import build, closed_form, vary, walk_evaluation, walk_step
from tests.flops.test_steps import CLIP, COSMOS
from wamjax.config.backbone import ActionsConfig, LayerAttention, PrefixConfig
from wamjax.config.schema import DataConfig, FinetuneConfig, LayoutConfig, ParallelConfig, RunConfig
from wamjax.flops.model import count_flops
from wamjax.flops.parameters import list_parameters
from wamjax.layout import build_layout
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.parallel.parameters import flatten_params
from wamjax.parallel.rule_tables import build_rules
from wamjax.planning.placement import place_parameters

# Every size differs from every other, so that no two products can be taken for one another.
ALTERNATING = vary(
    CLIP,
    backbone={"remat": "attention"},
    clip={"num_frames": 13, "height": 32, "width": 48},
    actions=ActionsConfig(modules="linear", expert_width=8, expert_ffn_width=34),
    layout=LayoutConfig(
        formulation="alternating", num_blocks=2, frames_per_block=2, actions_per_block=6, states_per_block=0
    ),
    objective={"action_shift": 1.0, "history_noise": 0.5},
    data=DataConfig(action_dim=7, state_dim=17),
)
FIRST_FRAME = vary(
    ALTERNATING,
    clip={"masks_text": True},
    actions={"modules": "expert"},
    layout=LayoutConfig(
        formulation="first_frame", family="representation", num_blocks=1, frames_per_block=3, actions_per_block=5
    ),
    objective={"history_noise": 0.0},
)
COSMOS_POLICY = vary(
    CLIP,
    backbone=dataclasses.replace(COSMOS, in_channels=6, padding_mask=True),
    clip={"num_frames": 4, "height": 32, "width": 48, "stride": (1, 8, 8)},
    layout=LayoutConfig(
        formulation="latent_frames", num_blocks=1, frames_per_block=2, actions_per_block=3, states_per_block=2
    ),
    data=DataConfig(action_dim=7, state_dim=17),
)
# A language tower beside a video tower without cross-attention, both with fewer heads of keys.
TOWER = vary(
    FIRST_FRAME,
    backbone={
        "block": {
            "cross_attention": False, "num_key_heads": 2, "gated_mlp": True, "qk_norm": "head", "context_width": 16
        },
        "text_embedding": "none",
    },
    actions={"modules": "linear"},
    prefix=PrefixConfig(width=16, ffn_width=26, num_key_heads=2),
)  # fmt: skip
# Windows, and a recurrence over the video beside actions that attend; four frames, so that a step of two reaches two.
PATTERN = {
    "num_layers": 4,
    "block": {
        "attention": (
            LayerAttention(kind="window", reach=1, dilation=2),
            LayerAttention(kind="gated_delta", key_dim=6, value_dim=10),
        )
    },
}
KINDS = {
    "linear, alternating": ALTERNATING,
    "expert, alternating": vary(ALTERNATING, actions={"modules": "expert"}),
    "category, alternating": vary(ALTERNATING, actions={"modules": "category"}),
    "expert, first frame": FIRST_FRAME,
    "expert, joint": vary(FIRST_FRAME, layout={"family": "joint"}, parallel=ParallelConfig(blocks="explicit")),
    "expert, padded": vary(FIRST_FRAME, layout={"pad_multiple": 16}),
    "expert, inverse dynamics": vary(
        FIRST_FRAME, layout={"family": "inverse_dynamics"}, objective={"history_noise": 0.5}
    ),
    "linear, first frame": vary(FIRST_FRAME, actions={"modules": "linear"}, layout={"states_per_block": 0}),
    "latent frames": COSMOS_POLICY,
    "expert, pattern": vary(FIRST_FRAME, backbone=PATTERN, layout={"pad_multiple": 16}),
    "expert, pattern, explicit": vary(FIRST_FRAME, backbone=PATTERN, parallel=ParallelConfig(blocks="explicit")),
    "linear, pattern": vary(
        FIRST_FRAME, backbone=PATTERN, actions={"modules": "linear"}, layout={"family": "joint", "states_per_block": 0}
    ),
    "linear, tower": vary(
        TOWER,
        layout={"formulation": "joint", "family": "joint", "states_per_block": 0},
        objective={"action_shift": 0.0},
    ),
    "expert, tower alone": vary(TOWER, actions={"modules": "expert"}, layout={"states_per_block": 0}),
    "expert, tower": vary(
        TOWER, actions={"modules": "expert"}, backbone=FIRST_FRAME.backbone, prefix={"is_causal": False}
    ),
}
FINETUNED = {
    "whole": {},
    "expert alone": {"frozen": ("video",)},
    "video alone": {"frozen": ("*",), "trained": ("video",)},
    "state alone": {"frozen": ("*",), "trained": ("state_embed", "video.head_out")},
    "updates of attention": {"frozen": ("*",), "lora_targets": ("*blocks.*attention",), "lora_rank": 3},
    "times": {"frozen": ("*",), "trained": ("*time*",)},
}
REMATS = ("none", "products", "exchanged", "attention", "full")


def check(config: RunConfig) -> None:
    program = build(config)
    assert walk_step(program) == config.train.global_batch_size * closed_form(program).hardware_total


@pytest.mark.parametrize(
    "kind",
    [
        "expert, first frame", "latent frames", "expert, tower alone",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("linear, alternating", "linear, tower", "expert, pattern")
        ),
    ],
)  # fmt: skip
def test_hardware_flops_equal_the_jaxpr(kind: str) -> None:
    check(KINDS[kind])


CASES = [
    case
    for case in itertools.product(KINDS, FINETUNED, REMATS)
    if (case[1] not in ("expert alone", "state alone") or ("expert" in case[0] and "alternating" not in case[0]))
    and ("latent" not in case[0] or case[1] in ("whole", "updates of attention"))
    and (case[1] != "state alone" or KINDS[case[0]].layout.states_per_block)
]


# The state reaches the tower through nothing but attention that the layout hides from it. JAX runs four products of the
# tower's own pairs in a layer's backward pass that the closed form does not have (2 % of the step).
MISCOUNTED = ("expert, tower", "state alone")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "finetuned", "remat"),
    [
        pytest.param(
            *case, marks=pytest.mark.xfail(strict=True, reason="see MISCOUNTED") if case[:2] == MISCOUNTED else ()
        )
        for case in random.Random(0).sample(CASES, 40)
    ],
)
def test_hardware_flops_of_variants_equal_the_jaxpr(kind: str, finetuned: str, remat: str) -> None:
    check(vary(KINDS[kind], finetune=FinetuneConfig(**FINETUNED[finetuned]), backbone={"remat": remat}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_validation_executes_the_forward_closed_form(kind: str) -> None:
    program = build(KINDS[kind])
    assert walk_evaluation(program) == 8 * sum(closed_form(program).hardware_forward.values())


@pytest.mark.parametrize(
    "kind", ["linear, alternating", "expert, first frame", "linear, tower", "expert, tower alone", "expert, pattern"]
)
def test_parameters_and_their_places_are_those_of_the_real_model(kind: str) -> None:
    program = build(KINDS[kind])
    variables = abstract_model(build_objective(KINDS[kind]))[1]
    real = flatten_params(nnx.to_pure_dict(nnx.filter_state(variables, nnx.Param)))
    listed = list_parameters(KINDS[kind])
    assert {path: parameter.size for path, parameter in listed.items()} == {p: x.size for p, x in real.items()}
    held = {p: x.sharding.shard_shape(x.shape) for p, x in flatten_params(program.abstract_params).items()}
    rules = build_rules(program.config.parallel).parameters
    placed = place_parameters(KINDS[kind], dict(program.mesh.shape), rules)
    assert {place.path: place.local for place in placed} == {path: math.prod(shape) for path, shape in held.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_model_flops_trained_whole_are_three_forwards(kind: str) -> None:
    count = count_flops(KINDS[kind], build_layout(KINDS[kind]))
    assert count.model == {name: 3 * flops for name, flops in count.forward.items()}
