"""The program of a run in buckets: one compiled step for each size of windows, one state for all.

Owns the compilation and the choice. All buckets are compiled before the first step: a bucket that comes late neither
stops a pod in the middle of a run nor passes for a slow step, and one that does not fit into memory says so at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from wamjax.batch import WamBatch, batch_spec
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout.buckets import split_buckets
from wamjax.parallel.mesh import replicated
from wamjax.training.hooks import BUCKET
from wamjax.training.program import TrainProgram, build_program
from wamjax.training.step import Metrics, State


def build_bucket_programs(config: RunConfig, mesh: Mesh) -> dict[str, TrainProgram]:
    """Returns the program of each bucket by name; of a run without buckets, the one program under ``""``.

    Raises:
      ConfigError: As ``build_program``, or a parameter has another shape in another bucket.
    """
    configs = split_buckets(config)
    if not configs:
        return {"": build_program(config, mesh)}
    programs = {name: _build(name, own, mesh) for name, own in configs.items()}
    (first, reference), *others = programs.items()
    shapes = _shapes(reference.abstract_params)
    for name, program in others:
        for path, shape in _shapes(program.abstract_params).items():
            if shapes.get(path) != shape:
                raise ConfigError(
                    f"parameter {path} has shape {shapes.get(path)} in bucket {first!r} and {shape} in bucket {name!r} "
                    "(config.data.buckets): all buckets share one model; config.model.grid_embedding=none and "
                    "config.data.video_statistics=none have no parameter for each place of the canvas"
                )
    return programs


def join_programs(
    programs: Mapping[str, TrainProgram], config: RunConfig, used: Iterable[str] | None = None
) -> TrainProgram:
    """Returns the program that takes a batch of any bucket, told by its shape; the one there is without buckets.

    A step reports which bucket it was of as the metric ``BUCKET``.

    Args:
      programs: From ``build_bucket_programs``.
      config: The run.
      used: Buckets that will come: they are compiled now. None for all.
    """
    if list(programs) == [""]:
        return programs[""]
    names = list(programs)
    steps, evaluates, losses = {}, {}, {}
    for name in names if used is None else used:
        program = programs[name]
        spec = batch_spec(program.config, program.config.train.global_batch_size)
        key = shape_key(spec)
        logging.info("compiling the step of bucket %s", name)
        step_of_bucket: Any = program.step
        compiled = step_of_bucket.lower(program.abstract_state, spec).compile()
        # Made once: the loop allows no transfer to the device.
        number = jax.device_put(jnp.float32(names.index(name)), replicated(program.mesh))
        steps[key] = _reporting(compiled, number)
        evaluates[key], losses[key] = program.evaluate, program.sample_losses

    def step(state: State, batch: WamBatch) -> tuple[State, Metrics]:
        return steps[shape_key(batch)](state, batch)

    def evaluate(params: Any, batch: WamBatch, index: int) -> Metrics:
        return evaluates[shape_key(batch)](params, batch, index)

    def sample_losses(params: Any, batch: WamBatch, index: int, observed: WamBatch) -> Any:
        return losses[shape_key(batch)](params, batch, index, observed)

    first = programs[names[0]]
    return dataclasses.replace(first, config=config, step=step, evaluate=evaluate, sample_losses=sample_losses)


def shape_key(batch: WamBatch) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of a batch's arrays, which tell its bucket."""
    return tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(batch))


def _reporting(compiled: Callable[..., Any], number: jax.Array) -> Callable[[State, WamBatch], tuple[State, Metrics]]:
    """Returns a compiled step that adds its bucket to its metrics."""

    def step(state: State, batch: WamBatch) -> tuple[State, Metrics]:
        state, metrics = compiled(state, batch)
        return state, {**metrics, BUCKET: number}

    return step


def _build(name: str, config: RunConfig, mesh: Mesh) -> TrainProgram:
    try:
        return build_program(config, mesh)
    except ConfigError as error:
        raise ConfigError(
            f"bucket {name!r} of config.data.buckets, whose batch is {config.train.global_batch_size} "
            f"(config.data.buckets.batch_multiple={config.data.buckets.batch_multiple}): {error}"
        ) from error


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
