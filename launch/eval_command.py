"""Evaluates the newest verified checkpoint of a work directory on held-out episodes and writes its report.

  wamjax eval --workdir=runs/quickstart --cpu_devices=8
  wamjax eval --workdir=runs/mixture --source=NAME
  wamjax eval --workdir=runs/unipi/video --inverse_dynamics=runs/unipi/inverse_dynamics

With --inverse_dynamics two runs are evaluated as one system: --workdir generates video, the other reads the actions
off it, and eval.json has the FLOPs and milliseconds of a chunk of actions too. An inverse-dynamics model by itself is
shown the true frames.

Writes into the work directory: eval.json (every figure with its interval), report.html (open it in a browser),
strip.png, predicted.mp4 and, where the simulator is installed, rollout.mp4.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from data_pipelines.embodiments.apply import prompt_writer
from data_pipelines.mixtures.pipeline import MixturePipeline, SourceWindows, open_data
from data_pipelines.mixtures.settings import source_config
from data_pipelines.pipeline import Pipeline
from data_pipelines.sources.remote import refuse_address
from data_pipelines.stream import ValidationWindows
from launch import distributed, metaworld
from launch.backbone_evaluation import evaluate_two_stages, restore_run
from launch.closed_loop import Rollouts, evaluate_closed_loop
from launch.experiment import select_source
from launch.figures import FIGURES, summarise
from launch.film import write_film, write_strip
from launch.open_loop import Model, OpenLoop, Prediction, evaluate_open_loop, spread
from launch.report import write_report
from launch.trained_state import ActionBefore, restore_state, sample_losses, whole_params
from launch.workdir import WorkDir
from wamjax.batch import WamBatch
from wamjax.config.blocks import reads_pixels
from wamjax.config.schema import ParallelConfig, RunConfig
from wamjax.config.two_stage import check_stages
from wamjax.errors import ConfigError, DataError
from wamjax.parallel.axes import resolve_axis_sizes
from wamjax.parallel.mesh import build_mesh
from wamjax.sampling.pixel_policy import PixelPolicy
from wamjax.sampling.rollout import ChunkSampler
from wamjax.sampling.two_stage_policy import PairReader
from wamjax.training.program import TrainProgram, build_program, describe_sharding

STRIP_WINDOWS = 4
FILM_FPS = 4  # a window spans a fraction of a second: shown several times slower, so that it can be followed


def define_flags() -> None:
    """Defines the flags of ``wamjax eval``."""
    flags.DEFINE_string("workdir", None, "Folder of a run made by wamjax train.", required=True)
    flags.DEFINE_integer("step", None, "Checkpoint to evaluate; the newest verified one by default.", lower_bound=0)
    flags.DEFINE_string(
        "inverse_dynamics", None, "Folder of the run that reads actions off the video that --workdir generates."
    )
    flags.DEFINE_string("source", None, "Which source of a run on config.data.mixture, by name.")
    flags.DEFINE_string(
        "output", None, "Folder to write to; by default the work directory, of a source its eval/SOURCE."
    )
    distributed.define_device_flags()


def run(argv: list[str]) -> int:
    """Evaluates and returns 0."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; wamjax eval takes flags only (see wamjax eval --help)")
    values = flags.FLAGS
    workdir = WorkDir(Path(values.workdir))
    run_config = workdir.read_config()
    if values.inverse_dynamics:
        print(_run_two_stages(workdir, run_config))
        return 0
    if not reads_pixels(run_config):
        raise ConfigError(
            f"--workdir={workdir.path} trains {run_config.name}, on cached samples: wamjax eval looks at pixels and "
            "samples the small model, or a video model with --inverse_dynamics; validation losses are in metrics.jsonl "
            "(config.evaluate.every_steps)"
        )
    refuse_address(values.output or "", "--output")
    select_source(run_config)  # refuses a name that is none before anything is started
    distributed.start_devices(values.cpu_devices)
    config = fit_to_devices(run_config, jax.device_count())
    default = workdir.path / "eval" / values.source if values.source else workdir.path
    output = Path(values.output) if values.output else default
    print(evaluate(workdir, config, step=values.step, output=output, source=values.source))
    return 0


