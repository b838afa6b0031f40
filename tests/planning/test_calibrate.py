"""The fit: exact where one share decides, prior where nothing does, and back through the file the planner reads."""

import dataclasses
import json

import pytest

from tests.tiny import TINY
from wamjax.errors import ConfigError
from wamjax.planning.assumption import Band
from wamjax.planning.calibrate import Observation, describe, fit_efficiencies, observe
from wamjax.planning.efficiency import SHARES, Efficiencies, with_overrides
from wamjax.planning.machine import machine_of_chips

ASSUMED = Efficiencies(
    chips=("any",), **dict.fromkeys(SHARES, Band(low=0.3, mid=0.5, high=0.7)), sources={"matmul": "a paper"}
)


def run_of(step_s, **work):
    """A run whose step is the sum of some work (in seconds at the full rate) over the share it reaches."""
    return Observation(
        name="run", predict=lambda e: sum(s / getattr(e, name).mid for name, s in work.items()), step_s=step_s
    )


def test_share_that_alone_decides_the_time_goes_to_what_explains_it():
    fit = fit_efficiencies(ASSUMED, [run_of(2.5, matmul=1.0)] * 20)
    assert fit.fitted == ("matmul",)
    assert fit.efficiencies.matmul.mid == pytest.approx(0.4, rel=0.005)
    _, measured, before, after = fit.times[0]
    assert (measured, before) == (2.5, 2.0)
    assert after == pytest.approx(2.5, rel=0.005)


def test_one_run_moves_the_share_most_that_it_depends_on_most():
    fit = fit_efficiencies(ASSUMED, [run_of(2.4, matmul=0.9, memory=0.1)])
    moved = {name: 0.5 - getattr(fit.efficiencies, name).mid for name in fit.fitted}
    assert set(moved) == {"matmul", "memory"}
    assert moved["matmul"] > 3 * moved["memory"] > 0


def test_two_runs_tell_two_shares_apart():
    runs = [run_of(10 / 0.6, matmul=10.0), run_of(1 / 0.6 + 10 / 0.4, matmul=1.0, links=10.0)]
    fit = fit_efficiencies(ASSUMED, runs).efficiencies
    assert (fit.matmul.mid, fit.links.mid) == (pytest.approx(0.6, rel=0.03), pytest.approx(0.4, rel=0.03))


def test_what_no_run_depends_on_keeps_its_assumed_value_and_is_not_written():
    fit = fit_efficiencies(ASSUMED, [run_of(2.5, matmul=1.0)])
    assert set(fit.to_json()) == {"matmul", "_fitted_to"}
    for name in SHARES[1:]:
        assert getattr(fit.efficiencies, name) == ASSUMED.links
    assert "no run depends on it" in describe(ASSUMED, fit)


def test_bands_narrow_and_stay_ordered_within_0_and_1():
    for step_s in (1.05, 1.5, 2.0, 4.0, 40.0):
        band = fit_efficiencies(ASSUMED, [run_of(step_s, matmul=1.0)]).efficiencies.matmul
        assert 0 < band.low <= band.mid <= band.high <= 1
        assert band.high - band.low <= 0.4 + 1e-9


def test_noisy_run_moves_less_than_a_steady_one():
    steady = fit_efficiencies(ASSUMED, [run_of(2.5, matmul=1.0)]).efficiencies.matmul.mid
    noisy = dataclasses.replace(run_of(2.5, matmul=1.0), error=1.0)
    assert steady < fit_efficiencies(ASSUMED, [noisy]).efficiencies.matmul.mid < 0.5


def test_fit_comes_back_through_the_file_that_the_planner_reads():
    fit = fit_efficiencies(ASSUMED, [run_of(2.5, matmul=1.0), run_of(3.0, memory=1.0)])
    again = with_overrides(ASSUMED, json.dumps(fit.to_json()), "--efficiencies=f.json")
    assert again.matmul == fit.efficiencies.matmul
    assert again.memory == fit.efficiencies.memory
    assert "fitted to run" in again.sources["matmul"]
    assert "a paper" in again.sources["matmul"]


def test_run_whose_dtype_has_no_listed_peak_is_refused_by_name():
    with pytest.raises(ConfigError, match="runs/x cannot be fitted: no listed float32 peak"):
        observe("runs/x", TINY, machine_of_chips("h200:1"), 1.0)
