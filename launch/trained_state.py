"""A trained run as its evaluation needs it: its newest state, its parameters for sampling, losses of single windows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.pipeline import Pipeline, open_dataset
from launch.open_loop import constant_action
from launch.workdir import WorkDir
from wamjax.batch import WamBatch
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import ParallelConfig, RunConfig
from wamjax.errors import ConfigError
from wamjax.parallel.axes import resolve_axis_sizes
from wamjax.parallel.mesh import build_mesh, make_global_batch
from wamjax.training.checkpoint import CheckpointStore, Restored
from wamjax.training.program import TrainProgram
from wamjax.training.step import State


def fit_to_devices(config: RunConfig, num_devices: int) -> RunConfig:
    """Returns ``config`` with a mesh and a batch size that fit ``num_devices``.

    A run may be evaluated on other devices than it was trained on. Its own mesh is kept where it fits; otherwise the
    parameters are split over all devices. The batch is rounded up to what divides over the data axes.
    """
    try:
        sizes = resolve_axis_sizes(config.parallel, num_devices, config.train.part_size)
    except ConfigError:
        config = dataclasses.replace(config, parallel=ParallelConfig())
        sizes = resolve_axis_sizes(config.parallel, num_devices)
    ways = sizes["data"] * sizes["fsdp"]
    batch_size = math.ceil(config.train.global_batch_size / ways) * ways
    return dataclasses.replace(config, train=dataclasses.replace(config.train, global_batch_size=batch_size))


def restore_state(workdir: WorkDir, program: TrainProgram, step: int | None) -> tuple[Restored, State]:
    """Loads the wanted checkpoint, or the newest that verifies; returns it and the whole state."""
    base = program.load_base() if program.config.finetune.needs_base else None
    store = CheckpointStore(workdir.checkpoints)
    wanted, base_hash = program.saved(program.abstract_state), base.hash if base else None
    restored = (
        store.restore_latest(wanted, base_hash=base_hash)
        if step is None
        else store.restore(step, wanted, base_hash=base_hash)
    )
    if restored is None:
        raise ConfigError(
            f"--workdir={workdir.path} has no checkpoint yet; train until the first one (config.checkpoint.every_steps)"
        )
    return restored, program.complete(restored.state, base)


def whole_params(params: Any, program: TrainProgram) -> Any:
    """Returns ``params`` for sampling: as they are on accelerators, whole on one of several simulated CPU devices.

    Simulated devices share the same cores, so splitting the small steps of a sampler over them only adds exchanges.
    """
    mesh = sampling_mesh(program)
    return params if mesh is program.mesh else jax.device_put(params, mesh.devices.flat[0])


def sampling_mesh(program: TrainProgram) -> Mesh:
    """Returns where a run samples: its mesh or, of simulated CPU devices, the first (see ``whole_params``)."""
    first = program.mesh.devices.flat[0]
    if first.platform != "cpu":
        return program.mesh
    return build_mesh(ParallelConfig(data=1, fsdp=1, context=1, tensor=1), [first])


def sample_losses(
    program: TrainProgram, params: Any, batch: WamBatch, observed: WamBatch, draw: int
) -> dict[str, np.ndarray]:
    """Returns each window's losses by stream, NaN where the window carries none (``launch.open_loop.Model``)."""
    rows: Any = make_global_batch(batch, program.mesh)
    shown: Any = rows if observed is batch else make_global_batch(observed, program.mesh)
    streams = program.sample_losses(params, rows, draw, shown)
    sums = jax.device_get({name: (stream.total, stream.count) for name, stream in streams.items()})
    return {name: np.where(count > 0, total / np.maximum(count, 1.0), np.nan) for name, (total, count) in sums.items()}


class ActionBefore:
    """Looks up the action executed before each block of a window, as that block would write it: normalised ``[i u]``.

    Nothing is executed before an episode's first step: there it is the vector of zeros.
    """

    def __init__(self, pipeline: Pipeline, config: RunConfig) -> None:
        self._source = open_dataset(config.data)
        self._codec = pipeline.codec
        self._num_blocks, geometry = config.layout.num_blocks, derive_geometry(config)
        self._steps_per_block, self._action_stride = geometry.steps_per_block, geometry.action_stride

    def __call__(self, episode: int, start: int) -> np.ndarray:
        """Returns fp32 ``[i u]`` of the window of ``episode`` that begins at step ``start``."""
        layout = self._codec.layout
        executed = {key: self._source.column(key, episode) for key in layout.action_keys}
        states = {key: self._source.column(key, episode) for key in layout.state_keys}
        last = min((len(column) for column in executed.values()), default=1) - 1
        blocks = np.minimum(start + np.arange(self._num_blocks) * self._steps_per_block, last)
        # Within a window the action before a block is the last one that the block before it has.
        steps = np.maximum(blocks - np.where(np.arange(self._num_blocks) > 0, self._action_stride, 1), 0)
        if not layout.actions:
            return np.zeros((self._num_blocks, self._codec.action_dim), np.float32)
        before = self._codec.encode_actions(
            {key: column[steps] for key, column in executed.items()},
            {key: column[blocks] for key, column in states.items()},
        )
        if start == 0:
            scale = self._codec.normalisation.actions
            before[0] = constant_action(scale, np.zeros(scale.num_dims), self._codec.action_dim)
        return before