def _run_two_stages(workdir: WorkDir, video: RunConfig) -> str:
    """Evaluates the runs of --workdir and --inverse_dynamics as one system, and returns the summary."""
    values = flags.FLAGS
    refuse_address(values.output or "", "--output")
    second = WorkDir(Path(values.inverse_dynamics))
    inverse = second.read_config()
    if values.source:
        raise ConfigError(f"--source={values.source} belongs to a run on config.data.mixture; leave it out")
    check_stages(video, inverse)  # before anything is started
    distributed.start_devices(values.cpu_devices)
    first, other = (fit_to_devices(config, jax.device_count()) for config in (video, inverse))
    # Both are shown the same batches.
    other = dataclasses.replace(
        other, train=dataclasses.replace(other.train, global_batch_size=first.train.global_batch_size)
    )
    run = restore_run(workdir, first, values.step)
    _, found = evaluate_two_stages(run, restore_run(second, other))
    evaluation = {"inverse_dynamics": str(second.path), **found.describe_chunk()}
    evaluation |= describe_evaluation(
        found.open_loop, found.rollouts, found.reason, step=found.step, episodes=found.episodes
    )
    output = Path(values.output) if values.output else workdir.path
    _write(output, run.program, workdir, evaluation, found.open_loop, found.rollouts)
    stages = ", ".join(f"{name} {flops:,}" for name, flops in found.chunk.stages.items())
    return (
        f"{summarise(evaluation)}\nFLOPs of a chunk of actions: {found.chunk.total:,} ({stages}), "
        f"{1000.0 * found.latency_s:.1f} ms\nreport: {output / 'report.html'}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What a model is evaluated on: a dataset, alone or as a source of a mixture.

    Attributes:
      config: The run on that dataset alone.
      pipeline: The dataset's.
      windows: Its held-out windows, numbered as the run numbers them.
      prompts: The run's task strings.
    """

    config: RunConfig
    pipeline: Pipeline
    windows: ValidationWindows | SourceWindows
    prompts: tuple[str, ...]


def open_subject(config: RunConfig, workdir: WorkDir, source: str | None) -> Subject:
    """Opens what a run was trained on, of a mixture the source of that name.

    Raises:
      DataError: No window of it was held out.
    """
    data = open_data(config, workdir=workdir.path)
    if isinstance(data, MixturePipeline):
        (declared,) = (entry for entry in config.data.mixture.sources if entry.name == source)
        pipeline, windows, own = (
            data.parts[declared.name],
            data.held_out_of(declared.name),
            source_config(config, declared),
        )
    else:
        assert isinstance(data, Pipeline), "latents were refused before"
        pipeline, windows, own = data, data.validation_windows(), config
    assert isinstance(pipeline, Pipeline), "latents were refused before"
    if not len(windows):
        raise DataError(
            f"dataset {own.data.path} has no held-out window to evaluate on; config.data.validation_fraction="
            f"{own.data.validation_fraction} of its episodes was held out"
        )
    return Subject(config=own, pipeline=pipeline, windows=windows, prompts=data.prompts)


def evaluate(workdir: WorkDir, config: RunConfig, *, step: int | None, output: Path, source: str | None = None) -> str:
    """Evaluates a checkpoint, writes every product to ``output`` and returns the summary.

    Args:
      workdir: A run.
      config: Its configuration, fitted to the devices at hand.
      step: Which checkpoint; None for the newest that verifies.
      output: Folder of eval.json, report.html, strip.png and the films.
      source: Which source of a mixture.
    """
    subject = open_subject(config, workdir, source)
    windows = subject.windows
    program = build_program(config, build_mesh(config.parallel, batch_size=config.train.part_size))
    restored, state = restore_state(workdir, program, step)
    params = program.evaluation_params(state)
    sampling_params = whole_params(params, program)
    open_loop = evaluate_open_loop(
        windows,
        Model(
            predict=_predictor(config, sampling_params),
            sample_losses=functools.partial(sample_losses, program, params),
        ),
        config=config,
        prompts=subject.prompts,
        scale=subject.pipeline.normalisation.actions,
        action_before=ActionBefore(subject.pipeline, subject.config),
    )
    rollouts, reason = _roll_out(subject, sampling_params)
    evaluation = {} if source is None else {"source": source}
    evaluation |= describe_evaluation(
        open_loop, rollouts, reason, step=restored.record.step, episodes=len(np.unique(windows.episodes))
    )
    _write(output, program, workdir, evaluation, open_loop, rollouts)
    return f"{summarise(evaluation)}\nreport: {output / 'report.html'}"


def _predictor(config: RunConfig, params: Any) -> Callable[[WamBatch, jax.Array], Prediction]:
    """Returns what predicts windows: a sampler, or an inverse-dynamics model, which is shown all frames."""
    if config.inverse_dynamics is not None:
        return PairReader(config, params).predict
    return ChunkSampler(config, params).predict


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


def describe_evaluation(
    open_loop: OpenLoop, rollouts: Sequence[Rollouts] | None, reason: str | None, *, step: int, episodes: int
) -> dict[str, Any]:
    """Returns the content of ``eval.json``.

    Every figure is ``{"mean", "low", "high", "n"}`` (95 % interval, n episodes) or null. ``gains`` hold, for each
    baseline, how much better the model is on the same episodes. ``closed_loop`` is null with a reason when no rollout
    was made.
    """

    def table(figures: Mapping[str, Any]) -> dict[str, Any]:
        return {name: None if figure is None else figure.to_json() for name, figure in figures.items()}

    return {
        "step": step,
        "windows": open_loop.num_windows,
        "episodes": episodes,
        **table(open_loop.figures),
        "gains": table(open_loop.gains),
        "closed_loop": None if rollouts is None else {r.task: r.rate().to_json() for r in rollouts},
        "closed_loop_reason": reason,
        "closed_loop_solved_at": None
        if rollouts is None
        else {r.task: {str(seed): int(at) for seed, at in zip(r.seeds, r.solved_at, strict=True)} for r in rollouts},
        "action_error_by_dim": [table(figures) for figures in open_loop.by_dim],
        "video_psnr_by_frame": [table(figures) for figures in open_loop.by_frame],
        "by_task": {task: table(figures) for task, figures in open_loop.by_task.items()},
        "definitions": {name: meaning.definition for name, meaning in FIGURES.items()},
    }


def _roll_out(subject: Subject, params: Any) -> tuple[list[Rollouts] | None, str | None]:
    """Returns the rollouts, or None and why there are none: a missing simulator does not spoil an evaluation."""
    config = subject.config
    if config.inverse_dynamics is not None:
        return None, "an inverse-dynamics model acts with a video model: wamjax eval --inverse_dynamics"
    try:
        setup, write_prompt = metaworld.match_dataset(config), prompt_writer(config.data)
        rollouts = evaluate_closed_loop(
            config,
            build_policy=lambda: PixelPolicy(config, params),
            open_simulators=setup.open,
            prompt_of=lambda task: write_prompt(metaworld.prompt_of(task)),
            prompts=subject.prompts,
            codec=subject.pipeline.codec,
            action_repeat=setup.action_repeat,
        )
    except ConfigError as error:
        logging.warning("no closed loop: %s", error)
        return None, str(error)
    return rollouts, None


def _write(
    output: Path,
    program: TrainProgram,
    workdir: WorkDir,
    evaluation: dict[str, Any],
    open_loop: OpenLoop,
    rollouts: Sequence[Rollouts] | None,
) -> None:
    """Writes the pictures, the films, ``eval.json`` and, last, the report that shows them all."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        films = [example.frames for example in open_loop.examples]
        write_strip(output / "strip.png", spread(films, STRIP_WINDOWS))
        write_film(output / "predicted.mp4", films, fps=FILM_FPS)
        (output / "rollout.mp4").unlink(missing_ok=True)  # of an earlier evaluation
        if rollouts:
            write_film(output / "rollout.mp4", [r.film for r in rollouts], fps=2 * FILM_FPS)
        _write_json(output / "eval.json", evaluation)
        write_report(
            workdir.path,
            output=output,
            config=workdir.read_config(),
            evaluation=evaluation,
            examples=open_loop.examples,
            sharding=describe_sharding(program),
        )
    except OSError as error:
        raise DataError(f"cannot write to {error.filename or output}: {error.strerror}; free space there") from error


def _write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all; numbers that are not finite are refused."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
