"""A recorded run as the planner needs it: its configuration, what it measured, and the machine it ran on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launch.workdir import WorkDir
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.hardware import find_chip
from wamjax.planning.compare import Measured, measure_run
from wamjax.planning.machine import Machine, machine_of_chips
from wamjax.training.records import read_log


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run that has trained.

    Attributes:
      name: Its folder.
      config: Its configuration.
      measured: What it did.
    """

    name: str
    config: RunConfig
    measured: Measured

    def machine(self) -> Machine:
        """Returns the machine it ran on.

        Raises:
          ConfigError: Its devices are no listed chip, or no machine has so many.
        """
        kind, num_devices = self.measured.device_kind, self.measured.num_devices
        chip = find_chip(kind)
        if chip is None:
            raise ConfigError(
                f"{self.name} ran on {kind!r}, which is no listed chip (wamjax/flops/hardware.py has them)"
            )
        if num_devices % chip.devices_per_chip:
            raise ConfigError(f"{self.name} ran on {num_devices} devices of {chip.name}, which is no whole chip")
        return machine_of_chips(f"{kind}:{num_devices // chip.devices_per_chip}")


def read_run(folder: str) -> RecordedRun:
    """Returns the run in ``folder``.

    Raises:
      ConfigError: The folder holds no run, or no ledger.
      DataError: Its files are damaged, or it did too few steps to be timed.
    """
    workdir = WorkDir(Path(folder))
    config = workdir.read_config()
    if not workdir.ledger.is_file():
        raise ConfigError(f"{folder} holds no ledger ({workdir.ledger.name}); name the work directory of a run")
    records, _ = read_log(workdir.ledger)
    events = read_log(workdir.goodput)[0] if workdir.goodput.is_file() else None
    return RecordedRun(name=folder, config=config, measured=measure_run(folder, records, events))
