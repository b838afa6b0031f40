"""Evaluates the newest verified checkpoint of a work directory on held-out episodes and writes its report.

  wamjax eval --workdir=runs/quickstart --cpu_devices=8
  wamjax eval --workdir=runs/mixture --source=NAME
  wamjax eval --workdir=runs/fast_wam [--vae=DIR] [--image_encoder=DIR] [--latents=DIR]
  wamjax eval --workdir=runs/unipi/video --inverse_dynamics=runs/unipi/inverse_dynamics

A run on cached samples is evaluated as the policy it is, and eval.json has the FLOPs and milliseconds of a chunk of
actions too. Its encoders and prompts are those that its latents were made with, found where these say; flags say where
they lie if that is elsewhere now. With --inverse_dynamics two runs are evaluated as one system: --workdir generates
video, the other reads the actions off it. An inverse-dynamics model by itself is shown the true frames.

Writes into the work directory: eval.json (every figure with its interval), report.html (open it in a browser),
strip.png, predicted.mp4 and, where the simulator is installed, rollout.mp4.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
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
from launch import distributed, metaworld, policy_evaluation
from launch.closed_loop import Rollouts, evaluate_closed_loop
from launch.evaluation_products import choose_output, describe_evaluation, write_products
from launch.experiment import select_source
from launch.figures import summarise
from launch.open_loop import Model, Prediction, evaluate_open_loop
from launch.trained_state import ActionBefore, fit_to_devices, restore_state, sample_losses, whole_params
from launch.workdir import WorkDir
from wamjax.batch import WamBatch
from wamjax.config.blocks import reads_pixels
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError, DataError
from wamjax.parallel.mesh import build_mesh
from wamjax.sampling.pixel_policy import PixelPolicy
from wamjax.sampling.rollout import ChunkSampler
from wamjax.sampling.two_stage_policy import PairReader
from wamjax.training.program import build_program


def define_flags() -> None:
    """Defines the flags of ``wamjax eval``."""
    flags.DEFINE_string("workdir", None, "Folder of a run made by wamjax train.", required=True)
    flags.DEFINE_integer(
        "step", None, "Checkpoint of --workdir to evaluate; the newest verified one by default.", lower_bound=0
    )
    flags.DEFINE_string(
        "inverse_dynamics", None, "Folder of the run that reads actions off the video that --workdir generates."
    )
    policy_evaluation.define_place_flags()
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
    refuse_address(values.output or "", "--output")
    if values.inverse_dynamics or not reads_pixels(run_config):
        print(policy_evaluation.run(workdir, run_config))
        return 0
    policy_evaluation.refuse_places(run_config)
    select_source(run_config)  # refuses a name that is none before anything is started
    distributed.start_devices(values.cpu_devices)
    config = fit_to_devices(run_config, jax.device_count())
    print(evaluate(workdir, config, step=values.step, output=choose_output(workdir), source=values.source))
    return 0


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
    write_products(output, program, workdir, evaluation, open_loop, rollouts)
    return f"{summarise(evaluation)}\nreport: {output / 'report.html'}"


def _predictor(config: RunConfig, params: Any) -> Callable[[WamBatch, jax.Array], Prediction]:
    """Returns what predicts windows: a sampler, or an inverse-dynamics model, which is shown all frames."""
    if config.inverse_dynamics is not None:
        return PairReader(config, params).predict
    return ChunkSampler(config, params).predict


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
