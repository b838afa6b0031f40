"""Hooks for whoever watches: console lines, a progress bar on a terminal, TensorBoard events.

Owns how a step is shown. The record of the run is ``metrics.jsonl`` (``training.hooks``); nothing here is read back.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from wamjax.training.hooks import Silent, StepReport, Throughput


class Console(Silent):
    """Prints a line to stderr every ``every_steps`` steps and per validation, above a progress bar if there is one.

    Args:
      num_steps: Step at which training is complete.
      first_step: Step training starts from (for the bar and the time left).
      every_steps: Steps between lines.
      throughput: Where speed comes from; not shared with another hook.
      has_bar: Whether to draw a progress bar; drawn only where stderr is a terminal.
    """

    def __init__(
        self,
        *,
        num_steps: int,
        first_step: int,
        every_steps: int,
        throughput: Throughput,
        has_bar: bool = True,
    ) -> None:
        self._stream = sys.stderr
        self._num_steps, self._every, self._throughput = num_steps, every_steps, throughput
        self._bar = tqdm(
            total=num_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            file=self._stream,
            disable=not (has_bar and self._stream.isatty()),
        )

    def on_step(self, report: StepReport) -> None:
        """Moves the bar; prints a line when one is due, for the first and last step, and for skipped updates."""
        self._throughput.add(report)
        self._bar.update(1)
        if report.num_skipped_in_a_row:
            self._print(report.step, report.metrics, "update skipped  ")
        elif report.is_first or report.step % self._every == 0 or report.step == self._num_steps:
            self._print(report.step, {**report.metrics, **self._throughput.read()})

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the validation metrics."""
        self._print(step, metrics)

    def close(self) -> None:
        """Leaves the bar where it is."""
        self._bar.close()

    def _print(self, step: int, metrics: Mapping[str, float], note: str = "") -> None:
        line = f"step {step:>{len(str(self._num_steps))}}/{self._num_steps}  {note}{format_metrics(metrics)}"
        if self._bar.disable:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.write(line, file=self._stream)


class TensorBoard(Silent):
    """Writes TensorBoard events (tensorboardX, without TensorFlow) every ``every_steps`` steps.

    On a resume the events of the steps that are computed again are cut off where TensorBoard reads them
    (``purge_step``), as ``metrics.jsonl`` is.
    """

    def __init__(self, directory: Path, *, first_step: int, every_steps: int, throughput: Throughput) -> None:
        self._writer = SummaryWriter(str(directory), purge_step=first_step + 1 if first_step else None)
        self._every, self._throughput = every_steps, throughput

    def on_step(self, report: StepReport) -> None:
        """Writes the metrics of the step when it is due."""
        self._throughput.add(report)
        if report.step % self._every == 0:
            self.on_validation(report.step, {**report.metrics, **self._throughput.read()})

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes ``metrics`` as scalars of ``step``."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step, walltime=time.time())

    def sync(self) -> None:
        """Flushes the events."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Returns ``loss/total 0.1234  optimizer/lr 1.00e-03``: four significant digits, in the order given."""
    return "  ".join(f"{name} {_format(value)}" for name, value in metrics.items())


def _format(value: float) -> str:
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.2e}"
