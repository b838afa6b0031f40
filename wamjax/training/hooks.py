"""What the loop tells the outside world: one report per step, and hooks that act on it every so often.

Owns the report and the hooks that write records. Console, progress bar and TensorBoard are in ``training.console``.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from wamjax.flops.goodput import END, STARTUP, STEPS
from wamjax.training.records import RecordLog
from wamjax.training.update import SKIPPED_IN_A_ROW

VALIDATION_GROUP = "validation"
BUCKET = "data/bucket"  # metric of a step in a run in buckets: the position of its bucket among them


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
    """What is known of one optimizer step once its metrics have been read.

    Attributes:
      step: Updates done, counting this one; the state after it is checkpoint ``step``.
      metrics: ``group/name`` -> value, as the step computed them.
      step_s: Wall time since the step before finished (for the first step of a process: since it was dispatched, so
        compilation is in it).
      data_wait_s: The part of it spent waiting for the input pipeline.
      is_first: Whether it is the first step of this process.
    """

    step: int
    metrics: Mapping[str, float]
    step_s: float
    data_wait_s: float
    is_first: bool = False

    def non_finite(self) -> dict[str, float]:
        """Returns the metrics that are NaN or infinite."""
        return {name: value for name, value in self.metrics.items() if not math.isfinite(value)}

    @property
    def num_skipped_in_a_row(self) -> int:
        """How many updates in a row were skipped, up to this one; 0 if this one was done."""
        return int(self.metrics.get(SKIPPED_IN_A_ROW, 0))

    @property
    def bucket(self) -> int:
        """Position of the step's bucket; 0 in a run without buckets."""
        return int(self.metrics.get(BUCKET, 0))


@runtime_checkable
class Hook(Protocol):
    """Something that happens beside training. A hook sees every step and never touches the state."""

    def on_step(self, report: StepReport) -> None:
        """Called once per step, in order, after the metrics of the step were read."""
        ...

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called after a validation of the state of ``step``."""
        ...

    def on_pause(self, step: int, bucket: str, seconds: float) -> None:
        """Called after training stood still for something: ``bucket`` is one of ``flops.goodput.BUCKETS``."""
        ...

    def sync(self) -> None:
        """Called before a checkpoint: what was seen so far must survive a crash."""
        ...

    def close(self) -> None:
        """Called once at the end, also when training failed."""
        ...


class Silent:
    """A hook that does nothing; others override what they need."""

    def on_step(self, report: StepReport) -> None:
        """Does nothing."""

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Does nothing."""

    def on_pause(self, step: int, bucket: str, seconds: float) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepWork:
    """What a step of one bucket works on: samples, tokens of their packed sequences, and model FLOPs."""

    samples: int
    tokens: int
    flops: int


class Throughput:
    """Averages speed over the steps since it was last asked.

    The first step of a process compiles, so it is reported apart and never averaged with the others.

    Args:
      samples_per_step: Global batch size.
      tokens_per_step: Tokens of the packed sequences of one global batch.
      flops_per_step: Model FLOPs of one step; None when unknown.
      peak_flops_per_s: Peak of all devices together; None when unknown (then there is no MFU, rather than a guess).
      buckets: The work of a step of each bucket, in place of the three figures above; none: all steps are alike.
    """

    def __init__(
        self,
        *,
        samples_per_step: int,
        tokens_per_step: int | None = None,
        flops_per_step: int | None = None,
        peak_flops_per_s: float | None = None,
        buckets: Sequence[StepWork] = (),
    ) -> None:
        self._samples, self._tokens = samples_per_step, tokens_per_step
        self._flops, self._peak, self._buckets = flops_per_step, peak_flops_per_s, buckets
        self._reports: list[StepReport] = []

    def add(self, report: StepReport) -> None:
        """Counts one step."""
        self._reports.append(report)

    def read(self) -> dict[str, float]:
        """Returns ``time/*`` and ``throughput/*`` of the steps since the last call, and starts anew."""
        reports, self._reports = self._reports, []
        figures = {}
        for report in reports:
            if report.is_first:
                figures["time/first_step_s"] = report.step_s
        steady = [report for report in reports if not report.is_first]
        if not steady:
            return figures
        step_s = sum(report.step_s for report in steady) / len(steady)
        figures["time/step_s"] = step_s
        figures["time/data_wait_s"] = sum(report.data_wait_s for report in steady) / len(steady)
        samples, tokens, flops = self._mean_work(steady)
        figures["throughput/samples_per_s"] = samples / step_s
        if tokens is not None:
            figures["throughput/tokens_per_s"] = tokens / step_s
        if flops is not None and self._peak is not None:
            figures["throughput/mfu"] = flops / step_s / self._peak
        return figures

    def _mean_work(self, reports: Sequence[StepReport]) -> tuple[float, float | None, float | None]:
        """Returns samples, tokens and FLOPs of a step, on average over those of ``reports``."""
        if not self._buckets:
            tokens, flops = (None if count is None else float(count) for count in (self._tokens, self._flops))
            return float(self._samples), tokens, flops
        work = [self._buckets[report.bucket] for report in reports]
        sums = (sum(w.samples for w in work), sum(w.tokens for w in work), sum(w.flops for w in work))
        return sums[0] / len(work), sums[1] / len(work), sums[2] / len(work)


