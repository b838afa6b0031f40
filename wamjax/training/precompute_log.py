"""``ledger.jsonl`` of a precompute job: one line per batch, continued where an earlier process stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wamjax.flops.precompute import PrecomputeLedger
from wamjax.training.records import RecordLog, read_records, rewind


class PrecomputeLog:
    """Appends what a precompute job costs to the ledger of its folder.

    A half-written last line of a killed process is moved aside; what that process had computed of the batch is not
    known and not counted.

    Args:
      folder: Where the job writes; ``ledger.jsonl`` lies in it.
      ledger: A new ledger of the job; it continues after the last record of the folder.

    Raises:
      DataError: The folder's ledger is damaged or of another job.
    """

    def __init__(self, folder: Path, ledger: PrecomputeLedger) -> None:
        path = folder / "ledger.jsonl"
        records = read_records(path)
        if records:
            ledger.resume(records[-1])
        rewind(path, records[-1]["step"] if records else 0)
        self._ledger, self._log = ledger, RecordLog(path)

    def add(self, *, samples: int, runs: Mapping[str, int], seconds: float) -> dict[str, Any]:
        """Accounts one batch (see ``PrecomputeLedger.record``) and returns its line."""
        line = self._ledger.record(samples=samples, runs=runs, seconds=seconds)
        self._log.append(line)
        return line

    def close(self) -> None:
        """Forces the file to disk and closes it."""
        self._log.close()
