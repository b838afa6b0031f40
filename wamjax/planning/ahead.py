"""Compiles a training step ahead of time for a TPU slice, and reads from the result what the step will need.

The step is the one that trains: same jitted function, shardings, optimizer and batch, from abstract values. Memory and
schedule are the compiler's own answer; collectives are read off the compiled program; time is an estimate
(``planning.estimate``). A program too large for the chips is an answer, not an error.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from wamjax.batch import WamBatch, batch_spec
from wamjax.config.blocks import main_block
from wamjax.errors import ConfigError
from wamjax.flops.model import count_flops
from wamjax.flops.utilisation import Denominator
from wamjax.parallel.mesh import batch_sharding
from wamjax.planning.collectives import Use, list_collectives, tabulate
from wamjax.planning.estimate import StepTime, estimate_step
from wamjax.planning.hlo import Module, parse_module
from wamjax.planning.ici import Torus, build_torus
from wamjax.planning.loops import visit_computations
from wamjax.planning.topology import Topology
from wamjax.training.program import TrainProgram

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_TOO_LARGE = re.compile(r"\(([\d.]+)([KMGTP]?)\) exceeds available HBM \(([\d.]+)([KMGTP]?)\)")
_BUFFER = re.compile(r"^\s*[\d.]+\w+\(\s*\d+%\);\s*([\d.]+)([KMGTP]?)i?B;\s*\d+;\s*\d+;\s*(.*)$", re.MULTILINE)
_NUM_BUFFERS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device; ``host`` is the host's memory for it.

    Of a program that does not fit, the compiler says only what it would need in all: ``peak``.
    """

    argument: int
    output: int | None
    alias: int | None
    temp: int | None
    host: int | None
    peak: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileReport:
    """What compiling a step for a slice says.

    Attributes:
      topology: The slice.
      mesh: Its mesh.
      torus: Where the mesh's devices are.
      compiler_options: What the compiler was told.
      seconds: Lowering and compiling, on this machine.
      memory: Bytes of one device.
      fits: Whether the compiler could place the program in memory.
      largest_buffers: (bytes, what shares them) of the largest allocations, largest first.
      module: The compiled program, and ``hlo`` its text; None if it does not fit.
      hlo: See ``module``.
      collectives: What ``module`` exchanges.
      step_time: How long it takes.
      mfu: Model FLOP utilisation of the scheduled time, against the listed peak; None where none is listed.
      unknown_loops: Loops whose trip count could not be read, counted once.
    """

    topology: Topology
    mesh: Mesh
    torus: Torus
    compiler_options: Mapping[str, bool | int | str]
    seconds: float
    memory: Memory
    fits: bool
    largest_buffers: tuple[tuple[int, str], ...]
    module: Module | None = None
    hlo: str = ""
    collectives: tuple[Use, ...] = ()
    step_time: StepTime | None = None
    mfu: float | None = None
    unknown_loops: tuple[str, ...] = ()


def abstract_batch(program: TrainProgram) -> WamBatch:
    """Returns the shapes and shardings of one global batch of ``program``."""
    sharding = batch_sharding(program.mesh)
    spec = batch_spec(program.config, program.config.train.global_batch_size)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), spec)


