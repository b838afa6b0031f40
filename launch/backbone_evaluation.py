"""Evaluation of a backbone that was trained on patches: its policy on held-out windows and in the simulator.

The policy is driven through every window: it acts, is shown what really happened, and acts again. So what is scored is
what runs on a robot, its cache and its sampler included.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from data_pipelines.embodiments.apply import prompt_writer
from data_pipelines.pipeline import Pipeline, build_pipeline
from data_pipelines.stream import ValidationWindows
from launch import metaworld
from launch.closed_loop import Rollouts, evaluate_closed_loop
from launch.open_loop import Model, OpenLoop, evaluate_open_loop
from launch.patch_latents import PatchEncoders
from launch.trained_state import ActionBefore, restore_state, sample_losses, whole_params
from launch.workdir import WorkDir
from wamjax.batch import WamBatch
from wamjax.config.clip import pixel_windows
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.chunk import ChunkFlops, count_chunk
from wamjax.parallel.mesh import build_mesh
from wamjax.sampling.build import BackbonePolicy, build_policy
from wamjax.training.program import build_program
from wamjax.types import PureDict

_LATENCY_CHUNKS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneEvaluation:
    """What was found of one run.

    Attributes:
      step: Checkpoint.
      episodes: Held-out episodes.
      open_loop: Figures on held-out windows.
      rollouts: Of each task; None where there is no simulator.
      reason: Why not.
      chunk: FLOPs of one action chunk.
      latency_s: Seconds of one chunk, from observation to actions, of one rollout; the median.
    """

    step: int
    episodes: int
    open_loop: OpenLoop
    rollouts: Sequence[Rollouts] | None
    reason: str | None
    chunk: ChunkFlops
    latency_s: float


def evaluate_backbone(workdir: WorkDir, config: RunConfig) -> BackboneEvaluation:
    """Evaluates the newest checkpoint of a run.

    Raises:
      ConfigError: The run has no checkpoint, or reads something else than patches.
    """
    encoders, pixels = PatchEncoders(config), pixel_windows(config)
    pipeline = build_pipeline(pixels, workdir=None)
    program = build_program(config, build_mesh(config.parallel, batch_size=config.train.part_size))
    restored, state = restore_state(workdir, program, None)
    params = program.evaluation_params(state)
    own = whole_params(params, program)
    make = functools.partial(_make_policy, config, own, encoders, pipeline)
    windows = _Windows(pipeline.validation_windows(), encoders, pipeline.prompts)
    open_loop = evaluate_open_loop(
        windows,
        Model(
            predict=functools.partial(predict_windows, make(imagine=True), pixels),
            sample_losses=functools.partial(sample_losses, program, params),
        ),
        config=pixels,
        prompts=pipeline.prompts,
        scale=pipeline.normalisation.actions,
        action_before=ActionBefore(pipeline, pixels),
    )
    rollouts, reason = _roll_out(pixels, pipeline, lambda: make(imagine=True))
    return BackboneEvaluation(
        step=restored.record.step,
        episodes=len(np.unique(windows.episodes)),
        open_loop=open_loop,
        rollouts=rollouts,
        reason=reason,
        chunk=count_chunk(config, 0),  # the one that is timed
        latency_s=measure_latency(make(imagine=False), windows.batch([0])),
    )


class Predicted(NamedTuple):
    """What a policy expects of windows (``launch.open_loop.Prediction``).

    Attributes:
      video: uint8 ``[b f-1 H W 3]``.
      actions: fp32 ``[b a u]``.
    """

    video: npt.NDArray[Any]
    actions: npt.NDArray[Any]


def predict_windows(policy: BackbonePolicy, pixels: RunConfig, batch: WamBatch, key: jax.Array) -> Predicted:
    """Drives ``policy`` through recorded windows, chunk by chunk from what really happened before."""
    sizes, state = pixels.layout, _states(batch)
    policy.reset(np.asarray(batch.prompt_id))
    frames, actions = [], []
    for block in range(sizes.num_blocks):
        last = block * sizes.frames_per_block
        first = last - sizes.frames_per_block + 1 if block else 0
        now = state[:, block] if sizes.states_per_block else state[:, 0]
        policy.observe(np.asarray(batch.video[:, first : last + 1]), now)
        chunk = policy.act(jax.random.fold_in(key, block))
        frames.append(np.asarray(chunk.video))
        actions.append(np.asarray(chunk.actions))
    return Predicted(np.concatenate(frames, axis=1), np.concatenate(actions, axis=1))


def measure_latency(policy: BackbonePolicy, window: WamBatch) -> float:
    """Returns the seconds from a first observation to actions, the median of a few, compiled before."""
    frame, state, seconds = np.asarray(window.video[:1, :1]), _states(window)[:1, 0], []
    for turn in range(1 + _LATENCY_CHUNKS):
        policy.reset(np.asarray(window.prompt_id[:1]))
        started = time.perf_counter()
        policy.observe(frame, state)
        np.asarray(policy.act(jax.random.key(turn)).actions)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _states(batch: WamBatch) -> npt.NDArray[Any]:
    """Returns the states ``[b s p]``, masked; one of zeros where the run has none."""
    if not batch.state.shape[1]:
        return np.zeros((batch.size, 1, batch.state.shape[2]), np.float32)
    return np.asarray(batch.state * batch.state_mask)


def _make_policy(
    config: RunConfig, params: PureDict, encoders: PatchEncoders, pipeline: Pipeline, *, imagine: bool
) -> BackbonePolicy:
    prompts = encoders.prompt_table(pipeline.prompts)
    return build_policy(config, params, codec=encoders.codec, prompts=prompts, imagine=imagine)


def _roll_out(pixels: RunConfig, pipeline: Pipeline, build: Any) -> tuple[list[Rollouts] | None, str | None]:
    """Returns the rollouts, or None and why there are none."""
    try:
        setup, write_prompt = metaworld.match_dataset(pixels), prompt_writer(pixels.data)
        rollouts = evaluate_closed_loop(
            pixels,
            build_policy=build,
            open_simulators=setup.open,
            prompt_of=lambda task: write_prompt(metaworld.prompt_of(task)),
            prompts=pipeline.prompts,
            codec=pipeline.codec,
            action_repeat=setup.action_repeat,
        )
    except ConfigError as error:
        return None, str(error)
    return rollouts, None


class _Windows:
    """Held-out windows in pixels with what a backbone reads beside them."""

    def __init__(self, windows: ValidationWindows, encoders: PatchEncoders, prompts: Sequence[str]) -> None:
        self._windows, self._encoders = windows, encoders
        self._text = np.stack(encoders.encode_prompts(prompts))
        self.episodes, self.starts = windows.episodes, windows.starts

    def __len__(self) -> int:
        return len(self._windows)

    def batch(self, indices: Any) -> WamBatch:
        """Returns the windows at ``indices``."""
        batch = self._windows.batch(indices)
        latents = self._encoders.encode_windows(batch)["latents"]
        rows = np.asarray(batch.prompt_id)
        category = np.zeros(batch.size, np.int32)
        text = self._text[rows].astype(jnp.bfloat16)
        return dataclasses.replace(batch, latents=latents, text=text, embodiment_id=category)
