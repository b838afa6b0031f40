"""The training loop: five verbs in a fixed order, and nothing else.

Owns the order of evaluate, save, next, step and log, and when to stop. What each verb does is handed in: the program
computes, the stream reads, the store saves, hooks tell. Does not build any of them (``launch.train_command`` does).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax

from wamjax.errors import DivergedError
from wamjax.flops.goodput import CHECKPOINT_SAVE, EVALUATION
from wamjax.training.hooks import Hook, StepReport

State = Any


@runtime_checkable
class StopSignal(Protocol):
    """Whether the run was asked to leave; all processes get the same answer at the same step."""

    def is_requested(self, step: int) -> bool:
        """Returns True when the loop must save and return."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopPlan:
    """When things happen. Steps count updates: 0 is the initial state.

    Attributes:
      num_steps: Step at which training is complete.
      save_every: Steps between checkpoints; 0 saves only at the end.
      evaluate_every: Steps between validations; 0 never validates.
      max_skipped: Updates skipped in a row at which training stops.
    """

    num_steps: int
    save_every: int
    evaluate_every: int
    max_skipped: int = 1

    def is_save_due(self, step: int) -> bool:
        """Returns whether the state of ``step`` is saved (the last one always is)."""
        return step == self.num_steps or (self.save_every > 0 and step % self.save_every == 0)

    def is_evaluation_due(self, step: int) -> bool:
        """Returns whether the state of ``step`` is validated (the last one is, unless validation is off)."""
        return self.evaluate_every > 0 and (step == self.num_steps or step % self.evaluate_every == 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopResult:
    """How training ended: the last state, its step, and whether it is complete or was interrupted."""

    state: State
    step: int
    is_complete: bool


@dataclasses.dataclass
class _Pending:
    """A step whose metrics are still being computed."""

    step: int
    metrics: Mapping[str, jax.Array]
    data_wait_s: float


class TrainLoop:
    """Runs a training program over a stream of batches.

    Args:
      step: (state, batch) -> (state, metrics); may donate the state.
      batches: Yields (global batch, stream position after it).
      evaluate: state -> validation metrics.
      save: (step, state, position) -> None; starts a checkpoint.
      last_good_step: () -> newest complete checkpoint or None, waiting for a save that is under way.
      hooks: What is told of each step, in this order.
      stop: Whether to leave early.
      plan: When things happen.
    """

    def __init__(
        self,
        *,
        step: Callable[[State, Any], tuple[State, Mapping[str, jax.Array]]],
        batches: Iterator[tuple[Any, int]],
        evaluate: Callable[[State], Mapping[str, float]],
        save: Callable[[int, State, int], None],
        last_good_step: Callable[[], int | None],
        hooks: Sequence[Hook],
        stop: StopSignal,
        plan: LoopPlan,
    ) -> None:
        self._step, self._batches, self._evaluate, self._save = step, batches, evaluate, save
        self._last_good_step, self._hooks, self._stop, self._plan = last_good_step, hooks, stop, plan
        self._pending: _Pending | None = None
        self._clock = time.perf_counter()
        self._is_first = True
        self._first_skipped: StepReport | None = None  # of the updates skipped in a row, as far as this process knows

    def run(self, state: State, *, step: int, position: int, is_resumed: bool) -> LoopResult:
        """Trains from ``state`` until the plan is complete or a stop is requested.

        Args:
          state: The state of ``step``; consumed.
          step: Updates it has seen.
          position: Data position that belongs to it.
          is_resumed: Whether it came from a checkpoint: then it was evaluated and saved before, and is not again.

        Raises:
          DivergedError: Too many updates in a row were skipped; or a metric is not finite and the update was done all
            the same. The state that holds it is never saved.
        """
        plan, is_done_already = self._plan, is_resumed
        self._restart_clock()
        while True:
            stopping = self._stop.is_requested(step) and step < plan.num_steps
            # 1. Evaluate before saving, so that a checkpoint of step n never exists without the records of step n:
            #    a resumed run cuts its records back to n and must find nothing missing.
            if step > 0 and plan.is_evaluation_due(step) and not is_done_already:
                self._log_pending()
                self._validate(step, state)
            # 2. Save before the next batch is taken: state and data position then belong together. The metrics of
            #    this very step are read first, because a state that has diverged must not become a checkpoint.
            if step > 0 and (stopping or plan.is_save_due(step)) and not is_done_already:
                self._log_pending()
                self._sync_hooks()
                self._save(step, state, position)
                self._end_pause(step, CHECKPOINT_SAVE)
            is_done_already = False
            if stopping or step >= plan.num_steps:
                return LoopResult(state=state, step=step, is_complete=step >= plan.num_steps)
            # 3. Take the next batch while the device is still busy with the last step.
            started = time.perf_counter()
            batch, position = next(self._batches)
            data_wait_s = time.perf_counter() - started
            # 4. Dispatch the step. Nothing may be copied to the device behind our back in here: an argument left on
            #    the host would be transferred again every step.
            with jax.transfer_guard_host_to_device("disallow"):
                state, metrics = self._step(state, batch)
            step += 1
            # 5. Log the step before this one: its metrics are ready, so reading them does not stall the device,
            #    which already has the next step to work on.
            self._log_pending()
            self._pending = _Pending(step=step, metrics=metrics, data_wait_s=data_wait_s)

    def _log_pending(self) -> None:
        """Reads the metrics of the step under way, tells the hooks, and stops a run that has diverged."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        metrics = {name: float(value) for name, value in jax.device_get(dict(pending.metrics)).items()}
        now = time.perf_counter()
        report = StepReport(
            step=pending.step,
            metrics=metrics,
            step_s=now - self._clock,
            data_wait_s=pending.data_wait_s,
            is_first=self._is_first,
        )
        self._clock, self._is_first = now, False
        for hook in self._hooks:
            hook.on_step(report)
        self._first_skipped = (self._first_skipped or report) if report.num_skipped_in_a_row else None
        if report.num_skipped_in_a_row >= self._plan.max_skipped:
            raise self._diverged(report)
        if report.non_finite() and not report.num_skipped_in_a_row:
            raise self._diverged(report)

    def _validate(self, step: int, state: State) -> None:
        metrics = self._evaluate(state)
        for hook in self._hooks:
            hook.on_validation(step, metrics)
        self._end_pause(step, EVALUATION)

    def _sync_hooks(self) -> None:
        for hook in self._hooks:
            hook.sync()

    def _end_pause(self, step: int, bucket: str) -> None:
        """Keeps the time of validation or saving out of the time of the next step, and tells the hooks of it."""
        seconds = time.perf_counter() - self._clock
        for hook in self._hooks:
            hook.on_pause(step, bucket, seconds)
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._clock = time.perf_counter()

    def _diverged(self, report: StepReport) -> DivergedError:
        self._sync_hooks()
        values = ", ".join(f"{name} = {value}" for name, value in report.non_finite().items())
        if report.num_skipped_in_a_row:
            first = self._first_skipped or report
            name, value = next(iter(first.non_finite().items()))
            values = (
                f"its update is number {report.num_skipped_in_a_row} skipped in a row (config.optimizer.max_skipped="
                f"{self._plan.max_skipped}), since {name} = {value} at step {first.step}"
            )
        last = self._last_good_step()
        good = f"the last good checkpoint is step {last}" if last is not None else "there is no checkpoint yet"
        return DivergedError(
            f"step {report.step} diverged: {values}; {good}; lower config.optimizer.peak_lr or look at the data of "
            "that step"
        )
