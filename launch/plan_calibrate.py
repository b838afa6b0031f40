"""Fits the planner's efficiencies to the step times of runs, and writes them for --efficiencies.

  wamjax plan calibrate runs/a runs/b --json=fitted.json
  wamjax plan --config=FILE --chips=h200:8 --efficiencies=fitted.json

All runs must have been on chips of one family. What their times do not tell keeps its assumed value.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from absl import flags

from launch.output import check_writable
from launch.run_records import RecordedRun, read_run
from wamjax.errors import ConfigError
from wamjax.planning.calibrate import Observation, describe, fit_efficiencies, observe
from wamjax.planning.efficiency import efficiencies_of


def define_flags() -> None:
    """Defines the flags of ``wamjax plan calibrate``."""
    flags.DEFINE_string("json", None, "Write the fitted efficiencies to this file.")


def run(argv: list[str]) -> int:
    """Prints the fit and writes it; returns 0."""
    if not argv:
        raise ConfigError("wamjax plan calibrate takes work directories of runs; name at least one")
    values = flags.FLAGS
    check_writable("json", values.json)
    runs = [read_run(folder) for folder in argv]
    machines = [recorded.machine() for recorded in runs]
    assumed = [efficiencies_of(machine.chip.name) for machine in machines]
    for recorded, machine, efficiencies in zip(runs, machines, assumed, strict=True):
        if efficiencies is not assumed[0]:
            raise ConfigError(
                f"{recorded.name} ran on {machine.chip.name} and {runs[0].name} on {machines[0].chip.name}: chips of "
                "two families have efficiencies of their own; calibrate them one at a time"
            )
    observed = [_observe(recorded) for recorded in runs]
    fit = fit_efficiencies(assumed[0], observed)
    print(describe(assumed[0], fit))
    if values.json:
        Path(values.json).write_text(json.dumps(fit.to_json(), indent=2) + "\n")
    return 0


def _observe(recorded: RecordedRun) -> Observation:
    """Returns a run's median step time with the standard error of it."""
    measured = recorded.measured
    low, high = measured.spread_s
    # Ten to ninety percent of a normal distribution are 2.56 standard deviations.
    error = (high - low) / 2.56 / measured.step_s / math.sqrt(measured.num_timed)
    return observe(recorded.name, recorded.config, recorded.machine(), measured.step_s, error)
