"""Every experiment file at its real size: closed form and jaxpr of its real training step, to the last product."""

import dataclasses
from pathlib import Path

import jax
import pytest

from launch.experiment import load_experiment
from tests.flops.steps import closed_form, walk_evaluation, walk_step
from wamjax.config.schema import RunConfig
from wamjax.parallel.mesh import build_mesh
from wamjax.training.program import build_program

ROOT = Path(__file__).resolve().parents[2]
FILES = [*sorted((ROOT / "experiments").rglob("[!_]*.py")), ROOT / "experiments/systems/unipi.py:inverse_dynamics"]


def on_eight_devices(config: RunConfig) -> RunConfig:
    """Returns ``config`` with a mesh of eight devices, of which two hold parts of a sample where the batch decides."""
    parallel = dataclasses.replace(config.parallel, data=1, fsdp=-1, context=config.parallel.context or 2)
    return dataclasses.replace(config, parallel=parallel)


# One of each formulation at 14B: tracing takes seconds, of which the fast tests have few.
FAST = ("wan_14b_480p", "dreamzero_14b_droid")


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.name, marks=() if p.stem in FAST else pytest.mark.slow) for p in FILES]
)
def test_training_step_of_experiment_executes_the_closed_form(path: Path) -> None:
    config = on_eight_devices(load_experiment(str(path)))
    program = build_program(config, build_mesh(config.parallel, jax.devices(), batch_size=config.train.part_size))
    assert walk_step(program) == config.train.global_batch_size * closed_form(program).hardware_total


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_validation_of_experiment_executes_the_closed_form(path: Path) -> None:
    config = on_eight_devices(load_experiment(str(path)))
    program = build_program(config, build_mesh(config.parallel, jax.devices(), batch_size=config.train.part_size))
    assert walk_evaluation(program) == config.train.global_batch_size * sum(
        closed_form(program).hardware_forward.values()
    )