def find_replicated(tree: Any, min_bytes: int) -> dict[str, int]:
    """Returns path -> bytes of the arrays of at least ``min_bytes`` that every device of their mesh holds whole.

    Args:
      tree: Abstract or concrete arrays with shardings, such as ``TrainProgram.abstract_state``.
      min_bytes: The smallest that counts.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        num_bytes = leaf.size * leaf.dtype.itemsize
        if num_bytes >= min_bytes and leaf.sharding.is_fully_replicated:
            found[jax.tree_util.keystr(path, simple=True, separator=".")] = num_bytes
    return found


def compile_step(program: TrainProgram, topology: Topology, say: Callable[[str], None] = print) -> CompileReport:
    """Compiles one training step of ``program``, whose mesh is of the devices of ``topology``.

    Args:
      program: The program.
      topology: The slice.
      say: Told what is being done.

    Raises:
      ConfigError: The compiler refuses the program for another reason than its memory.
    """
    flops = count_flops(program.config, program.layout).model_total * program.config.train.global_batch_size
    arguments = (program.abstract_state, abstract_batch(program))
    dtype = main_block(program.config).compute_dtype
    return compile_function(program.step, arguments, program.mesh, topology, model_flops=flops, dtype=dtype, say=say)


def compile_function(
    function: Any,
    arguments: tuple[Any, ...],
    mesh: Mesh,
    topology: Topology,
    *,
    model_flops: int,
    dtype: str = "bfloat16",
    compiler_options: Mapping[str, bool | int | str] | None = None,
    say: Callable[[str], None] = print,
) -> CompileReport:
    """Compiles the jitted ``function`` of abstract ``arguments``; see ``compile_step``.

    Args:
      function: As ``jax.jit`` returns it.
      arguments: ``jax.ShapeDtypeStruct`` with shardings over ``mesh``.
      mesh: Of the devices of ``topology``.
      topology: The slice.
      model_flops: Of one call on all chips: the numerator of MFU.
      dtype: Of its products: which listed peak MFU is a share of.
      compiler_options: Instead of the generation's own.
      say: Told what is being done.
    """
    torus = build_torus(topology.generation, list(mesh.devices.flat))
    chosen = topology.generation.compiler_options if compiler_options is None else compiler_options
    start = time.monotonic()
    say("tracing the step")
    lowered = function.lower(*arguments)
    say(f"compiling for {topology.name}, {topology.num_chips} chips")
    with tempfile.TemporaryDirectory() as dump:
        options = {**chosen, "xla_dump_to": dump, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            seconds = time.monotonic() - start
            memory = Memory(
                argument=_argument_bytes(arguments), output=None, alias=None, temp=None, host=None,
                peak=_required_bytes(str(error), topology),
            )  # fmt: skip
            return CompileReport(
                topology=topology, mesh=mesh, torus=torus, compiler_options=chosen, seconds=seconds, memory=memory,
                fits=False,
                largest_buffers=_largest_buffers(Path(dump)),
            )  # fmt: skip
        seconds = time.monotonic() - start
        # The dump, not ``compiled.as_text()``, which libtpu 0.0.51 fails to print for tpu7x.
        text = _dumped(Path(dump), "after_codegen.txt") or compiled.as_text()
        buffers = _largest_buffers(Path(dump))
    say("reading the compiled program")
    module = parse_module(text)
    step_time = estimate_step(module, topology.generation, torus)
    denominator = Denominator(device_kind=topology.generation.device_kind, num_devices=mesh.size, dtype=dtype)
    return CompileReport(
        topology=topology,
        mesh=mesh,
        torus=torus,
        compiler_options=chosen,
        seconds=seconds,
        memory=_memory(compiled.memory_analysis()),
        fits=True,
        largest_buffers=buffers,
        module=module,
        hlo=text,
        collectives=tuple(list_collectives(module, dict(mesh.shape))),
        step_time=step_time,
        mfu=denominator.utilisation(model_flops, step_time.scheduled),
        unknown_loops=tuple(visit_computations(module)[1]),
    )


def to_json(report: CompileReport) -> dict[str, Any]:
    """Returns ``report`` as the value of the key ``compile`` in a plan's JSON. Sizes in bytes, times in seconds."""
    memory, step, chip = report.memory, report.step_time, report.topology.generation
    parts = ("matmul", "other", "attention", "ici", "ici_synchronous", "host")
    return {
        "topology": report.topology.name,
        "num_chips": report.topology.num_chips,
        "num_devices": report.mesh.size,
        "mesh": dict(report.mesh.shape),
        "seconds": report.seconds,
        **{f"{name}_bytes": getattr(memory, name) for name in ("argument", "output", "alias", "temp", "host", "peak")},
        "hbm_bytes": chip.hbm_bytes,
        "fits": report.fits,
        "largest_buffers": [{"bytes": size, "arrays": arrays} for size, arrays in report.largest_buffers],
        "collectives": tabulate(report.collectives) if step else None,
        "attention_kernel": ", ".join(step.kernels) or "xla" if step else None,
        "step_s": {name: getattr(step, name) for name in ("overlapped", "scheduled", "exposed")} if step else None,
        "step_s_parts": {name: getattr(step, name) for name in parts} if step else None,
        "step_s_roof": {"other": step.other_roof, "scheduled": step.scheduled_roof} if step else None,
        "mfu_scheduled": report.mfu,
        "unpriced_kernels": list(step.unpriced) if step else None,
        "unknown_loops": list(report.unknown_loops),
        "assumptions": assumptions(report),
    }


