"""A run beside its plan: medians without first steps, ratios, and what is missing is said."""

import json

import pytest

from wamjax.errors import DataError
from wamjax.flops.goodput import BUCKETS
from wamjax.planning.compare import compare, describe, measure_run


def record(step, step_s, *, kind="TPU v5", devices=8):
    mfu = None if step_s is None or kind == "cpu" else 0.5 / step_s
    return {
        "step": step, "samples": 4 * step, "this_step": {"model_flops": 3 * 10**18, "hardware_flops": 4 * 10**18},
        "wall": {
            "step_s": step_s, "device_kind": kind, "num_devices": devices, "mfu": mfu,
            "hfu": None if mfu is None else 1.1 * mfu, "mfu_denominator": None if mfu is None else "the peak",
            "mfu_reason": "no peak" if mfu is None else None,
        },
    }  # fmt: skip


def steps(step, seconds, *, num_steps=1, wait_s=0.0, is_first=False):
    return {
        "event": "steps", "step": step, "num_steps": num_steps, "seconds": seconds, "data_wait_s": wait_s,
        "is_first": is_first, "unix_s": 0.0,
    }  # fmt: skip


# Step 1 compiles, and so does step 5, which a second process began with.
RECORDS = [record(step, seconds) for step, seconds in enumerate((60.0, 2.0, 2.2, 1.8, 50.0, 2.1, 9.0), start=1)]
EVENTS = [
    {"event": "startup", "step": 0, "seconds": 20.0, "unix_s": 20.0},
    steps(1, 60.0, is_first=True),
    steps(4, 6.0, num_steps=3, wait_s=0.6),
    {"event": "startup", "step": 4, "seconds": 10.0, "unix_s": 96.0},
    steps(5, 50.0, is_first=True),
    steps(7, 11.1, num_steps=2, wait_s=0.4),
]
PLAN = {
    "flops_per_step": {"model": 3 * 10**18, "hardware": 5 * 10**18},
    "run": {"steps": 7},
    "time": {"step_s": {"low": 0.9, "mid": 1.05, "high": 2.5}, "mfu": 0.4, "hfu": 0.5},
    "goodput": {"goodput": 0.5, "buckets": {**dict.fromkeys(BUCKETS, 1.0), "data_wait": 7.0}},
    "cost": {"chip_hours": 1.0},
}


def rows_of(plan, records=RECORDS, events=EVENTS):
    return {row.key: row for row in compare(plan, measure_run("run", records, events))}


def test_step_time_is_the_median_of_steps_that_did_not_compile():
    measured = measure_run("run", RECORDS, EVENTS)
    assert (measured.step_s, measured.num_timed, measured.spread_s) == (2.1, 5, (1.8, 9.0))
    assert measured.mfu == pytest.approx(0.5 / 2.1)
    assert measured.data_wait_s == pytest.approx(1.0 / 5)
    assert (measured.num_chips, measured.steps, measured.samples) == (8.0, 7, 28)


def test_rows_hold_planned_actual_and_their_ratio():
    rows = rows_of(PLAN)
    assert rows["step_s"].ratio == pytest.approx(2.0)
    assert rows["model_flops_per_step"].ratio == 1.0
    assert rows["hardware_flops_per_step"].ratio == pytest.approx(0.8)
    assert (rows["data_wait_s"].planned, rows["data_wait_s"].actual) == (1.0, pytest.approx(0.2))
    assert (rows["mfu"].planned, rows["chip_hours"].planned, rows["goodput"].planned) == (0.4, 1.0, 0.5)
    assert rows["goodput.startup"].actual == 30.0
    assert rows["chip_hours"].actual == pytest.approx(8 * (20 + 60 + 6 + 10 + 50 + 11.1) / 3600)
    assert [key for key in rows if key.startswith("goodput.")] == [f"goodput.{name}" for name in BUCKETS]
    assert "planned 0.9 to 2.5 s" in rows["step_s"].note


def test_plan_without_a_machine_and_run_without_events_leave_gaps_not_guesses():
    rows = rows_of({"flops_per_step": PLAN["flops_per_step"]}, [record(n, 1.0, kind="cpu") for n in (1, 2)], None)
    assert (rows["step_s"].planned, rows["step_s"].actual) == (None, 1.0)
    assert (rows["mfu"].actual, rows["mfu"].note) == (None, "no peak")
    assert (rows["data_wait_s"].actual, rows["data_wait_s"].note) == (None, "no goodput.jsonl")
    assert "'cpu' is no listed chip" in rows["chip_hours"].note
    assert all(rows[f"goodput.{name}"].actual is None for name in BUCKETS)


def test_steps_on_devices_that_a_resumed_run_left_do_not_count():
    records = [record(n, 1.0) for n in (1, 2, 3)] + [record(n, 4.0, kind="TPU v6 lite") for n in (4, 5, 6)]
    measured = measure_run("run", records, None)
    assert (measured.step_s, measured.device_kind) == (4.0, "TPU v6 lite")


@pytest.mark.parametrize("records", [[], [record(1, 5.0)], [record(1, 5.0), record(2, None)]])
def test_run_without_a_timed_step_is_refused(records):
    with pytest.raises(DataError, match="runs/x: no step was timed"):
        measure_run("runs/x", records, None)


def test_comparison_is_text_and_json():
    measured = measure_run("run", RECORDS, EVENTS)
    rows = compare(PLAN, measured)
    assert json.loads(json.dumps([row.to_json() for row in rows]))[2]["ratio"] == pytest.approx(2.0)
    text = describe(rows)
    assert "3,000,000,000,000,000,000" in text
    assert "2.000" in text
