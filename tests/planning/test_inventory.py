"""What the compiled step of the 14B exchanges: tokens by heads alone, parameters layer by layer, nothing held whole.

The step is that of the experiment with three layers: its layers are a loop, so that each exchanges what one of forty
does, and no other dim of the model is three.
"""

import dataclasses
import importlib.util
import math
import re
from pathlib import Path

import pytest

from launch.experiment import load_experiment
from wamjax.parallel.mesh import build_mesh
from wamjax.planning.ahead import CompileReport, compile_step, find_replicated
from wamjax.planning.collectives import Use
from wamjax.planning.topology import open_topology
from wamjax.training.program import build_program

LAYERS = 3
MAX_WHOLE_BYTES = 64 * 2**20
EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments/pretrain/wan_14b_480p.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install 'wamjax[tpu-compile]')"
    ),
]


@pytest.fixture(scope="module")
def report() -> CompileReport:
    config = load_experiment(str(EXPERIMENT))
    assert config.backbone is not None
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, num_layers=LAYERS))
    topology = open_topology("v5p:4x4x4")
    program = build_program(config, build_mesh(config.parallel, topology.devices, batch_size=config.train.part_size))
    assert find_replicated(program.abstract_state, MAX_WHOLE_BYTES) == {}
    return compile_step(program, topology, say=lambda text: None)


def gathers(report: CompileReport) -> list[Use]:
    """Returns what gathers: all-gathers, and all-reduces, by which the compiler writes some of them."""
    return [use for use in report.collectives if use.collective.kind in ("all-gather", "all-reduce")]


def arrays(use: Use) -> list[tuple[int, ...]]:
    """Returns the shapes of a collective's operands: the compiler joins several into one."""
    shapes = re.findall(r"\[([\d,]*)\]", use.collective.shape)
    return [tuple(int(size) for size in shape.split(",") if size) for shape in shapes]


def dims(use: Use) -> set[int]:
    return {size for array in arrays(use) for size in array}


def largest_bytes(use: Use) -> float:
    """Returns the bytes of the largest array a collective leaves on every device, its operands of one dtype."""
    sizes = [math.prod(array) for array in arrays(use)]
    return use.collective.num_bytes * max(sizes) / sum(sizes)


def test_program_exchanges_heads_over_context_in_every_layer(report: CompileReport) -> None:
    exchanged = [use for use in report.collectives if use.collective.kind == "all-to-all" and use.axes == "context"]
    assert exchanged
    assert all(use.times == LAYERS for use in exchanged)


def test_no_activation_is_gathered_along_tokens(report: CompileReport) -> None:
    tokens = {32_768, 32_768 // 4, 32_760}
    along = [use for use in gathers(report) if "context" in use.axes and dims(use) & tokens]
    # What is left are sums over tokens, whose result has none; an array of tokens would be in the operands.
    assert [use.collective.shape for use in along] == []


def test_no_stack_of_parameters_is_gathered_outside_the_loop_over_layers(report: CompileReport) -> None:
    outside = [use for use in report.collectives if use.depth == 0 and use.collective.kind != "all-reduce"]
    stacks = [use for use in outside if LAYERS in dims(use) and use.collective.num_bytes > 2**20]
    assert [use.collective.shape for use in stacks] == []


def test_nothing_above_64_mib_becomes_whole_on_every_device(report: CompileReport) -> None:
    outside = [use for use in gathers(report) if use.depth == 0 and largest_bytes(use) > MAX_WHOLE_BYTES]
    assert [(use.axes, use.collective.shape) for use in outside] == []