def assumptions(report: CompileReport) -> dict[str, Any]:
    """Returns what the estimate takes for granted."""
    chip = report.topology.generation
    return {
        "chip": chip.chip.name,
        "clock_hz": chip.clock_hz,
        "peak_flops_per_s_per_device": chip.peak_flops_per_s,
        "attention_forward_fraction": chip.forward_fraction,
        "attention_backward_fraction": chip.backward_fraction,
        "link_bytes_per_s": report.torus.link_bytes_per_s,
        "torus": list(report.torus.sizes),
        "wraps": list(report.torus.wraps),
        "streaming_bytes_per_s": chip.streaming_bytes_per_s,
        "host_bytes_per_s": chip.host_bytes_per_s,
        "compiler_options": dict(report.compiler_options),
        "unverified": list(chip.unverified),
    }


def _memory(stats: Any) -> Memory:
    """Reads XLA's memory statistics. With host offload their peak counts the host's memory, so it is not used then."""
    host = stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes + stats.host_output_size_in_bytes
    argument, temp = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    return Memory(
        argument=argument,
        output=stats.output_size_in_bytes,
        alias=stats.alias_size_in_bytes,
        temp=temp,
        host=host,
        peak=argument + temp if host else stats.peak_memory_in_bytes,
    )


def _argument_bytes(arguments: tuple[Any, ...]) -> int:
    """Bytes of the arguments on one device."""
    leaves = jax.tree.leaves(arguments)
    return sum(
        jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype).size * leaf.dtype.itemsize
        for leaf in leaves
    )


def _required_bytes(message: str, topology: Topology) -> int:
    """Returns the bytes that the compiler says it would need.

    Raises:
      ConfigError: The message is about something else than device memory.
    """
    match = _TOO_LARGE.search(message)
    if not message.startswith("RESOURCE_EXHAUSTED") or match is None:
        first_lines = " ".join(message.split())[:400]
        raise ConfigError(f"the compiler refuses the step for --topology={topology.name}: {first_lines}")
    return int(float(match[1]) * _UNITS[match[2]])


def _dumped(folder: Path, suffix: str) -> str | None:
    """Returns the dumped text of the whole module, the largest of its kind: parts for other cores lie beside it."""
    files = sorted(folder.glob(f"*.{suffix}"), key=lambda path: path.stat().st_size)
    return files[-1].read_text() if files else None


def _largest_buffers(folder: Path) -> tuple[tuple[int, str], ...]:
    """Returns (bytes, arrays that take turns in them) of the largest allocations, from the compiler's memory report."""
    text = _dumped(folder, "after_optimizations-memory-usage-report.txt") or ""
    first_table = text.split("\n\n", 1)[0]  # of device memory, by size; other orders and memories follow
    rows = [(int(float(size) * _UNITS[unit]), arrays) for size, unit, arrays in _BUFFER.findall(first_table)]
    return tuple(sorted(rows, key=lambda row: -row[0])[:_NUM_BUFFERS])
