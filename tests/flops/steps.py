"""What the FLOP tests share: the products of real training and evaluation steps, by the walk over their jaxprs."""

import dataclasses
from typing import Any

import jax

from wamjax.batch import batch_spec
from wamjax.config.schema import RunConfig
from wamjax.flops.execution import execution_on
from wamjax.flops.jaxpr import count_jaxpr
from wamjax.flops.model import FlopCount, count_flops
from wamjax.parallel.mesh import build_mesh
from wamjax.training.program import TrainProgram, build_program


def build(config: RunConfig, num_devices: int = 8) -> TrainProgram:
    return build_program(config, build_mesh(config.parallel, jax.devices()[:num_devices]))


def walk_step(program: TrainProgram) -> int:
    """FLOPs of one training step."""
    step: Any = program.step
    batch = batch_spec(program.config, program.config.train.global_batch_size)
    return count_jaxpr(step.trace(program.abstract_state, batch).jaxpr).total


def walk_evaluation(program: TrainProgram) -> int:
    """FLOPs of one validation loss."""
    evaluate: Any = program.evaluate
    batch = batch_spec(program.config, program.config.train.global_batch_size)
    return count_jaxpr(evaluate.trace(program.abstract_params, batch, 0).jaxpr).total


def closed_form(program: TrainProgram) -> FlopCount:
    return count_flops(program.config, program.layout, execution_on(program.mesh))


def vary(config: Any, **parts: Any) -> Any:
    """Replaces fields; a dict replaces fields of the part of that name."""
    return dataclasses.replace(
        config,
        **{n: vary(getattr(config, n), **v) if isinstance(v, dict) else v for n, v in parts.items()},
    )
