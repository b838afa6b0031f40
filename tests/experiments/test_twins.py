"""The tiny twin of every system: it has every part of the system, and it learns."""

from pathlib import Path

import jax
import pytest

from launch.experiment import load_experiment
from tests.tiny import tiny_batch
from wamjax.config.twin import tiny_twin
from wamjax.layout import build_layout
from wamjax.parallel.mesh import build_mesh
from wamjax.training.program import build_program

FILES = sorted((Path(__file__).resolve().parents[2] / "experiments/systems").glob("[!_]*.py"))
SYSTEMS = [*map(str, FILES), *(f"{path}:inverse_dynamics" for path in FILES if path.stem == "unipi")]


def name_of(system: str) -> str:
    """``STEM``, or ``STEM:MEMBER``."""
    return system.rpartition("/")[2].replace(".py", "")


@pytest.mark.parametrize("system", SYSTEMS, ids=name_of)
def test_twin_has_the_streams_and_the_visibility_of_its_system(system: str) -> None:
    config = load_experiment(system)
    whole, small = build_layout(config), build_layout(tiny_twin(config))
    padding = {"padding"}
    assert set(whole.tokens_by_stream()) - padding == set(small.tokens_by_stream()) - padding
    assert whole.visibility == small.visibility
    assert whole.full_pass().experts == small.full_pass().experts
    assert small.num_tokens < 64


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS, ids=name_of)
def test_twin_learns_in_twenty_steps(system: str) -> None:
    config = tiny_twin(load_experiment(system))
    program = build_program(config, build_mesh(config.parallel, jax.devices()[:1]))
    batch = tiny_batch(config, config.train.global_batch_size)
    state = program.init()
    before = program.evaluate(program.evaluation_params(state), batch, 0)
    for _ in range(config.train.num_steps):
        state, _ = program.step(state, batch)
    after = program.evaluate(program.evaluation_params(state), batch, 0)
    for name in before:
        assert after[name] < before[name], name
