import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tests.planning.exchange_program import CONTEXT, FSDP, KERNEL_FLOPS, LAYERS, exchange_step
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.parallel.axes import MESH_AXES
from wamjax.parallel.mesh import build_mesh
from wamjax.planning.ahead import CompileReport, compile_function, find_replicated, to_json
from wamjax.planning.chips import BY_PREFIX
from wamjax.planning.summary import describe
from wamjax.planning.topology import Topology, open_topology

SMALLEST = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
OUT_OF_MEMORY = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (21.50G) exceeds available HBM (15.75G). HLO module: jit_step.\nSee https://openxla.org/xla/errors"
)
MEMORY_REPORT = """Memory Space: default (color=0)
Total bytes: 22790132736 (21.22GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
    4.50GiB( 20%);    4.50GiB;       409600;                6; f32[6,512,8192], 5×bf16[6,48,8,8192,128]
    5.25GiB( 24%);  768.00MiB;   4832247808;                1; bf16[48,4096,2048]
    5.25GiB( 24%);      512B;            0;                1; f32[128]

  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
    9.00GiB( 20%);    9.00GiB;       409600;                6; f32[1,2,3]
"""


class Refusal:
    """What a jitted function is to ``compile_function``, with a compiler that gives this answer."""

    def __init__(self, message: str):
        self.message = message

    def __call__(self) -> None:
        raise AssertionError("compiled, never run")

    def lower(self, *arguments: object) -> "Refusal":
        return self

    def compile(self, compiler_options: dict[str, object]) -> None:
        folder = Path(str(compiler_options["xla_dump_to"]))
        (folder / "module_0000.jit_step.after_optimizations-memory-usage-report.txt").write_text(MEMORY_REPORT)
        raise jax.errors.JaxRuntimeError(self.message)


class Chip:
    coords = (0, 0, 0)


