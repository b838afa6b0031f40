"""The loop: its order of events, when it stops, and what it refuses to save."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.errors import DivergedError
from wamjax.training.hooks import MetricRecorder, Silent, StepReport, Throughput
from wamjax.training.loop import LoopPlan, TrainLoop
from wamjax.training.records import RecordLog, read_records
from wamjax.training.update import SKIPPED_IN_A_ROW

BATCH = 4


class Recorder(Silent):
    """Writes down what happens, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.losses: dict[int, float] = {}

    def on_step(self, report: StepReport) -> None:
        self.events.append(f"log {report.step}")
        self.losses[report.step] = report.metrics["loss/total"]

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.events.append(f"validate {step}")

    def sync(self) -> None:
        self.events.append("sync")


class StopAt:
    def __init__(self, step: int | None = None) -> None:
        self._step = step

    def is_requested(self, step: int) -> bool:
        return step == self._step


class World:
    """A toy training run: the state adds up the batches, the loss is the sum; NaN from ``nan_at`` on.

    ``skipped`` are steps whose update is skipped, with a gradient that is not finite.
    """

    def __init__(
        self,
        plan: LoopPlan,
        *,
        stop_at: int | None = None,
        nan_at: int | None = None,
        skipped: tuple[int, ...] = (),
    ) -> None:
        self.recorder = Recorder()
        self.saved: dict[int, tuple[float, int]] = {}
        self._nan_at, self._skipped, self._in_a_row, self._number = nan_at, skipped, 0, 0
        self._stop, self._plan = StopAt(stop_at), plan

        @jax.jit
        def step(state: jax.Array, batch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            state = state + batch
            return state, {"loss/total": state, "optimizer/grad_norm": batch}

        self._step = step

    def _batches(self, position: int) -> Iterator[tuple[Any, int]]:
        while True:
            position += BATCH
            number = position // BATCH
            self.recorder.events.append(f"next {number}")
            value = np.nan if self._nan_at is not None and number >= self._nan_at else float(number)
            yield jnp.float32(value), position

    def _dispatch(self, state: jax.Array, batch: jax.Array) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        self.recorder.events.append("step")
        self._number += 1
        if self._number not in self._skipped:
            self._in_a_row = 0
            return self._step(state, batch)
        self._in_a_row += 1
        metrics = {"loss/total": state, "optimizer/grad_norm": np.inf, SKIPPED_IN_A_ROW: self._in_a_row}
        return state, metrics  # type: ignore[return-value] - values, as good as arrays here

    def _save(self, step: int, state: jax.Array, position: int) -> None:
        self.recorder.events.append(f"save {step}")
        self.saved[step] = (float(state), position)

    def run(self, state: float = 0.0, step: int = 0, *, is_resumed: bool = False) -> Any:
        loop = TrainLoop(
            step=self._dispatch,
            batches=self._batches(step * BATCH),
            evaluate=lambda state: {"validation/total": float(state)},
            save=self._save,
            last_good_step=lambda: max(self.saved, default=None),
            hooks=[self.recorder],
            stop=self._stop,
            plan=self._plan,
        )
        return loop.run(jnp.float32(state), step=step, position=step * BATCH, is_resumed=is_resumed)


def test_loop_runs_its_five_verbs_in_order() -> None:
    world = World(LoopPlan(num_steps=3, save_every=2, evaluate_every=2))
    world.run()
    assert world.recorder.events == [
        *("next 1", "step"),
        *("next 2", "step", "log 1"),  # step 1 is logged after step 2 was dispatched
        *("log 2", "validate 2", "sync", "save 2"),  # the checkpoint of step 2 has the records of step 2 beside it
        *("next 3", "step"),
        *("log 3", "validate 3", "sync", "save 3"),
    ]


def test_loop_saves_state_and_position_of_the_same_step() -> None:
    world = World(LoopPlan(num_steps=5, save_every=2, evaluate_every=0))
    world.run()
    assert world.saved == {2: (3.0, 8), 4: (10.0, 16), 5: (15.0, 20)}


def test_loop_resumed_from_a_checkpoint_equals_one_that_never_stopped() -> None:
    plan = LoopPlan(num_steps=6, save_every=2, evaluate_every=2)
    whole, first, second = World(plan), World(plan, stop_at=3), World(plan)
    whole.run()
    stopped = first.run()
    state, position = first.saved[3]
    assert (stopped.step, stopped.is_complete, position) == (3, False, 3 * BATCH)
    second.run(state, 3, is_resumed=True)
    assert {**first.recorder.losses, **second.recorder.losses} == whole.recorder.losses
    assert second.saved[6] == whole.saved[6]
    assert not [event for event in second.recorder.events if event in ("log 3", "save 3", "validate 2")]


def test_loop_of_a_complete_run_does_nothing() -> None:
    world = World(LoopPlan(num_steps=4, save_every=2, evaluate_every=2))
    assert world.run(10.0, 4, is_resumed=True).is_complete
    assert world.recorder.events == []


def test_loop_with_a_loss_that_is_not_finite_names_step_and_last_good_checkpoint() -> None:
    world = World(LoopPlan(num_steps=9, save_every=2, evaluate_every=0), nan_at=5)
    with pytest.raises(DivergedError, match=r"step 5 diverged: loss/total = nan.*last good checkpoint is step 4"):
        world.run()
    assert sorted(world.saved) == [2, 4]


def test_loop_goes_on_where_updates_were_skipped_and_saves_what_was_not_touched() -> None:
    world = World(LoopPlan(num_steps=6, save_every=3, evaluate_every=0, max_skipped=3), skipped=(2, 3, 5, 6))
    assert world.run().is_complete
    assert world.saved == {3: (1.0, 12), 6: (5.0, 24)}


def test_loop_stops_after_the_limit_of_skipped_updates_in_a_row_naming_where_they_began() -> None:
    world = World(LoopPlan(num_steps=9, save_every=4, evaluate_every=0, max_skipped=3), skipped=(2, 4, 5, 6))
    expected = (
        r"step 6 diverged: its update is number 3 skipped in a row \(config\.optimizer\.max_skipped=3\), since "
        r"optimizer/grad_norm = inf at step 4; the last good checkpoint is step 4"
    )
    with pytest.raises(DivergedError, match=expected):
        world.run()


def test_loop_never_saves_a_state_that_has_just_diverged() -> None:
    world = World(LoopPlan(num_steps=4, save_every=2, evaluate_every=0), nan_at=2)
    with pytest.raises(DivergedError, match=r"step 2 diverged.*there is no checkpoint yet"):
        world.run()
    assert world.saved == {}


def test_loop_refuses_batches_left_on_the_host() -> None:
    world = World(LoopPlan(num_steps=1, save_every=0, evaluate_every=0))
    world._batches = lambda position: iter([(np.float32(1.0), BATCH)])  # type: ignore[method-assign]
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        world.run()


def test_plan_always_saves_the_last_step_and_validates_only_when_told() -> None:
    plan = LoopPlan(num_steps=7, save_every=0, evaluate_every=0)
    assert [step for step in range(1, 8) if plan.is_save_due(step)] == [7]
    assert not any(plan.is_evaluation_due(step) for step in range(1, 8))


def test_throughput_averages_steady_steps_and_keeps_the_first_apart() -> None:
    throughput = Throughput(samples_per_step=8, tokens_per_step=80, flops_per_step=1000, peak_flops_per_s=4000.0)
    for step, seconds in ((1, 30.0), (2, 1.0), (3, 3.0)):
        throughput.add(StepReport(step=step, metrics={}, step_s=seconds, data_wait_s=seconds / 10, is_first=step == 1))
    assert throughput.read() == pytest.approx(
        {
            "time/first_step_s": 30.0,
            "time/step_s": 2.0,
            "time/data_wait_s": 0.2,
            "throughput/samples_per_s": 4.0,
            "throughput/tokens_per_s": 40.0,
            "throughput/mfu": 0.125,
        }
    )
    assert throughput.read() == {}


def test_throughput_without_a_known_peak_gives_no_mfu() -> None:
    throughput = Throughput(samples_per_step=8, flops_per_step=1000, peak_flops_per_s=None)
    throughput.add(StepReport(step=2, metrics={}, step_s=1.0, data_wait_s=0.0))
    assert "throughput/mfu" not in throughput.read()


def test_metric_recorder_writes_every_step_and_speed_every_few(tmp_path: Any) -> None:
    log = RecordLog(tmp_path / "metrics.jsonl")
    recorder = MetricRecorder(log, Throughput(samples_per_step=8), every_steps=2)
    for step in (1, 2, 3):
        recorder.on_step(StepReport(step=step, metrics={"loss/total": step / 2}, step_s=1.0, data_wait_s=0.5))
    recorder.on_validation(3, {"validation/total": 4.0})
    recorder.close()
    records = read_records(tmp_path / "metrics.jsonl")
    assert [record.get("loss/total") for record in records] == [0.5, 1.0, 1.5, None]
    assert ["time/step_s" in record for record in records] == [False, True, False, False]
    assert records[-1] == {"step": 3, "validation/total": 4.0}
