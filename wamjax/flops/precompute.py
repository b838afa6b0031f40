"""The ledger of a data precompute job: what frozen encoders cost that ran once, before training.

One record per batch of such a job, of kind ``precompute``, in the ``ledger.jsonl`` of the folder the job writes to,
with the sums so far, as in the ledger of a run. Writes no file (``training.precompute_log`` does).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from wamjax.errors import DataError
from wamjax.flops.ledger import ENCODERS, zflops
from wamjax.flops.utilisation import Denominator

PRECOMPUTE = "precompute"


@dataclasses.dataclass(kw_only=True)
class PrecomputeLedger:
    """Accumulates the cost of a precompute job over all its resumptions.

    Attributes:
      job: What is computed, such as ``latents``.
      flops_per_run: FLOPs of one forward pass of each encoder that runs, by ``ENCODERS``.
      denominator: Devices, dtype and their listed peak, for utilisation.
    """

    job: str
    flops_per_run: Mapping[str, int]
    denominator: Denominator

    def __post_init__(self) -> None:
        assert set(self.flops_per_run) <= set(ENCODERS), f"{sorted(self.flops_per_run)} are not of {ENCODERS}"
        self._totals: dict[str, Any] = {
            "step": 0,
            "samples": 0,
            "runs": dict.fromkeys(ENCODERS, 0),
            "encoder_flops": dict.fromkeys(ENCODERS, 0),
            "seconds": 0.0,
        }

    def resume(self, record: Mapping[str, Any]) -> None:
        """Continues after ``record``, the last one of the folder.

        Raises:
          DataError: It is not of this job.
        """
        if record.get("kind") != PRECOMPUTE or record.get("job") != self.job:
            raise DataError(
                f"the ledger of this folder is of {record.get('job', 'a training run')!r} and this job makes "
                f"{self.job!r}; write to another folder"
            )
        totals = {key: record[key] for key in ("step", "samples", "runs", "encoder_flops")}
        self._totals = copy.deepcopy({**totals, "seconds": record["wall"]["seconds"]})

    def record(self, *, samples: int, runs: Mapping[str, int], seconds: float) -> dict[str, Any]:
        """Adds one batch and returns its line of ``ledger.jsonl``.

        Args:
          samples: Samples it completed.
          runs: Forward passes of each encoder: fewer than samples where a prompt is shared, more where clips overlap.
          seconds: Wall-clock seconds it took.
        """
        totals = self._totals
        totals["step"] += 1
        totals["samples"] += samples
        totals["seconds"] += seconds
        spent = 0
        for name, count in runs.items():
            totals["runs"][name] += count
            totals["encoder_flops"][name] += count * self.flops_per_run[name]
            spent += count * self.flops_per_run[name]
        utilisation = self.denominator.utilisation(spent, seconds)
        return {
            "kind": PRECOMPUTE,
            "job": self.job,
            **copy.deepcopy({key: totals[key] for key in ("step", "samples", "runs", "encoder_flops")}),
            "zflops": zflops(totals["encoder_flops"]),
            "wall": {
                "step_s": seconds,
                "seconds": totals["seconds"],
                "num_devices": self.denominator.num_devices,
                "device_kind": self.denominator.device_kind,
                "mfu": utilisation,
                "mfu_denominator": None if utilisation is None else self.denominator.describe(),
                "mfu_reason": self.denominator.reason_unknown if utilisation is None else None,
            },
        }
