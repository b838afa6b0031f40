"""Writes the files of a run without running it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from launch.workdir import WorkDir
from tests.tiny import TINY
from wamjax.config.schema import RunConfig
from wamjax.flops.ledger import Ledger
from wamjax.flops.model import FlopCount
from wamjax.flops.utilisation import Denominator
from wamjax.training.records import RecordLog, rewind

V5P = Denominator(device_kind="TPU v5", num_devices=4, dtype="bfloat16")
STEP_S = 1.5


class RecordedRun:
    """A work directory to which steps and events are written as the trainer would."""

    def __init__(
        self,
        path: Path,
        count: FlopCount,
        *,
        config: RunConfig = TINY,
        denominator: Denominator = V5P,
        num_steps: int = 6,
    ) -> None:
        self.workdir = WorkDir(path)
        path.mkdir()
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=num_steps))
        self.workdir.run_json.write_text(json.dumps({"config": dataclasses.asdict(config)}))
        self._count, self._denominator = count, denominator
        self.ledger = self._new()
        self.log, self.time = RecordLog(self.workdir.ledger), RecordLog(self.workdir.goodput)

    def _new(self) -> Ledger:
        return Ledger(count=self._count, samples_per_step=8, denominator=self._denominator)

    def steps(self, first: int, last: int, step_s: float = STEP_S) -> None:
        for step in range(first, last + 1):
            self.log.append(self.ledger.record(step, 1.0, step_s))

    def event(self, event: str, step: int, **fields: Any) -> None:
        self.time.append({"event": event, "step": step, "unix_s": 0.0, **fields})

    def resume(self, totals: dict[str, Any], step: int) -> None:
        rewind(self.workdir.ledger, step)
        self.log = RecordLog(self.workdir.ledger)
        self.ledger = self._new()
        self.ledger.resume(totals)
