"""Closed forms of latent plans against the jaxpr of their real training step, and what acting by them costs."""

import itertools
import math
import random

import pytest
from flax import nnx

from tests.flops.steps import build, closed_form, vary, walk_evaluation, walk_step
from tests.flops.test_steps import COSMOS
from tests.flops.test_systems import FIRST_FRAME
from wamjax.batch import batch_spec
from wamjax.config.schema import FinetuneConfig, ParallelConfig
from wamjax.flops.chunk import count_chunk
from wamjax.flops.model import count_flops
from wamjax.flops.parameters import list_parameters
from wamjax.layout import build_layout
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.parallel.parameters import flatten_params
from wamjax.parallel.rule_tables import build_rules
from wamjax.planning.memory import batch_bytes
from wamjax.planning.placement import place_parameters

# Every size differs from every other, so that no two products can be taken for one another.
PLAN = vary(
    FIRST_FRAME,
    actions={"modules": "plan", "hidden_width": 14, "plan_dim": 6, "plan_layers": 2},
    layout={"formulation": "plan", "pad_multiple": 16},
    objective={"action_shift": 0.0},
)
KINDS = {
    "table": PLAN,
    "explicit": vary(PLAN, parallel=ParallelConfig(blocks="explicit")),
    "low rank, no state": vary(PLAN, backbone=COSMOS, layout={"states_per_block": 0}),
}
FINETUNED = {
    "whole": {},
    "decoder alone": {"frozen": ("*",), "trained": ("decoder",)},
    "prior alone": {"frozen": ("*",), "trained": ("prior_head", "prior_query")},
    "posterior's query alone": {"frozen": ("*",), "trained": ("posterior_query",)},
    "state alone": {"frozen": ("*",), "trained": ("state_encoder",)},
    "updates of attention": {"frozen": ("*",), "lora_targets": ("*blocks.*attention",), "lora_rank": 3},
}
CASES = [
    case
    for case in itertools.product(KINDS, FINETUNED, ("none", "products", "exchanged", "attention", "full"))
    if case[1] != "state alone" or KINDS[case[0]].layout.states_per_block
]


@pytest.mark.slow
def test_hardware_flops_equal_the_jaxpr() -> None:
    program = build(PLAN)
    assert walk_step(program) == 8 * closed_form(program).hardware_total


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "finetuned", "remat"), random.Random(1).sample(CASES, 16))
def test_hardware_flops_of_variants_equal_the_jaxpr(kind: str, finetuned: str, remat: str) -> None:
    program = build(vary(KINDS[kind], finetune=FinetuneConfig(**FINETUNED[finetuned]), backbone={"remat": remat}))
    assert walk_step(program) == 8 * closed_form(program).hardware_total
    assert walk_evaluation(program) == 8 * sum(closed_form(program).hardware_forward.values())


@pytest.mark.parametrize("kind", ["table", "low rank, no state"])
def test_parameters_and_their_places_are_those_of_the_real_model(kind: str) -> None:
    program = build(KINDS[kind])
    variables = abstract_model(build_objective(KINDS[kind]))[1]
    real = flatten_params(nnx.to_pure_dict(nnx.filter_state(variables, nnx.Param)))
    assert {path: p.size for path, p in list_parameters(KINDS[kind]).items()} == {p: x.size for p, x in real.items()}
    held = {p: x.sharding.shard_shape(x.shape) for p, x in flatten_params(program.abstract_params).items()}
    placed = place_parameters(KINDS[kind], dict(program.mesh.shape), build_rules(program.config.parallel).parameters)
    assert {place.path: place.local for place in placed} == {path: math.prod(shape) for path, shape in held.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_model_flops_trained_whole_are_three_forwards(kind: str) -> None:
    count = count_flops(KINDS[kind], build_layout(KINDS[kind]))
    assert count.model == {name: 3 * flops for name, flops in count.forward.items()}


def test_input_bytes_are_those_of_the_batch() -> None:
    spec = [leaf for leaf in vars(batch_spec(PLAN, 5)).values() if leaf is not None]
    assert batch_bytes(PLAN, 5) == sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in spec)


def test_acting_costs_one_pass_over_the_present_and_nothing_of_what_follows() -> None:
    # By hand, of one sample: a frame of 6 patches, a state, a query; 11 text tokens and none of the state.
    tokens, d, layers = 6 + 1 + 1, 24, 3
    pairs = 6 * 6 + 1 * 7 + 1 * 8
    video = layers * (8 * d**2 * tokens + 4 * d * pairs + 4 * d**2 * (tokens + 11) + 4 * d * 11 * tokens)
    video += layers * 4 * d * 40 * tokens
    ends = 2 * 6 * 20 * d + 2 * 11 * (16 * d + d**2) + 2 * (10 * d + d**2 + 6 * d**2)
    ends += 2 * (17 * 14 + 14 * d) + 2 * d * 12
    count = count_chunk(PLAN)
    assert count.stages["plan"] == video + ends
    # The decoder: 6 + 1 tokens of the present, a plan, 5 actions, all seeing all, of width 8 with the video's heads.
    read = 2 * 7 * d * 8 + 2 * 6 * 8 + 2 * 5 * 8 * 7
    assert count.stages["actions"] == read + 2 * (8 * 8 * d * 13 + 4 * d * 13**2 + 6 * 8 * 34 * 13)
    longer = vary(PLAN, clip={"num_frames": 29}, layout={"frames_per_block": 7})
    assert count_chunk(longer) == count
    assert count_flops(longer, build_layout(longer)).forward_total > count_flops(PLAN, build_layout(PLAN)).forward_total
