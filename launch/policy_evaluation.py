"""``wamjax eval`` of runs on cached samples: one run as a policy, or two that make one system."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from absl import flags

from launch import distributed
from launch.backbone_evaluation import (
    BackboneEvaluation,
    RestoredRun,
    check_evaluable,
    evaluate_backbone,
    evaluate_two_stages,
    restore_run,
)
from launch.evaluation_products import choose_output, describe_evaluation, write_products
from launch.experiment import select_source
from launch.figures import summarise
from launch.run_samples import Whereabouts
from launch.trained_state import fit_to_devices
from launch.workdir import WorkDir
from wamjax.config.schema import RunConfig
from wamjax.config.two_stage import check_stages
from wamjax.errors import ConfigError

_PLACES = {
    "latents": "Where the latents of --workdir lie now; by default where the run found them.",
    "vae": "Where their autoencoder lies now; by default where it lay when they were made.",
    "image_encoder": "Where their image encoder lies now.",
}


def define_place_flags() -> None:
    """Defines the flags that say where what a run was trained through lies now."""
    for name, meaning in _PLACES.items():
        flags.DEFINE_string(name, None, meaning)


def refuse_places(config: RunConfig) -> None:
    """Raises ``ConfigError`` where such a flag is given for a run that reads pixels."""
    for name in _PLACES:
        if getattr(flags.FLAGS, name) is not None:
            raise ConfigError(
                f"--{name}={getattr(flags.FLAGS, name)} is of runs on latents, and {config.name} reads "
                "pixels: leave it out"
            )


def run(workdir: WorkDir, config: RunConfig) -> str:
    """Evaluates the run of --workdir, with that of --inverse_dynamics where one is named, and returns the summary.

    Args:
      workdir: Of --workdir.
      config: Its configuration.

    Raises:
      ConfigError: The run has no policy, the two make no system, or flags do not belong to them.
      DataError: Something that is read is missing, or not what the run was trained with.
    """
    values = flags.FLAGS
    places = Whereabouts(**{name: getattr(values, name) for name in _PLACES})
    if values.inverse_dynamics:
        first, found, about = _run_two_stages(workdir, config, places)
    else:
        check_evaluable(select_source(config))  # before anything is started
        first = _restore(workdir, config)
        found = evaluate_backbone(first, source=values.source, places=places)
        about = {} if values.source is None else {"source": values.source}
    evaluation = about | found.describe_chunk()
    evaluation |= describe_evaluation(
        found.open_loop, found.rollouts, found.reason, step=found.step, episodes=found.episodes
    )
    output = choose_output(workdir)
    write_products(output, first.program, workdir, evaluation, found.open_loop, found.rollouts)
    return f"{summarise(evaluation)}\n{found.summarise_chunk()}\nreport: {output / 'report.html'}"


def _run_two_stages(
    workdir: WorkDir, video: RunConfig, places: Whereabouts
) -> tuple[RestoredRun, BackboneEvaluation, dict[str, Any]]:
    """Returns the first run, what was found of both, and which the second is."""
    values = flags.FLAGS
    second = WorkDir(Path(values.inverse_dynamics))
    inverse = second.read_config()
    if values.source:
        raise ConfigError(f"--source={values.source} belongs to a run on config.data.mixture; leave it out")
    check_stages(video, inverse)  # before anything is started
    first = _restore(workdir, video)
    other = fit_to_devices(inverse, jax.device_count())
    # Both are shown the same batches.
    size = first.program.config.train.global_batch_size
    other = dataclasses.replace(other, train=dataclasses.replace(other.train, global_batch_size=size))
    reader = restore_run(second, other)
    _, found = evaluate_two_stages(first, reader, places=places)
    return first, found, {"inverse_dynamics": str(second.path), "inverse_dynamics_step": reader.step}


def _restore(workdir: WorkDir, config: RunConfig) -> RestoredRun:
    distributed.start_devices(flags.FLAGS.cpu_devices)
    return restore_run(workdir, fit_to_devices(config, jax.device_count()), flags.FLAGS.step)
