"""Goodput: which part of a run's wall-clock time makes progress, and where the rest goes.

Owns the names of the buckets, which a plan (``planning.goodput``) and a run's own record share, so that planned and
actual can be laid side by side; and the sums of a run's events. Reads no file: the trainer appends events to
``goodput.jsonl`` (``training.hooks.GoodputRecorder``), which is never cut back, because lost time stays lost.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# Where time goes, in the order of tables. Only ``step`` is progress.
STEP = "step"
DATA_WAIT = "data_wait"
CHECKPOINT_SAVE = "checkpoint_save"
EVALUATION = "evaluation"
STARTUP = "startup"
COMPILE = "compile"
LOST_STEPS = "lost_steps"
DOWN = "down"

BUCKETS: dict[str, str] = {
    STEP: "training steps that were kept, without waiting for data",
    DATA_WAIT: "steps waiting for the input pipeline",
    CHECKPOINT_SAVE: "training standing still while a checkpoint is taken",
    EVALUATION: "validation between steps",
    STARTUP: "from the start of a process to its first step: devices, data, checkpoint",
    COMPILE: "what the first step of a process took beyond an ordinary one",
    LOST_STEPS: "steps done again because no checkpoint held them",
    DOWN: "from what a process recorded last to the start of the next, where the run was not complete",
}

# Events besides buckets of the same name: some steps in a row, and the end of a process.
STEPS = "steps"
END = "end"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoodputTally:
    """Where the time of a run went.

    Attributes:
      buckets: Seconds by bucket, all of ``BUCKETS``.
      starts: Processes that reached their first step.
      is_complete: Whether the last of them ended with the run complete.
    """

    buckets: dict[str, float]
    starts: int
    is_complete: bool

    @property
    def elapsed_s(self) -> float:
        """Seconds from start to end."""
        return sum(self.buckets.values())

    @property
    def occupied_s(self) -> float:
        """Seconds in which a process of the run held its devices."""
        return self.elapsed_s - self.buckets[DOWN]

    @property
    def goodput(self) -> float | None:
        """Share of the elapsed time that made progress; None before anything was recorded."""
        return self.buckets[STEP] / self.elapsed_s if self.elapsed_s > 0 else None


@dataclasses.dataclass
class _Steps:
    """Some steps in a row that may still be lost."""

    first: int
    last: int
    step_s: float
    data_wait_s: float


def tally_goodput(events: Sequence[Mapping[str, Any]]) -> GoodputTally:
    """Returns where time went according to a run's events, in the order they were recorded.

    A process that starts from step n has lost what an earlier one did beyond n.

    Args:
      events: Objects with ``event``, ``step``, ``unix_s`` (its end) and, but for ``end``, ``seconds``; ``steps`` also
        with ``num_steps``, ``data_wait_s`` and ``is_first`` (the first step of a process, which compiles).
    """
    buckets = dict.fromkeys(BUCKETS, 0.0)
    usual_s = _usual_step_s(events)
    kept: list[_Steps] = []
    starts, is_complete = 0, False
    ended: float | None = None
    for event in events:
        kind = event["event"]
        if kind == STARTUP:
            buckets[STARTUP] += event["seconds"]
            if ended is not None and not is_complete:
                buckets[DOWN] += max(0.0, event["unix_s"] - event["seconds"] - ended)
            kept, lost_s = _cut(kept, event["step"])
            buckets[LOST_STEPS] += lost_s
            starts, is_complete = starts + 1, False
        elif kind == STEPS:
            seconds, wait_s = event["seconds"], event["data_wait_s"]
            if event["is_first"]:
                compile_s = seconds - min(seconds, usual_s)
                buckets[COMPILE] += compile_s
                seconds -= compile_s
                wait_s = min(wait_s, seconds)
            first = event["step"] - event["num_steps"] + 1
            kept.append(_Steps(first=first, last=event["step"], step_s=seconds - wait_s, data_wait_s=wait_s))
        elif kind == END:
            is_complete = event["is_complete"]
        else:
            buckets[kind] += event["seconds"]
        ended = event["unix_s"]
    buckets[STEP] = sum((steps.step_s for steps in kept), 0.0)
    buckets[DATA_WAIT] = sum((steps.data_wait_s for steps in kept), 0.0)
    return GoodputTally(buckets=buckets, starts=starts, is_complete=is_complete)


def _usual_step_s(events: Sequence[Mapping[str, Any]]) -> float:
    """Returns the time of a step that did not compile, median over lines; 0 where there are none.

    Not the mean: one pause of the machine would hide what compilation took.
    """
    steady = [event for event in events if event["event"] == STEPS and not event["is_first"]]
    return statistics.median(event["seconds"] / event["num_steps"] for event in steady) if steady else 0.0


def _cut(kept: Sequence[_Steps], step: int) -> tuple[list[_Steps], float]:
    """Returns what of ``kept`` lies at or before ``step``, and the seconds of the rest."""
    before, lost_s = [], 0.0
    for steps in kept:
        share = min(max(step - steps.first + 1, 0) / (steps.last - steps.first + 1), 1.0)
        lost_s += (1.0 - share) * (steps.step_s + steps.data_wait_s)
        if share > 0:
            last = min(steps.last, step)
            before.append(
                _Steps(
                    first=steps.first,
                    last=last,
                    step_s=share * steps.step_s,
                    data_wait_s=share * steps.data_wait_s,
                )
            )
    return before, lost_s
