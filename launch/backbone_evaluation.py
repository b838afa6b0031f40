"""Evaluation of a model that was trained on patches, alone or as the first of two stages.

Its policy is driven through held-out windows and in the simulator.

The policy is driven through every window: it acts, is shown what really happened, and acts again. So what is scored is
what runs on a robot, its cache and its sampler included.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from data_pipelines.embodiments.apply import prompt_writer
from data_pipelines.normalisation import Normalisation
from data_pipelines.pipeline import NORMALISATION_FILE, Pipeline, build_pipeline
from launch import metaworld
from launch.canvas_policy import CanvasPolicy
from launch.closed_loop import Rollouts, evaluate_closed_loop
from launch.open_loop import Model, OpenLoop, evaluate_open_loop
from launch.patch_latents import PatchSamples
from launch.trained_state import ActionBefore, restore_state, sample_losses, whole_params
from launch.workdir import WorkDir
from wamjax.batch import WamBatch
from wamjax.config.pixel_windows import num_pictures, pixel_windows
from wamjax.config.schema import RunConfig
from wamjax.config.two_stage import two_stage_windows
from wamjax.errors import ConfigError, DataError
from wamjax.flops.chunk import ChunkFlops, count_chunk, count_two_stages
from wamjax.parallel.mesh import build_mesh
from wamjax.sampling.build import build_policy
from wamjax.sampling.policy import Policy
from wamjax.sampling.two_stage_policy import InverseDynamics
from wamjax.training.program import TrainProgram, build_program
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
      chunk_actions: Its actions.
    """

    step: int
    episodes: int
    open_loop: OpenLoop
    rollouts: Sequence[Rollouts] | None
    reason: str | None
    chunk: ChunkFlops
    latency_s: float
    chunk_actions: int

    def describe_chunk(self) -> dict[str, Any]:
        """Returns what a chunk costs and takes, and on which device."""
        return {
            "chunk_flops": self.chunk.total,
            "chunk_flops_by_stage": {"observe": self.chunk.observe, **self.chunk.stages},
            "chunk_evaluations": dict(self.chunk.evaluations),
            "chunk_actions": self.chunk_actions,
            "chunk_ms": 1000.0 * self.latency_s,
            "device": jax.devices()[0].device_kind,
        }


def evaluate_backbone(workdir: WorkDir, config: RunConfig) -> BackboneEvaluation:
    """Evaluates the newest checkpoint of a run.

    Raises:
      ConfigError: The run has no checkpoint, or reads something else than patches.
    """
    pixels = pixel_windows(config)
    pipeline = build_pipeline(pixels, workdir=None)
    samples = PatchSamples(config, pipeline)
    run = restore_run(workdir, config)
    make = functools.partial(_make_policy, config, run.whole, samples)
    losses = functools.partial(_sample_losses, run, samples)
    # The chunk that is timed is the first.
    return _evaluate(run.step, pixels, pipeline, make, losses, chunk=count_chunk(config, 0))


class RestoredRun(NamedTuple):
    """A run's newest checkpoint as evaluation needs it.

    Attributes:
      step: Of the checkpoint.
      program: What the run executes.
      params: Sharded as in training.
      whole: For sampling.
      workdir: Its folder.
    """

    step: int
    program: TrainProgram
    params: PureDict
    whole: PureDict
    workdir: WorkDir

    def losses(self, batch: WamBatch, observed: WamBatch, draw: int) -> dict[str, npt.NDArray[Any]]:
        """As ``trained_state.sample_losses``."""
        return sample_losses(self.program, self.params, batch, observed, draw)


def restore_run(workdir: WorkDir, config: RunConfig, step: int | None = None) -> RestoredRun:
    """Restores a checkpoint; None for the newest that verifies. Raises as ``trained_state.restore_state``."""
    program = build_program(config, build_mesh(config.parallel, batch_size=config.train.part_size))
    restored, state = restore_state(workdir, program, step)
    params = program.evaluation_params(state)
    return RestoredRun(restored.record.step, program, params, whole_params(params, program), workdir)


def evaluate_two_stages(video: RestoredRun, inverse: RestoredRun) -> tuple[RunConfig, BackboneEvaluation]:
    """Evaluates a run of a video model and one of an inverse-dynamics model as one system.

    Actions are scaled and held out as the folder of ``inverse`` says.

    Returns:
      The run on pixels whose windows were evaluated, and what was found.

    Raises:
      ConfigError: The two make no system (``config.two_stage``), or the first reads something else than patches.
      DataError: They were trained with other statistics of one dataset's actions.
    """
    first, second = video.program.config, inverse.program.config
    pixels = two_stage_windows(first, second)
    pipeline = build_pipeline(pixels, workdir=inverse.workdir.path)
    samples = PatchSamples(first, pipeline)
    check_statistics(video.workdir.path / NORMALISATION_FILE, pipeline.normalisation)
    reader = InverseDynamics(second, inverse.whole)

    def make(*, imagine: bool) -> Policy:
        del imagine  # video is what this system acts by
        return build_policy(
            first, video.whole, codec=samples.encoders.codec, prompts=samples.prompts, inverse_dynamics=reader
        )

    def losses(batch: WamBatch, observed: WamBatch, draw: int) -> dict[str, npt.NDArray[Any]]:
        del batch, observed, draw
        return {}  # neither stage's loss is of the system: one reads no actions, the other true frames

    chunk = count_two_stages(first, second)
    return pixels, _evaluate(video.step, pixels, pipeline, make, losses, chunk=chunk)


