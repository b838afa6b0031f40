"""Evaluation of the runs that read cached samples, alone or as the first of two stages.

The policy of such a run is driven through held-out windows and in the simulator: it acts, is shown what really
happened, and acts again. So what is scored is what runs on a robot, its encoders, its cache and its sampler included.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from data_pipelines.embodiments.apply import prompt_writer
from data_pipelines.mixtures.pipeline import SOURCES_FOLDER
from data_pipelines.mixtures.settings import number_embodiments, source_config
from data_pipelines.normalisation import Normalisation
from data_pipelines.pipeline import NORMALISATION_FILE, Pipeline, build_pipeline
from launch import metaworld
from launch.canvas_policy import CanvasPolicy
from launch.clip_encoders import ClipEncoders
from launch.closed_loop import Rollouts, evaluate_closed_loop
from launch.open_loop import Model, OpenLoop, evaluate_open_loop
from launch.policy_driver import measure_latency, predict_windows
from launch.run_samples import Whereabouts, open_samples
from launch.trained_state import ActionBefore, restore_state, sample_losses, sampling_mesh, whole_params
from launch.window_samples import WindowSamples
from launch.workdir import WorkDir
from wamjax.batch import WamBatch
from wamjax.config.pixel_windows import num_pictures, pixel_windows
from wamjax.config.schema import RunConfig
from wamjax.config.systems import check_has_actions
from wamjax.config.two_stage import two_stage_windows
from wamjax.errors import ConfigError, DataError
from wamjax.flops.chunk import ChunkFlops, count_chunk, count_two_stages
from wamjax.flops.codec import CodecFlops, count_codec
from wamjax.parallel.mesh import build_mesh
from wamjax.sampling.build import build_policy
from wamjax.sampling.policy import Policy
from wamjax.sampling.two_stage_policy import InverseDynamics
from wamjax.training.program import TrainProgram, build_program
from wamjax.types import PureDict


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
      encoders: FLOPs of the frozen encoders around it; None where there are none.
      latency_s: Seconds of one chunk, from observation to actions, of one rollout; the median.
      chunk_actions: Its actions.
    """

    step: int
    episodes: int
    open_loop: OpenLoop
    rollouts: Sequence[Rollouts] | None
    reason: str | None
    chunk: ChunkFlops
    encoders: CodecFlops | None
    latency_s: float
    chunk_actions: int

    def describe_chunk(self) -> dict[str, Any]:
        """Returns what a chunk costs and takes, and on which device."""
        return {
            "chunk_flops": self.chunk.total,
            "chunk_flops_by_stage": {"observe": self.chunk.observe, **self.chunk.stages},
            "chunk_evaluations": dict(self.chunk.evaluations),
            "chunk_encoder_flops": None if self.encoders is None else dataclasses.asdict(self.encoders),
            "chunk_actions": self.chunk_actions,
            "chunk_ms": 1000.0 * self.latency_s,
            "device": jax.devices()[0].device_kind,
        }

    def summarise_chunk(self) -> str:
        """Returns ``describe_chunk`` in words."""

        def listed(flops: Mapping[str, int]) -> str:
            return ", ".join(f"{name} {count:,}" for name, count in flops.items() if count)

        stages = listed({"observe": self.chunk.observe, **self.chunk.stages})
        head = f"FLOPs of a chunk of {self.chunk_actions} actions, the first: {self.chunk.total:,} ({stages})"
        text = f"{head}, {1000.0 * self.latency_s:.1f} ms"
        if self.encoders is None:
            return text
        return f"{text}\nFLOPs of its frozen encoders, not in that: {listed(dataclasses.asdict(self.encoders))}"


def evaluate_backbone(
    run: RestoredRun, *, source: str | None = None, places: Whereabouts | None = None
) -> BackboneEvaluation:
    """Evaluates a run.

    Args:
      run: The run.
      source: Which source of a mixture, by name.
      places: Where its encoders and latents lie now.

    Raises:
      ConfigError: The run does not act, or what its encoders make is not what it was trained on.
      DataError: Its dataset, latents or encoders are missing.
    """
    config, kept, embodiment = _of_source(run, source)
    check_evaluable(config)
    pixels = pixel_windows(config)
    pipeline = build_pipeline(pixels, workdir=kept)
    samples = open_samples(
        config,
        pipeline,
        kept=kept,
        places=places or Whereabouts(),
        mesh=sampling_mesh(run.program),
        embodiment=embodiment,
    )
    make = functools.partial(_make_policy, config, run.whole, samples)
    losses = functools.partial(_sample_losses, run, samples)
    # The chunk that is timed is the first.
    encoders = _count_encoders(config, samples)
    return _evaluate(run.step, pixels, pipeline, make, losses, chunk=count_chunk(config, 0), encoders=encoders)


