"""Says what a run needs before it has chips: mesh, shardings and FLOPs, and with --compile memory, exchange and time.

  wamjax plan --config=experiments/quickstart.py --topology=v5e:2x4 --compile --json=plan.json

--compile compiles the very step that would train, for the TPU slice of --topology, on a machine without TPUs (Linux on
x86-64 with libtpu; minutes for a large model). Memory and schedule are the compiler's own; times are an estimate whose
assumptions are printed. A step that does not fit is an answer too: exit status 0, and the JSON says "fits": false.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from launch.experiment import config_from_flags, define_config_flag
from wamjax.errors import ConfigError
from wamjax.flops.model import count_flops
from wamjax.flops.summary import describe as describe_flops
from wamjax.parallel.mesh import build_mesh
from wamjax.planning.ahead import CompileReport, compile_step, to_json
from wamjax.planning.summary import describe
from wamjax.planning.topology import open_topology
from wamjax.training.program import TrainProgram, build_program, describe_sharding


def define_flags() -> None:
    """Defines the flags of ``wamjax plan``."""
    define_config_flag()
    flags.DEFINE_string("topology", None, "TPU slice to plan for, such as v5p:4x4x4 or v6e:16x16.", required=True)
    flags.DEFINE_bool("compile", False, "Compile the training step for the slice.")
    flags.DEFINE_string("json", None, "Write the plan to this file.")
    flags.DEFINE_string("hlo", None, "Write the compiled program's text to this file (with --compile).")


def run(argv: list[str]) -> int:
    """Plans and prints; returns 0."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; wamjax plan takes flags only (see wamjax plan --help)")
    values = flags.FLAGS
    if values.hlo and not values.compile:
        raise ConfigError(f"--hlo={values.hlo} needs --compile: without it there is no compiled program")
    for name in ("json", "hlo"):
        _check_writable(name, values[name].value)
    config = config_from_flags()
    topology = open_topology(values.topology)
    program = build_program(config, build_mesh(config.parallel, topology.devices))
    print(f"{describe_sharding(program)}\n\n{_describe_flops(program)}", flush=True)
    report = None
    if values.compile:
        with _progress() as say:
            report = compile_step(program, topology, say)
        print(f"\n{describe(report)}")
    if values.json:
        Path(values.json).write_text(json.dumps(_plan(program, report), indent=2) + "\n")
    if values.hlo and report is not None and report.fits:
        Path(values.hlo).write_text(report.hlo)
    return 0


def _describe_flops(program: TrainProgram) -> str:
    count, batch = count_flops(program.config, program.layout), program.config.train.global_batch_size
    return (
        f"{describe_flops(count)}\nper step of {batch} samples: {batch * count.model_total:,} model FLOPs, "
        f"{batch * count.hardware_total:,} hardware FLOPs"
    )


def _plan(program: TrainProgram, report: CompileReport | None) -> dict[str, Any]:
    """Returns the plan as JSON holds it."""
    count, batch = count_flops(program.config, program.layout), program.config.train.global_batch_size
    plan: dict[str, Any] = {
        "name": program.config.name,
        "mesh": dict(program.mesh.shape),
        "global_batch_size": batch,
        "num_parameters": count.num_parameters,
        "flops_per_step": {"model": batch * count.model_total, "hardware": batch * count.hardware_total},
    }
    return plan if report is None else {**plan, "compile": to_json(report)}


def _check_writable(flag: str, name: str | None) -> None:
    """Raises ``ConfigError`` before minutes of compiling, if the file could not be written after them."""
    if name and not Path(name).absolute().parent.is_dir():
        raise ConfigError(f"--{flag}={name}: no folder {Path(name).parent}; create it or name another file")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yields ``say(phase)``: one line on stderr per phase, and in a terminal the seconds it has taken so far."""
    phase, began, stop = "", time.monotonic(), threading.Event()

    def say(text: str) -> None:
        nonlocal phase, began
        phase, began = text, time.monotonic()
        print(f"\n{text} ..." if sys.stderr.isatty() else f"{text} ...", end="", file=sys.stderr, flush=True)
        if not sys.stderr.isatty():
            print(file=sys.stderr, flush=True)

    def tick() -> None:
        while not stop.wait(1.0):
            print(f"\r{phase} ... {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    if sys.stderr.isatty():
        ticker.start()
    try:
        yield say
    finally:
        stop.set()
        if ticker.is_alive():
            ticker.join()
        if sys.stderr.isatty():
            print(file=sys.stderr)
