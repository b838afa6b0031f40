"""The part of ``wamjax plan`` that builds the program: its table of shardings, and what compiling it says.

Apart from the rest because building imports the model, the optimizer and libtpu.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wamjax.parallel.mesh import build_mesh
from wamjax.planning.ahead import CompileReport, compile_step
from wamjax.planning.ahead import to_json as report_to_json
from wamjax.planning.plan import Plan
from wamjax.planning.summary import describe
from wamjax.planning.topology import open_topology
from wamjax.training.program import build_program, describe_sharding

_GIB = 2**30


def build(plan: Plan, *, topology: str, is_compiled: bool, hlo: str | None) -> dict[str, Any]:
    """Builds the program of ``plan``, prints its shardings and, if asked, compiles it.

    Args:
      plan: The plan.
      topology: Name of the TPU slice.
      is_compiled: Whether the step is compiled.
      hlo: File for the compiled program's text.

    Returns:
      What the plan's JSON gets: ``compile``, if the step was compiled.
    """
    slice_ = open_topology(topology)
    program = build_program(
        plan.config, build_mesh(plan.config.parallel, slice_.devices, batch_size=plan.config.train.part_size)
    )
    print(f"\n{describe_sharding(program)}", flush=True)
    if not is_compiled:
        return {}
    with _progress() as say:
        report = compile_step(program, slice_, say)
    print(f"\n{describe(report)}\n\n{compare_memory(plan, report)}")
    if hlo and report.fits:
        Path(hlo).write_text(report.hlo)
    planned = _planned(plan)
    beside = {"peak_planned_bytes": planned, "peak_planned_error": planned / report.memory.peak - 1}
    return {"compile": {**report_to_json(report), **beside}}


def compare_memory(plan: Plan, report: CompileReport) -> str:
    """Returns one line: the planned memory of a device beside the compiler's, and the difference."""
    planned, peak = _planned(plan), report.memory.peak
    return (
        f"memory of one device: planned {planned / _GIB:.2f} GiB, compiled {peak / _GIB:.2f} GiB "
        f"({(planned - peak) / peak:+.1%})"
    )


def _planned(plan: Plan) -> int:
    assert plan.on is not None, "a program is built for a machine"
    return plan.on.memory.total


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