class MetricRecorder(Silent):
    """Writes the metrics of every step, and speed every ``every_steps``, to a ``RecordLog``.

    The records of two runs of one configuration differ only in ``time/*`` and ``throughput/*``.
    """

    def __init__(self, log: RecordLog, throughput: Throughput, *, every_steps: int) -> None:
        self._log, self._throughput, self._every = log, throughput, every_steps

    def on_step(self, report: StepReport) -> None:
        """Appends ``{"step": ..., "loss/total": ..., ...}``."""
        self._throughput.add(report)
        speed = self._throughput.read() if report.step % self._every == 0 else {}
        self._log.append({"step": report.step, **report.metrics, **speed})

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends ``{"step": ..., "validation/total": ..., ...}``."""
        self._log.append({"step": step, **metrics})

    def sync(self) -> None:
        """Forces the log to disk."""
        self._log.sync()

    def close(self) -> None:
        """Closes the log."""
        self._log.close()


@runtime_checkable
class RunLedger(Protocol):
    """What the loop needs of the run ledger (``wamjax.flops.ledger``)."""

    def record(self, step: int, loss: float, step_s: float, *, is_skipped: bool, bucket: str = "") -> dict[str, Any]:
        """Accounts one step and returns its line."""
        ...


class LedgerRecorder(Silent):
    """Accounts every step in the run ledger and appends its line to ``ledger.jsonl``.

    Args:
      log: The file.
      ledger: The run's.
      buckets: Names of the run's buckets, in their order.
    """

    def __init__(self, log: RecordLog, ledger: RunLedger, *, buckets: Sequence[str] = ()) -> None:
        self._log, self._ledger, self._buckets = log, ledger, buckets

    def on_step(self, report: StepReport) -> None:
        """Appends the ledger's line of this step."""
        is_skipped = report.num_skipped_in_a_row > 0
        self._log.append(
            self._ledger.record(
                report.step,
                report.metrics["loss/total"],
                report.step_s,
                is_skipped=is_skipped,
                bucket=self._buckets[report.bucket] if self._buckets else "",
            )
        )

    def sync(self) -> None:
        """Forces the log to disk."""
        self._log.sync()

    def close(self) -> None:
        """Closes the log."""
        self._log.close()


class GoodputRecorder(Silent):
    """Writes where the time of this process goes to ``goodput.jsonl`` (``flops.goodput`` adds it up).

    Steps are written together: every ``every_steps`` and before anything else is, so that no line reaches across a
    checkpoint.

    Args:
      log: The file; unlike the others it is not cut back when a run resumes.
      began_unix_s: When this process began.
      every_steps: Most steps of one line: what a kill may leave unrecorded.
      clock: Returns the time.
    """

    def __init__(
        self, log: RecordLog, *, began_unix_s: float, every_steps: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._log, self._began, self._every, self._clock = log, began_unix_s, every_steps, clock
        self._reports: list[StepReport] = []

    def start(self, step: int) -> None:
        """Records that training goes on from ``step`` now."""
        now = self._clock()
        self._log.append({"event": STARTUP, "step": step, "seconds": now - self._began, "unix_s": now})

    def end(self, step: int, *, is_complete: bool) -> None:
        """Records that this process trains no more."""
        self._flush()
        self._log.append({"event": END, "step": step, "is_complete": is_complete, "unix_s": self._clock()})

    def on_step(self, report: StepReport) -> None:
        """Counts one step."""
        self._reports.append(report)
        if report.is_first or report.step % self._every == 0:
            self._flush()

    def on_pause(self, step: int, bucket: str, seconds: float) -> None:
        """Appends the pause."""
        self._flush()
        self._log.append({"event": bucket, "step": step, "seconds": seconds, "unix_s": self._clock()})

    def sync(self) -> None:
        """Writes what was counted and forces the log to disk."""
        self._flush()
        self._log.sync()

    def close(self) -> None:
        """Closes the log."""
        self._flush()
        self._log.close()

    def _flush(self) -> None:
        reports, self._reports = self._reports, []
        if reports:
            self._log.append(
                {
                    "event": STEPS,
                    "step": reports[-1].step,
                    "num_steps": len(reports),
                    "is_first": reports[0].is_first,
                    "seconds": sum(report.step_s for report in reports),
                    "data_wait_s": sum(report.data_wait_s for report in reports),
                    "unix_s": self._clock(),
                }
            )
