"""Planned goodput: Young's interval, buckets that add up, and one run whose goodput was published."""

import dataclasses
import json
import math

import pytest

from wamjax.errors import ConfigError
from wamjax.flops.goodput import BUCKETS
from wamjax.planning.assumption import Assumption
from wamjax.planning.goodput import GOODPUT_ASSUMPTIONS, GoodputAssumptions, plan_goodput

HOUR = 3600.0


def stated(value):
    return Assumption(name="stated", value=value, unit="", source="test")


# A save takes 2 s and one chip fails every 400 s, so the best interval is sqrt(2 x 2 x 400) = 40 s.
PLAIN = GoodputAssumptions(
    chip_mtbf_h=stated(400 / HOUR),
    host_write_bytes_per_s=stated(5.0),
    host_read_bytes_per_s=stated(10.0),
    down_s=stated(3.0),
    startup_s=stated(4.0),
    compile_s=stated(2.0),
)


def plan(**changes):
    given = {"checkpoint_bytes": 10, "num_hosts": 1, "num_chips": 1, "run_s": 400.0, "step_s": 1.0}
    return plan_goodput(**{**given, "checkpoint_every_s": None, "assumptions": PLAIN, **changes})


def test_mtbf_of_a_chip_follows_from_the_log_of_llama_3():
    hours = GOODPUT_ASSUMPTIONS.chip_mtbf_h.value
    assert hours == pytest.approx(16_384 * 54 * 24 / 419)
    assert round(hours / 1e3, 1) == 50.7


def test_optimal_interval_and_its_waste_are_youngs():
    found = plan()
    assert (found.save_s, found.mtbf_s, found.optimal_interval_s) == (2.0, pytest.approx(400.0), pytest.approx(40.0))
    # A restart is 3 s down, 4 s start, 1 s of reading, 2 s of compiling.
    assert found.restart_s == 10.0
    assert found.optimal_waste == pytest.approx(math.sqrt(2 * 2 / 400) + 10 / 400)


@pytest.mark.parametrize("every", [10.0, 20.0, 30.0, 50.0, 80.0, 160.0])
def test_no_other_interval_wastes_less_than_the_optimum(every):
    assert plan(run_s=4_000.0, checkpoint_every_s=every).goodput < plan(run_s=4_000.0).goodput


def test_buckets_of_a_hand_computed_run():
    found = plan(checkpoint_every_s=100.0, evaluation_s=6.0, data_wait_s=8.0)
    # Undisturbed: 400 steps, 8 waiting, 4 saves of 2, 6 of validation, 4 + 2 to start. Every 400 s a failure costs 10 s
    # and half an interval, 60 s in all.
    elapsed = (400 + 8 + 8 + 6 + 6) / (1 - 60 / 400)
    failures = elapsed / 400
    assert found.buckets == pytest.approx(
        {
            "step": 400.0,
            "data_wait": 8.0,
            "checkpoint_save": 8.0,
            "evaluation": 6.0,
            "startup": 4.0 + failures * 5.0,
            "compile": 2.0 * (1 + failures),
            "lost_steps": failures * 50.0,
            "down": failures * 3.0,
        }
    )
    assert (found.saves, found.interval_steps, found.failures) == (4, 100, pytest.approx(failures))
    assert found.elapsed_s == pytest.approx(elapsed)
    assert found.goodput == pytest.approx(400 / elapsed)


@pytest.mark.parametrize("chips", [1, 3, 7])
def test_buckets_are_those_a_run_records_and_add_up_to_the_elapsed_time(chips):
    found = plan(num_chips=chips, run_s=977.0, evaluation_s=5.0)
    assert list(found.buckets) == list(BUCKETS)
    assert sum(found.buckets.values()) == pytest.approx(found.elapsed_s)


def test_more_hosts_save_faster_and_more_chips_fail_more_often():
    assert plan(num_hosts=4).save_s == 0.5
    assert plan(num_chips=8).mtbf_s == pytest.approx(50.0)


def test_run_shorter_than_the_interval_saves_once_at_its_end():
    found = plan(run_s=7.0)
    assert (found.saves, found.interval_steps) == (1, 7)


def test_llama_3_would_have_been_effective_for_more_than_nine_tenths_of_its_time():
    # 405e9 parameters with moments and master copy in fp32, 2,048 hosts. Section 3.3.4 says "higher than 90%".
    found = plan_goodput(
        checkpoint_bytes=405 * 10**9 * 12,
        num_hosts=2_048,
        num_chips=16_384,
        run_s=45 * 24 * HOUR,
        step_s=20.0,
        checkpoint_every_s=None,
    )
    assert found.mtbf_s == pytest.approx(54 * 24 * HOUR / 419)
    assert 0.90 < found.goodput < 0.97


def test_slice_that_fails_faster_than_it_restarts_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"40 chips fail every 10 s and each failure costs .* fewer chips") as error:
        plan(num_chips=40)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"run_s": 0.0}, "run_s"), ({"num_hosts": 0}, "num_hosts"), ({"step_s": math.nan}, "step_s"),
     ({"checkpoint_every_s": -1.0}, "checkpoint_every_s")],
)  # fmt: skip
def test_number_that_is_not_positive_is_refused_by_name(changes, named):
    with pytest.raises(ConfigError, match=f"needs {named} above 0"):
        plan(**changes)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(GoodputAssumptions)])
def test_assumption_that_cannot_be_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(PLAIN, **{name: stated(-1.0)})


def test_plan_is_json_with_the_source_of_every_assumption():
    values = json.loads(json.dumps(plan().to_json()))
    assert values["optimal_interval_s"] == pytest.approx(40.0)
    assert values["assumptions"]["down_s"] == {"name": "stated", "value": 3.0, "unit": "", "source": "test"}