def refuse(message: str) -> CompileReport:
    topology = Topology(name="v5e:1x1", generation=BY_PREFIX["v5e"], sizes=(1, 1), devices=(Chip(),))
    mesh = Mesh(np.array(jax.devices()[:2]).reshape(1, 2, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    argument = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    return compile_function(Refusal(message), (argument,), mesh, topology, model_flops=1, say=lambda text: None)


@pytest.fixture
def placed_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU devices have no place on a torus."""
    monkeypatch.setattr("wamjax.planning.ahead.build_torus", lambda generation, devices: _torus())


def _torus():
    from wamjax.planning.ici import Torus

    return Torus(coords=np.zeros((2, 2), int), sizes=(1, 1), wraps=(False, False), link_bytes_per_s=1.0)


@pytest.mark.usefixtures("placed_anywhere")
def test_program_too_large_is_an_answer_with_its_largest_buffers() -> None:
    report = refuse(OUT_OF_MEMORY)
    assert not report.fits
    assert report.memory.peak == int(21.5 * 2**30)
    assert report.memory.argument == 8 * 4 * 2 // 2
    assert report.largest_buffers == (
        (int(4.5 * 2**30), "f32[6,512,8192], 5×bf16[6,48,8,8192,128]"),
        (768 * 2**20, "bf16[48,4096,2048]"),
        (512, "f32[128]"),
    )
    plan = json.loads(json.dumps(to_json(report)))
    assert plan["fits"] is False
    assert plan["step_s"] is None
    assert plan["largest_buffers"][1] == {"bytes": 768 * 2**20, "arrays": "bf16[48,4096,2048]"}
    assert "DOES NOT FIT" in describe(report)


@pytest.mark.usefixtures("placed_anywhere")
@pytest.mark.parametrize("message", ["INTERNAL: Mosaic failed\nto compile", "RESOURCE_EXHAUSTED: Ran out of vmem"])
def test_any_other_refusal_is_one_line_with_the_compilers_words(message: str) -> None:
    with pytest.raises(ConfigError, match="the compiler refuses the step for --topology=v5e:1x1: ") as caught:
        refuse(message)
    assert " ".join(message.split()) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arrays_that_every_device_holds_are_found() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(1, 2, 2, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)

    def array(rows: int, *spec: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, 4), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    state = {
        "params": {"whole": array(8), "split": array(8, "fsdp"), "small": array(2), "size_one": array(8, "tensor")}
    }
    assert find_replicated(state, min_bytes=100) == {"params.size_one": 128, "params.whole": 128}


# What follows compiles for TPUs.

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install 'wamjax[tpu-compile]')"
)


def compile_on_one_device(prefix: str, function, *shapes: tuple[tuple[int, ...], str]) -> CompileReport:
    """Compiles ``function`` for one device of a generation's smallest slice, with the compiler's own defaults."""
    topology = open_topology(SMALLEST[prefix])
    mesh = Mesh(np.array(topology.devices[:1]).reshape(1, 1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    arguments = tuple(
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec())) for shape, dtype in shapes
    )
    return compile_function(
        jax.jit(function),
        arguments,
        mesh,
        topology,
        model_flops=2 * 8192**3,
        compiler_options={},
        say=lambda text: None,
    )


@pytest.mark.slow
@pytest.mark.tpu
@needs_libtpu
@pytest.mark.parametrize(
    ("prefix", "share"), [("v4", 0.93), ("v5e", 0.88), ("v5p", 0.90), ("v6e", 0.70), ("tpu7x", 0.80)]
)
def test_large_product_reaches_the_share_of_the_peak_that_the_cost_model_grants(prefix: str, share: float) -> None:
    operand = ((8192, 8192), "bfloat16")
    report = compile_on_one_device(prefix, lambda a, b: a @ b, operand, operand)
    step = report.step_time
    assert step is not None
    assert 2 * 8192**3 / step.matmul / report.topology.generation.peak_flops_per_s == pytest.approx(share, abs=0.01)
    assert report.mfu is not None
    assert report.mfu == pytest.approx(share, abs=0.01)  # of one device, as the mesh has
    assert step.scheduled == pytest.approx(step.matmul)
    assert report.memory.argument == 2 * 8192 * 8192 * 2


@pytest.mark.slow
@pytest.mark.tpu
@needs_libtpu
@pytest.mark.parametrize("prefix", sorted(SMALLEST))
def test_streaming_speed_of_the_table_is_the_cost_models(prefix: str) -> None:
    operand = ((16384, 8192), "float32")
    step = compile_on_one_device(prefix, lambda a, b: a * 2 + b, operand, operand).step_time
    assert step is not None
    assert step.other == pytest.approx(step.other_roof, rel=0.02)


@pytest.mark.slow
@pytest.mark.tpu
@needs_libtpu
@pytest.mark.parametrize("prefix", sorted(SMALLEST))
def test_memory_limit_of_the_table_is_the_compilers(prefix: str) -> None:
    def needs(gib: float) -> CompileReport:
        rows = int(gib * 2**30 / 2 / 4 / 1024)  # one argument and one result of the same size
        return compile_on_one_device(prefix, lambda a: a * 2, ((rows, 1024), "float32"))

    limit = BY_PREFIX[prefix].hbm_bytes / 2**30
    assert needs(limit - 0.1).fits
    report = needs(limit + 0.1)
    assert not report.fits
    assert report.memory.peak > BY_PREFIX[prefix].hbm_bytes


@pytest.mark.slow
@pytest.mark.tpu
@needs_libtpu
@pytest.mark.parametrize("name", ["v5p:2x2x2", "v5e:2x4", "tpu7x:2x2x1"])
def test_committed_programs_still_compile_to_the_same_exchange(name: str) -> None:
    topology = open_topology(name)
    mesh = build_mesh(ParallelConfig(data=1, fsdp=FSDP, context=CONTEXT, tensor=1), topology.devices)
    step, arguments = exchange_step(mesh)
    report = compile_function(step, arguments, mesh, topology, model_flops=0, say=lambda text: None)
    plan = to_json(report)
    assert plan["fits"]
    assert plan["collectives"]["all-gather"]["fsdp"]["count"] == 2 * LAYERS
    assert plan["attention_kernel"] == "doubling_fwd"
    peak = topology.generation.peak_flops_per_s
    assert plan["step_s_parts"]["attention"] == pytest.approx(LAYERS * KERNEL_FLOPS / (0.58 * peak))
    assert report.unknown_loops == ()


@pytest.mark.slow
@pytest.mark.tpu
@needs_libtpu
def test_gather_over_a_whole_torus_stays_a_gather() -> None:
    # libtpu's own default, a mesh without wrap-around, turns it into a zero-filled all-reduce of twice the bytes.
    topology = open_topology("v5p:4x4x4")
    mesh = build_mesh(ParallelConfig(data=1, fsdp=16, context=4, tensor=1), topology.devices)
    spec = PartitionSpec(("fsdp", "context"))

    def gather(weight, x):
        whole = jax.lax.all_gather(weight, ("fsdp", "context"), axis=0, tiled=True)
        return x @ whole

    function = jax.shard_map(gather, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)
    arguments = (
        jax.ShapeDtypeStruct((8192, 8192), "bfloat16", sharding=NamedSharding(mesh, spec)),
        jax.ShapeDtypeStruct((64 * 1024, 8192), "bfloat16", sharding=NamedSharding(mesh, spec)),
    )
    report = compile_function(jax.jit(function), arguments, mesh, topology, model_flops=0, say=lambda text: None)
    assert to_json(report)["collectives"] == {"all-gather": {"fsdp+context": {"count": 1, "bytes": 8192 * 8192 * 2}}}
