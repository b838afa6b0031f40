"""Every experiment file: its program can be built, and what its header says of itself is so."""

import math
import re
import shlex
from pathlib import Path

import jax
import pytest

from launch.experiment import load_experiment
from wamjax.batch import batch_spec
from wamjax.layout import Role, build_layout
from wamjax.parallel.axes import MESH_AXES, resolve_axis_sizes
from wamjax.parallel.mesh import build_mesh
from wamjax.planning.ahead import find_replicated
from wamjax.planning.slices import parse_topology
from wamjax.training.program import TrainProgram, build_program

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "experiments").rglob("[!_]*.py"))
PLANNED = [path for path in FILES if "wamjax plan" in path.read_text()]


def header(path: Path) -> dict[str, str]:
    """Returns the ``Name:  text`` entries of a file's docstring, continuation lines joined."""
    docstring = path.read_text().split('"""')[1]
    entries = re.findall(r"^(\w+):\s+(.*(?:\n {2,}.*)*)", docstring, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


# Members of a file that have another model than its first.
MEMBERS = [
    ROOT / "experiments/systems/unipi.py:inverse_dynamics",
    ROOT / "experiments/campaigns/unipi.py:inverse_dynamics",
]


def program_on_eight_devices(path: Path) -> TrainProgram:
    config = load_experiment(str(path))
    mesh = build_mesh(config.parallel, jax.devices(), batch_size=config.train.part_size)
    return build_program(config, mesh)


# What differs from another file in sizes alone is built by the slow tests.
ALIKE = {
    "cosmos_policy_robocasa",
    "dreamzero_14b_agibot",
    "dreamzero_14b_flash",
    "dreamzero_5b",
    "fast_wam_idm",
    "fast_wam_joint",
    "fast_wam_libero",
    "formulations",
    "hybrid_vla_wam",
    "lingbot_va_mot",
    "summer_22b",
    "unipi",
}


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.name, marks=pytest.mark.slow if p.stem in ALIKE else ()) for p in (*FILES, *MEMBERS)],
)
def test_experiment_builds_its_program_with_nothing_large_held_whole(path: Path) -> None:
    state = program_on_eight_devices(path).abstract_state
    assert jax.tree.leaves(state["params"])
    assert find_replicated(state, min_bytes=64 * 2**20) == {}


@pytest.mark.slow
@pytest.mark.parametrize("path", [*PLANNED, *MEMBERS], ids=lambda path: path.name)
def test_experiment_traces_its_step(path: Path) -> None:
    program = program_on_eight_devices(path)
    batch = batch_spec(program.config, program.config.train.global_batch_size)
    state, metrics = jax.eval_shape(program.step, program.abstract_state, batch)
    assert metrics["loss/total"].shape == ()
    assert jax.tree.structure(state) == jax.tree.structure(program.abstract_state)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_command_of_a_header_names_its_own_file(path: Path) -> None:
    commands = re.findall(r"--config=(\S+)", path.read_text().split('"""')[1])
    assert {command.partition(":")[0] for command in commands} == {str(path.relative_to(ROOT))}


@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_sequence_of_a_header_is_that_of_the_layout(path: Path) -> None:
    layout = build_layout(load_experiment(str(path)))
    tokens, padded = numbers(header(path)["Sequence"])[-2:]
    assert padded == layout.num_tokens
    assert tokens == padded - layout.tokens_by_stream().get(Role.PADDING.value, 0)


@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_mesh_of_a_header_is_that_of_its_command(path: Path) -> None:
    entries = header(path)
    command = dict(word.split("=") for word in shlex.split(entries["Command"]) if "=" in word)
    generation, sizes = parse_topology(command["--topology"])
    devices = math.prod(sizes) * generation.chip.devices_per_chip
    config = load_experiment(str(path))
    axes = resolve_axis_sizes(config.parallel, devices, config.train.part_size)
    chips, mesh = entries["Mesh"].split(":")
    assert numbers(chips)[0] == math.prod(sizes)
    stated = {name: int(size) for name, size in re.findall(r"(\w+) (\d+)", mesh)}
    assert {name: stated.get(name, 1) for name in MESH_AXES} == axes