def check_evaluable(config: RunConfig) -> None:
    """Refuses a run that has no policy of its own, or several sizes of window.

    Raises:
      ConfigError: See above.
    """
    check_has_actions(config)
    if config.data.buckets.sets:
        raise ConfigError(
            f"config.data.buckets of {config.name} has {len(config.data.buckets.sets)} sizes of window; wamjax eval "
            "evaluates one: train a run of one size from it (config.finetune) to evaluate that"
        )


def _of_source(run: RestoredRun, source: str | None) -> tuple[RunConfig, Path, int]:
    """Returns the run on one dataset alone, where what describes its data is kept, and the robot's number."""
    config, folder = run.program.config, run.workdir.path
    sources = config.data.mixture.sources
    if not sources:
        return config, folder, 0
    place = [each.name for each in sources].index(source or "")  # another name was refused before
    own = source_config(config, sources[place])
    return own, folder / SOURCES_FOLDER / sources[place].name, number_embodiments(sources)[place]


def _count_encoders(config: RunConfig, samples: WindowSamples) -> CodecFlops | None:
    encoders = samples.encoders
    if not isinstance(encoders, ClipEncoders):
        return None
    return count_codec(config, encoders.vae, encoders.image, in_chunks=encoders.chunk_frames is not None)


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


def evaluate_two_stages(
    video: RestoredRun, inverse: RestoredRun, *, places: Whereabouts | None = None
) -> tuple[RunConfig, BackboneEvaluation]:
    """Evaluates a run of a video model and one of an inverse-dynamics model as one system.

    Actions are scaled and held out as the folder of ``inverse`` says.

    Args:
      video: The first.
      inverse: The second.
      places: Where the encoders and latents of the first lie now.

    Returns:
      The run on pixels whose windows were evaluated, and what was found.

    Raises:
      ConfigError: The two make no system (``config.two_stage``), or as ``open_samples``.
      DataError: They were trained with other statistics of one dataset's actions, or as ``open_samples``.
    """
    first, second = video.program.config, inverse.program.config
    pixels = two_stage_windows(first, second)
    pipeline = build_pipeline(pixels, workdir=inverse.workdir.path)
    samples = open_samples(
        first,
        pipeline,
        kept=video.workdir.path,
        places=places or Whereabouts(),
        mesh=sampling_mesh(video.program),
    )
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

    chunk, encoders = count_two_stages(first, second), _count_encoders(first, samples)
    return pixels, _evaluate(video.step, pixels, pipeline, make, losses, chunk=chunk, encoders=encoders)


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
    encoders: CodecFlops | None,
) -> BackboneEvaluation:
    """Drives the policy that ``make(imagine=...)`` makes; ``losses`` of windows in pixels are of the trained models."""
    windows = pipeline.validation_windows()
    if not len(windows):
        raise DataError(
            f"dataset {pixels.data.path} has no held-out window to evaluate on; config.data.validation_fraction="
            f"{pixels.data.validation_fraction} of its episodes was held out"
        )
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
        encoders=encoders,
        latency_s=latency_s,
        chunk_actions=chunk_actions,
    )


def _make_policy(config: RunConfig, params: PureDict, samples: WindowSamples, *, imagine: bool) -> Policy:
    """Returns the policy; with ``imagine`` it shows what it expects to see, else it does what actions need."""
    policy = build_policy(
        config,
        params,
        codec=samples.encoders.codec,
        prompts=samples.prompts,
        imagine=imagine and config.layout.formulation != "plan",  # which has no video to look at
        decodes=imagine,
    )
    pictures = num_pictures(config)
    return CanvasPolicy(policy, pictures) if pictures else policy


def _sample_losses(
    run: RestoredRun, samples: WindowSamples, batch: WamBatch, observed: WamBatch, draw: int
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
