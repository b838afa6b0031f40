"""What the trainer writes of its time adds up to the time that passed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from wamjax.flops.goodput import tally_goodput
from wamjax.training.hooks import GoodputRecorder, StepReport
from wamjax.training.loop import LoopPlan, TrainLoop
from wamjax.training.records import RecordLog, read_records


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def report(step: int, seconds: float, *, is_first: bool = False, wait_s: float = 0.0) -> StepReport:
    return StepReport(step=step, metrics={}, step_s=seconds, data_wait_s=wait_s, is_first=is_first)


def test_steps_are_written_together_but_never_across_a_checkpoint(tmp_path: Path) -> None:
    path, clock = tmp_path / "goodput.jsonl", Clock()
    recorder = GoodputRecorder(RecordLog(path), began_unix_s=990.0, every_steps=4, clock=clock)
    recorder.start(0)
    for step in range(1, 7):
        recorder.on_step(report(step, 2.0, is_first=step == 1, wait_s=0.25))
    recorder.sync()
    recorder.on_pause(6, "checkpoint_save", 0.5)
    recorder.on_step(report(7, 2.0))
    recorder.end(7, is_complete=True)
    recorder.close()
    lines = read_records(path)
    assert [(line["event"], line["step"], line.get("num_steps")) for line in lines] == [
        ("startup", 0, None), ("steps", 1, 1), ("steps", 4, 3), ("steps", 6, 2), ("checkpoint_save", 6, None),
        ("steps", 7, 1), ("end", 7, None),
    ]  # fmt: skip
    assert lines[0]["seconds"] == 10.0
    assert (lines[2]["seconds"], lines[2]["data_wait_s"], lines[1]["is_first"]) == (6.0, 0.75, True)


def test_killed_process_has_lost_at_most_the_line_it_was_on(tmp_path: Path) -> None:
    path = tmp_path / "goodput.jsonl"
    recorder = GoodputRecorder(RecordLog(path), began_unix_s=0.0, every_steps=3, clock=Clock())
    for step in range(1, 9):
        recorder.on_step(report(step, 1.0, is_first=step == 1))
    assert read_records(path)[-1]["step"] == 6, "what was written so far is on disk without any call"


def test_loop_tells_of_validation_and_saving_and_no_time_is_in_two_buckets(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "goodput.jsonl"
    recorder = GoodputRecorder(RecordLog(path), began_unix_s=clock.now, every_steps=100, clock=clock)

    @jax.jit
    def step(state: jax.Array, batch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return state + batch, {"loss/total": state}

    loop = TrainLoop(
        step=step,
        batches=iter([(jnp.float32(1.0), n) for n in range(4)]),
        evaluate=lambda state: {"validation/total": float(state)},
        save=lambda step, state, position: None,
        last_good_step=lambda: None,
        hooks=[recorder],
        stop=Never(),
        plan=LoopPlan(num_steps=4, save_every=2, evaluate_every=4),
    )
    recorder.start(0)
    loop.run(jnp.float32(0.0), step=0, position=0, is_resumed=False)
    recorder.end(4, is_complete=True)
    recorder.close()
    lines = read_records(path)
    assert [line["event"] for line in lines] == [
        "startup", "steps", "steps", "checkpoint_save", "steps", "evaluation", "checkpoint_save", "end",
    ]  # fmt: skip
    assert sum(line["num_steps"] for line in lines if line["event"] == "steps") == 4
    tally = tally_goodput(lines)
    assert tally.elapsed_s == pytest.approx(sum(line.get("seconds", 0.0) for line in lines))
    assert tally.is_complete


class Never:
    """Nobody asks to stop."""

    def is_requested(self, step: int) -> bool:
        return False
