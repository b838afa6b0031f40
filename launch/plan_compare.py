"""Lays a run beside its plan: FLOPs, step time, utilisation, waiting for data, where the time went, chip-hours.

  wamjax plan compare runs/pretrain [--efficiencies=fitted.json] [--json=comparison.json]

The plan is of the run's own configuration, as many steps as it has done, on the chips it ran on; --topology or --chips
takes others.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from absl import flags

from launch.output import check_writable
from launch.plan_command import define_machine_flags, define_price_flags, efficiencies_from_flags, machine_from_flags
from launch.run_records import read_run
from wamjax.errors import ConfigError
from wamjax.planning.compare import compare, describe
from wamjax.planning.cost import load_prices
from wamjax.planning.plan import make_plan
from wamjax.planning.plan_json import to_json
from wamjax.planning.run_length import Wanted


def define_flags() -> None:
    """Defines the flags of ``wamjax plan compare``."""
    define_machine_flags()
    define_price_flags()
    flags.DEFINE_string("json", None, "Write the comparison to this file.")


def run(argv: list[str]) -> int:
    """Prints the comparison; returns 0."""
    if len(argv) != 1:
        raise ConfigError(f"wamjax plan compare takes the work directory of one run, not {len(argv)} arguments")
    values = flags.FLAGS
    check_writable("json", values.json)
    recorded = read_run(argv[0])
    machine, reason = machine_from_flags(), ""
    if machine is None:
        try:
            machine = recorded.machine()
        except ConfigError as error:
            reason = f"{error}; --chips plans for another machine"
    prices = load_prices(values.prices)
    if prices.warning and machine is not None:
        print(f"WARNING: {prices.warning}", file=sys.stderr)
    plan = make_plan(
        recorded.config,
        machine=machine,
        wanted=Wanted(steps=recorded.measured.steps),
        efficiencies=None if machine is None else efficiencies_from_flags(machine),
        prices=prices,
    )
    if plan.on is not None and plan.on.time is None:
        reason = plan.on.no_time
    rows = compare(to_json(plan), recorded.measured)
    where = "no machine" if machine is None else machine.name
    actual = f"{recorded.measured.num_devices} x {recorded.measured.device_kind}"
    print(f"{recorded.name}: {recorded.measured.steps:,} steps, planned for {where}, run on {actual}")
    if reason:
        print(f"no planned time: {reason}")
    print(describe(rows))
    if values.json:
        comparison = {
            "run": recorded.name,
            "steps": recorded.measured.steps,
            "planned_for": None if machine is None else machine.name,
            "ran_on": {"device_kind": recorded.measured.device_kind, "num_devices": recorded.measured.num_devices},
            "no_planned_time": reason or None,
            "rows": [row.to_json() for row in rows],
        }
        Path(values.json).write_text(json.dumps(comparison, indent=2) + "\n")
    return 0
