import math
from typing import Any

import pytest

from wamjax.errors import ConfigError
from wamjax.planning.run_length import ZETTA, Rates, Wanted, parse_duration, solve_steps

RATES = Rates(
    batch=8, tokens_per_sample=1000, model_flops_per_sample=10**15, elapsed_s=lambda n: 2.0 * n, usd=lambda n: 0.5 * n
)


def solve(**wanted: Any) -> tuple[int, str]:
    return solve_steps(Wanted(**wanted), RATES, default=77)


def test_nothing_wanted_takes_the_configuration() -> None:
    assert solve() == (77, "config.train.num_steps")


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        ({"steps": 5}, 5),
        ({"tokens": 80_000.0}, 10),
        ({"tokens": 80_001.0}, 11),  # the last step is whole
        ({"zflops": 8e15 * 3 / ZETTA}, 3),
        ({"budget_usd": 10.9}, 21),
        ({"deadline_s": 9.9}, 4),
        ({"deadline_s": 8.0}, 4),
        ({"deadline_s": 2e6}, 10**6),
    ],
)
def test_each_kind_of_length_gives_steps(wanted: dict[str, Any], steps: int) -> None:
    assert solve(**wanted)[0] == steps


def test_lengths_that_agree_are_one() -> None:
    assert solve(steps=10, tokens=80_000.0) == (10, "--steps")


def test_limits_beside_a_length_only_check_it() -> None:
    assert solve(steps=4, deadline_s=100.0, budget_usd=100.0) == (4, "--steps")


def test_of_two_limits_the_tighter_one_decides() -> None:
    assert solve(deadline_s=100.0, budget_usd=1.0) == (2, "--budget_usd")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"steps": 9, "tokens": 80_000.0}, "--steps=9 is 9 steps of 8 samples and --tokens=80000 is 10"),
        ({"steps": 10, "tokens": 80_000.0, "zflops": 1.0}, "--steps=10 .* and --zflops=1 is 125,000"),
        ({"steps": 9, "deadline_s": 7.0}, "allows 3 by the expected step time"),
        ({"budget_usd": 0.1}, "does not allow a single step"),
    ],
)
def test_contradictions_are_refused_in_one_line(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        solve(**wanted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("wanted", "needs"), [({"deadline_s": 5.0}, "--topology"), ({"budget_usd": 5.0}, "price")])
def test_limits_without_a_machine_are_refused(wanted: dict[str, Any], needs: str) -> None:
    without = Rates(batch=1, tokens_per_sample=1, model_flops_per_sample=1)
    with pytest.raises(ConfigError, match=needs):
        solve_steps(Wanted(**wanted), without, default=1)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_length_of_nothing_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"--tokens=.*; expected more than 0"):
        Wanted(tokens=value)


def test_durations_are_read() -> None:
    assert parse_duration("1d12h") == 129_600.0
    assert parse_duration("90m") == 5400.0
    for text in ("14", "d", "3w", "1d-2h", ""):
        with pytest.raises(ConfigError, match="is no duration"):
            parse_duration(text)


def test_the_length_that_a_plan_states_gives_its_own_steps_back() -> None:
    flops = 5_035_110_849_576_960
    rates = Rates(batch=16, tokens_per_sample=32_760, model_flops_per_sample=flops)
    for steps in range(1, 400):
        wanted = Wanted(steps=steps, zflops=steps * 16 * flops / ZETTA, tokens=float(steps * 16 * 32_760))
        assert solve_steps(wanted, rates, default=1)[0] == steps