def check_statistics(path: Path, used: Normalisation) -> None:
    """Refuses a first stage whose latents have other statistics of the same dataset's actions than the second stage's.

    Args:
      path: Statistics that the first stage's run keeps of its latents.
      used: Those of the second stage, by which a policy's actions are scaled back.

    Raises:
      DataError: They differ, or are not there, as of a run on several datasets.
    """
    if not path.exists():
        raise DataError(f"{path} is missing; two stages are evaluated on the one dataset that both were trained on")
    of_latents = Normalisation.load(path)
    if of_latents.fingerprint != used.fingerprint or of_latents.vectors != used.vectors:
        return  # another dataset, or other vectors of it: nothing of the first stage's is ever scaled
    if of_latents.actions != used.actions:
        raise DataError(
            f"{path} scales the actions of the same dataset otherwise than the run of --inverse_dynamics does: its "
            "training episodes are others; make the latents and train that run with equal config.data"
        )


def _evaluate(
    step: int,
    pixels: RunConfig,
    pipeline: Pipeline,
    make: Callable[..., Policy],
    losses: Callable[..., dict[str, npt.NDArray[Any]]],
    *,
    chunk: ChunkFlops,
) -> BackboneEvaluation:
    """Drives the policy that ``make(imagine=...)`` makes; ``losses`` of windows in pixels are of the trained models."""
    windows = pipeline.validation_windows()
    open_loop = evaluate_open_loop(
        windows,
        Model(predict=functools.partial(predict_windows, make(imagine=True), pixels), sample_losses=losses),
        config=pixels,
        prompts=pipeline.prompts,
        scale=pipeline.normalisation.actions,
        action_before=ActionBefore(pipeline, pixels),
    )
    rollouts, reason = _roll_out(pixels, pipeline, lambda: make(imagine=True))
    latency_s, chunk_actions = measure_latency(make(imagine=False), windows.batch([0]))
    return BackboneEvaluation(
        step=step,
        episodes=len(np.unique(windows.episodes)),
        open_loop=open_loop,
        rollouts=rollouts,
        reason=reason,
        chunk=chunk,
        latency_s=latency_s,
        chunk_actions=chunk_actions,
    )


class Predicted(NamedTuple):
    """What a policy expects of windows (``launch.open_loop.Prediction``).

    Attributes:
      video: uint8 ``[b f-1 H W 3]``; None of a policy that denoises none.
      actions: fp32 ``[b a u]``.
    """

    video: npt.NDArray[Any] | None
    actions: npt.NDArray[Any]


def predict_windows(policy: Policy, pixels: RunConfig, batch: WamBatch, key: jax.Array) -> Predicted:
    """Drives ``policy`` through recorded windows, chunk by chunk from what really happened before.

    A chunk has the actions of one block or of several, and their frames.
    """
    sizes, state = pixels.layout, _states(batch)
    policy.reset(np.asarray(batch.prompt_id))
    frames, actions, block, first = [], [], 0, 0
    for turn in range(sizes.num_blocks):
        now = state[:, block] if sizes.states_per_block else state[:, 0]
        last = block * sizes.frames_per_block
        policy.observe(np.asarray(batch.video[:, first : last + 1]), now)
        chunk = policy.act(jax.random.fold_in(key, turn))
        frames.append(None if chunk.video is None else np.asarray(chunk.video))
        actions.append(np.asarray(chunk.actions))
        block, first = block + actions[-1].shape[1] // sizes.actions_per_block, last + 1
        if block == sizes.num_blocks:
            break
    seen = [part for part in frames if part is not None]
    return Predicted(np.concatenate(seen, axis=1) if seen else None, np.concatenate(actions, axis=1))


def measure_latency(policy: Policy, window: WamBatch) -> tuple[float, int]:
    """Returns the seconds from a first observation to actions, the median of a few, compiled before; and how many."""
    frame, state, seconds = np.asarray(window.video[:1, :1]), _states(window)[:1, 0], []
    actions = np.zeros((0, 0, 0))
    for turn in range(1 + _LATENCY_CHUNKS):
        policy.reset(np.asarray(window.prompt_id[:1]))
        started = time.perf_counter()
        policy.observe(frame, state)
        actions = np.asarray(policy.act(jax.random.key(turn)).actions)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]), actions.shape[1]


def _states(batch: WamBatch) -> npt.NDArray[Any]:
    """Returns the states ``[b s p]``, masked; one of zeros where the run has none."""
    if not batch.state.shape[1]:
        return np.zeros((batch.size, 1, batch.state.shape[2]), np.float32)
    return np.asarray(batch.state * batch.state_mask)


def _make_policy(config: RunConfig, params: PureDict, samples: PatchSamples, *, imagine: bool) -> Policy:
    imagine = imagine and config.layout.formulation != "plan"  # which has no video to look at
    policy = build_policy(config, params, codec=samples.encoders.codec, prompts=samples.prompts, imagine=imagine)
    pictures = num_pictures(config)
    return CanvasPolicy(policy, pictures) if pictures else policy


def _sample_losses(
    run: RestoredRun, samples: PatchSamples, batch: WamBatch, observed: WamBatch, draw: int
) -> dict[str, npt.NDArray[Any]]:
    """As ``RestoredRun.losses``, of windows in pixels."""
    own = samples(batch)
    return run.losses(own, own if observed is batch else samples(observed), draw)


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
