"""Closed forms of memory against the program's own arrays: exact where the plan says exact."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import pytest

from launch.experiment import load_experiment
from tests.tiny import TINY
from wamjax.config.schema import FinetuneConfig, OptimizerConfig, ParallelConfig, RunConfig
from wamjax.layout import build_layout
from wamjax.parallel.mesh import build_mesh
from wamjax.parallel.parameters import flatten_params
from wamjax.planning.machine import machine_of_chips
from wamjax.planning.memory import MemoryPlan, plan_memory
from wamjax.planning.placement import Placed, place_parameters
from wamjax.planning.shards import make_shard
from wamjax.training.program import TrainProgram, build_program

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "experiments").rglob("[!_]*.py"))
EIGHT = machine_of_chips("h100:8")

LORA = FinetuneConfig(lora_targets=("blocks.*",), lora_rank=4, frozen=("*",), trained=("action_decoder",))
SMALL = dataclasses.replace(TINY, parallel=ParallelConfig())


def change(**sections: Any) -> RunConfig:
    return dataclasses.replace(SMALL, **sections)


CONFIGS = {
    **{path.stem: load_experiment(str(path)) for path in FILES},
    "tensor": change(parallel=ParallelConfig(fsdp=2, context=2, tensor=2, rules="fsdp_context")),
    "lora": change(finetune=LORA),
    "muon": change(optimizer=OptimizerConfig(kind="muon", warmup_steps=1, moments_dtype="bfloat16", ema_decay=0.0)),
    "sgd": change(optimizer=OptimizerConfig(kind="sgd", warmup_steps=1)),
    "bf16_moments": change(optimizer=OptimizerConfig(moments_dtype="bfloat16", warmup_steps=1)),
}


@functools.cache
def built(name: str) -> tuple[tuple[Placed, ...], TrainProgram, MemoryPlan]:
    config = CONFIGS[name]
    if name in {path.stem for path in FILES}:
        parallel = dataclasses.replace(config.parallel, data=1, fsdp=-1, context=config.parallel.context or 2)
        config = dataclasses.replace(config, parallel=parallel)
    layout = build_layout(config)
    shard = make_shard(config, layout, EIGHT)
    parameters = place_parameters(config, shard.mesh, shard.rules.parameters)
    memory = plan_memory(config, shard, layout.full_pass().schedule, parameters, EIGHT.hbm_bytes)
    return parameters, build_program(config, build_mesh(config.parallel, jax.devices())), memory


def local_bytes(tree: Any) -> int:
    """Returns the bytes of the arrays of ``tree`` on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_parameters_are_those_of_the_model_and_lie_where_they_do(name: str) -> None:
    parameters, program, _ = built(name)
    leaves = flatten_params(program.abstract_params)
    assert {p.path: (p.size, p.local) for p in parameters} == {
        path: (leaf.size, math.prod(leaf.sharding.shard_shape(leaf.shape))) for path, leaf in leaves.items()
    }
    assert {p.path for p in parameters if p.is_trained} == program.trained


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_state_on_a_device_is_exact(name: str) -> None:
    _, program, memory = built(name)
    state = program.abstract_state
    counters = {key: state[key] for key in ("params", "frozen", "skipped", "step")}
    assert memory.parameters == local_bytes(counters)
    assert memory.optimizer == local_bytes(state["opt"])
    assert memory.ema == local_bytes(state["ema"])
    sums = 2 if program.config.train.accumulate > 1 else 1  # of one part, and of all so far
    assert memory.gradients == sums * local_bytes(state["params"])


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_checkpoint_is_the_whole_state_but_for_its_counters(name: str) -> None:
    _, program, memory = built(name)
    leaves = jax.tree.leaves({key: program.abstract_state[key] for key in ("params", "frozen", "opt", "ema")})
    assert memory.state == sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
