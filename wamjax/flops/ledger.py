"""The run ledger: what has been computed so far, exactly, and how fast.

One record per step. The deterministic part (step, samples, tokens, FLOPs, loss) depends on the configuration and the
data only: integers stay Python integers, so two runs, or a run and its resumption, can be compared bit for bit. What
a clock measured (times, chip-seconds, utilisation) and where it ran lies apart, under ``wall``.

The ledger writes no file: the loop appends ``record`` to ``ledger.jsonl`` and stores ``totals`` in every checkpoint.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from wamjax.errors import ConfigError
from wamjax.flops.model import FlopCount
from wamjax.flops.utilisation import Denominator

ZETTA = 10**21
# Frozen networks that make what a model reads: their forward passes count where they run, not where outputs are cached.
ENCODERS = ("vae", "text", "image")
_DETERMINISTIC = (
    "step",
    "skipped",
    "samples",
    "sources",
    "tokens",
    "model_flops",
    "hardware_flops",
    "encoder_flops",
    "evaluation",
)


@runtime_checkable
class SampleSources(Protocol):
    """What the data pipeline tells of where samples come from."""

    @property
    def num_windows(self) -> Mapping[str, int]:
        """Training windows of each dataset by name: the samples of one epoch of it."""
        ...

    def count_samples(self, position: int) -> Mapping[str, int]:
        """Returns how many of the first ``position`` samples of the stream come from each dataset."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one step costs.

    Attributes:
      count: FLOPs and tokens of one sample.
      samples: Global batch size.
      sources: Where its samples come from; None where that is not known.
    """

    count: FlopCount
    samples: int
    sources: SampleSources | None = None

    def count_sources(self, samples: int) -> dict[str, int]:
        """Returns how many of the first ``samples`` of such steps come from each dataset."""
        return dict(self.sources.count_samples(samples)) if self.sources else {}


@dataclasses.dataclass(kw_only=True)
class Ledger:
    """Accumulates the cost of a run over all its resumptions.

    Attributes:
      count: FLOPs and tokens of one sample; in a run in buckets, of any one of them.
      samples_per_step: Global batch size.
      buckets: What a step of each bucket costs, by name; none: all steps cost the same.
      evaluation_samples: Samples of one validation by bucket, in a run in buckets.
      denominator: Devices, dtype and their listed peak, for utilisation.
      encoders: FLOPs of the frozen encoders that run for one sample, by ``ENCODERS``; none where outputs are cached.
      sources: Where the samples come from; None where that is not known.
    """

    count: FlopCount
    samples_per_step: int
    denominator: Denominator
    encoders: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sources: SampleSources | None = None
    buckets: Mapping[str, StepCost] = dataclasses.field(default_factory=dict)
    evaluation_samples: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        assert set(self.encoders) <= set(ENCODERS), f"encoders {sorted(self.encoders)} are not of {ENCODERS}"
        self._totals: dict[str, Any] = {
            "step": 0,
            "skipped": 0,
            "samples": 0,
            "sources": self._cost("").count_sources(0),
            "tokens": dict.fromkeys(self.count.tokens, 0),
            "model_flops": dict.fromkeys(self.count.model, 0),
            "hardware_flops": dict.fromkeys(self.count.hardware, 0),
            "encoder_flops": dict.fromkeys(ENCODERS, 0),
            "evaluation": {"samples": 0, "hardware_flops": 0},
            "wall": {"seconds": 0.0, "device_seconds": 0.0, "chip_seconds": 0.0},
        }
        if self.buckets:
            self._totals["buckets"] = dict.fromkeys(self.buckets, 0)
            for cost in self.buckets.values():
                self._totals["sources"] |= cost.count_sources(0)

    @property
    def totals(self) -> dict[str, Any]:
        """A copy of the sums so far, JSON-able, for the checkpoint; all but ``wall`` is deterministic."""
        return copy.deepcopy(self._totals)

    def resume(self, totals: Mapping[str, Any]) -> None:
        """Continues from the ``totals`` of a checkpoint.

        Raises:
          ConfigError: ``totals`` are not those of a ledger, or hold other streams or components than this run.
        """
        totals = {"encoder_flops": dict.fromkeys(ENCODERS, 0), **totals}  # a run older than that count had none
        if "sources" not in totals and "samples" in totals:  # older than that count: all came from the one dataset
            totals["sources"] = self._cost("").count_sources(totals["samples"])
        for field in (*_DETERMINISTIC, "wall"):
            if field not in totals:
                raise ConfigError(
                    f"the ledger totals of the checkpoint lack {field!r}: it was written by another version; start a "
                    "new work directory"
                )
        for field in ("tokens", "model_flops", "hardware_flops", "encoder_flops"):
            if set(totals[field]) != set(self._totals[field]):
                raise ConfigError(
                    f"the ledger of the checkpoint counts {field} by {sorted(totals[field])}, this run by "
                    f"{sorted(self._totals[field])}: the work directory belongs to another configuration"
                )
        fresh = self._totals  # what joins now, a source or a bucket, begins at 0
        self._totals = copy.deepcopy({key: totals.get(key, {}) for key in fresh})
        for field in ("sources", "buckets"):
            if field in fresh:
                self._totals[field] = {**dict.fromkeys(fresh[field], 0), **self._totals[field]}

    def record(
        self, step: int, loss: float, step_s: float | None, *, is_skipped: bool = False, bucket: str = ""
    ) -> dict[str, Any]:
        """Adds one training step and returns its line of ``ledger.jsonl``.

        Args:
          step: Optimizer updates after this step: one more than the last recorded.
          loss: Its total loss.
          step_s: Wall-clock seconds it took; None where they were not measured.
          is_skipped: Whether its update was skipped. It has cost what any step costs.
          bucket: Which bucket it was of, in a run in buckets.

        Returns:
          The deterministic sums, this step's share of them under ``this_step``, and ``wall``.

        Raises:
          ValueError: ``step`` leaves a gap or was counted before.
        """
        if step != self._totals["step"] + 1:
            raise ValueError(
                f"the ledger stands at step {self._totals['step']} and was given step {step}: each step is counted "
                "exactly once (resume the ledger from the checkpoint the state came from)"
            )
        cost = self._cost(bucket)
        self._totals["step"] = step
        self._totals["skipped"] += is_skipped
        begin = self._totals["buckets"][bucket] if self.buckets else self._totals["samples"]
        self._totals["samples"] += cost.samples
        if self.buckets:
            self._totals["buckets"][bucket] += cost.samples
        # Added step by step: a run that goes on with another mixture keeps what it has read of the former one.
        before, after = cost.count_sources(begin), cost.count_sources(begin + cost.samples)
        for name, samples in after.items():
            self._totals["sources"][name] += samples - before[name]
        for field, per_sample in (
            ("tokens", cost.count.tokens),
            ("model_flops", cost.count.model),
            ("hardware_flops", cost.count.hardware),
            ("encoder_flops", self.encoders),
        ):
            for name, amount in per_sample.items():
                self._totals[field][name] += cost.samples * amount
        totals = self.totals
        return {
            **{field: totals[field] for field in _DETERMINISTIC},
            **({"bucket": bucket, "buckets": totals["buckets"]} if self.buckets else {}),
            "epochs": self._epochs,
            "zflops": zflops(totals["model_flops"]),
            "hardware_zflops": zflops(totals["hardware_flops"]),
            **self._evaluation_cost(),
            "this_step": {
                "is_skipped": is_skipped,
                "model_flops": cost.samples * cost.count.model_total,
                "hardware_flops": cost.samples * cost.count.hardware_total,
            },
            "loss": loss,
            "wall": self._clock(step_s, cost),
        }

    def record_evaluation(self, num_samples: int, *, bucket: str = "") -> None:
        """Adds the forward passes of an evaluation over ``num_samples`` samples; it is no part of any utilisation."""
        evaluation = self._totals["evaluation"]
        evaluation["samples"] += num_samples
        evaluation["hardware_flops"] += num_samples * self._evaluation_flops(bucket)

    def _cost(self, bucket: str) -> StepCost:
        """Returns what a step of a bucket costs; without buckets, or before any step, what all steps cost."""
        if bucket:
            return self.buckets[bucket]
        return StepCost(count=self.count, samples=self.samples_per_step, sources=None if self.buckets else self.sources)

    @property
    def _epochs(self) -> dict[str, float]:
        """How often each dataset was read, on average over its windows; not told of one that the run no longer has."""
        windows = self.sources.num_windows if self.sources else {}
        return {n: samples / windows[n] for n, samples in self._totals["sources"].items() if windows.get(n)}

    def _evaluation_flops(self, bucket: str) -> int:
        """What one sample of a validation costs."""
        return sum(self._cost(bucket).count.hardware_forward.values()) + sum(self.encoders.values())

    def _evaluation_cost(self) -> dict[str, int]:
        """What tells the cost of a validation that no line has in it: of a sample, or of all samples of the buckets."""
        if not self.buckets:
            return {"evaluation_flops_per_sample": self._evaluation_flops("")}
        costs = [samples * self._evaluation_flops(bucket) for bucket, samples in self.evaluation_samples.items()]
        return {"evaluation_flops_per_validation": sum(costs)}

    def _clock(self, step_s: float | None, cost: StepCost) -> dict[str, Any]:
        """Adds the step's time and returns the ``wall`` part of its record."""
        wall, chips = self._totals["wall"], self.denominator.num_chips
        reason = self.denominator.reason_unknown
        mfu = hfu = None
        if step_s is None:
            reason = reason or "the time of this step was not measured"
        else:
            wall["seconds"] += step_s
            wall["device_seconds"] += step_s * self.denominator.num_devices
            wall["chip_seconds"] += step_s * float(chips) if chips is not None else 0.0
            mfu = self.denominator.utilisation(cost.samples * cost.count.model_total, step_s)
            hfu = self.denominator.utilisation(cost.samples * cost.count.hardware_total, step_s)
        return {
            "step_s": step_s,
            "seconds": wall["seconds"],
            "device_seconds": wall["device_seconds"],
            # An unlisted device (a CPU) is no known number of chips: only time on listed chips is chip time.
            "chip_seconds": wall["chip_seconds"] if chips is not None or wall["chip_seconds"] else None,
            "num_devices": self.denominator.num_devices,
            "device_kind": self.denominator.device_kind,
            "mfu": mfu,
            "hfu": hfu,
            "mfu_denominator": None if mfu is None else self.denominator.describe(),
            "mfu_reason": reason if mfu is None else None,
        }


def zflops(by_component: Mapping[str, int]) -> float:
    """Returns the sum in units of 1e21 FLOPs."""
    return sum(by_component.values()) / ZETTA
