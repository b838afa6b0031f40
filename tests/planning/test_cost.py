"""Prices from a file or from the table, and energy only where somebody states a chip's power."""

import datetime
import json

import pytest

from wamjax.errors import ConfigError
from wamjax.flops.hardware import CHIPS, find_chip
from wamjax.planning.cost import PUE, find_named_chip, load_prices, plan_cost
from wamjax.planning.power import POWER, find_power


def chip(kind):
    found = find_chip(kind)
    assert found is not None
    return found


V5P, V4, H100, TPU7X = (chip(kind) for kind in ("TPU v5p", "TPU v4", "NVIDIA H100 80GB HBM3", "TPU7x"))
DAY = datetime.date(2026, 3, 10)
GOOD = {
    "date": "2026-03-01",
    "region": "us-east5",
    "usd_per_chip_hour": {"v5p": 3, "h100": {"on_demand": 4.5, "three_year": 2.0}},
}


def price_file(folder, values):
    path = folder / "prices.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(path)


def test_own_prices_cost_what_the_file_says(tmp_path):
    prices = load_prices(price_file(tmp_path, GOOD), today=DAY)
    cost = plan_cost(chip=V5P, chip_hours=100.0, prices=prices)
    assert (cost.usd, cost.usd_per_chip_hour, cost.usd_three_year) == (300.0, 3, None)
    assert prices.warning is None
    assert "us-east5, 2026-03-01" in cost.prices
    cost = plan_cost(chip=H100, chip_hours=10.0, prices=prices)
    assert (cost.usd, cost.usd_three_year) == (45.0, 20.0)


def test_chip_missing_in_the_file_has_no_price_rather_than_an_example(tmp_path):
    cost = plan_cost(chip=V4, chip_hours=1.0, prices=load_prices(price_file(tmp_path, GOOD), today=DAY))
    assert cost.usd is None
    assert "no price for TPU v4" in str(cost.usd_reason)


def test_examples_of_the_table_say_that_they_are_examples_and_of_when():
    prices = load_prices(None)
    assert plan_cost(chip=V4, chip_hours=2.0, prices=prices).usd == pytest.approx(6.44)
    assert plan_cost(chip=V4, chip_hours=2.0, prices=prices).usd_three_year == pytest.approx(2.90)
    assert "2022-2025" in str(prices.warning)
    assert "--prices" in str(prices.warning)


def test_stale_file_warns_with_its_date(tmp_path):
    path = price_file(tmp_path, GOOD)
    assert load_prices(path, today=datetime.date(2026, 5, 30)).warning is None
    assert "2026-03-01, 91 days ago" in str(load_prices(path, today=datetime.date(2026, 5, 31)).warning) or ""
    assert "still to come" in str(load_prices(path, today=datetime.date(2026, 2, 1)).warning)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "is not JSON"),
        ([], "holds list; expected an object with date, region, usd_per_chip_hour"),
        ({"date": "2026-03-01"}, r"holds \['date'\]"),
        ({**GOOD, "currency": "EUR"}, "currency"),
        ({**GOOD, "date": "March"}, "date 'March' is not a day"),
        ({**GOOD, "date": 3}, "date 3 is not a day"),
        ({**GOOD, "region": ""}, "region '' is not a name"),
        ({**GOOD, "usd_per_chip_hour": {}}, "usd_per_chip_hour is {}"),
        ({**GOOD, "usd_per_chip_hour": {"v5q": 3}}, "unknown chip 'v5q'; did you mean .*v5"),
        ({**GOOD, "usd_per_chip_hour": {"v5p": 3, "TPU v5p": 4}}, "TPU v5p has two prices"),
        ({**GOOD, "usd_per_chip_hour": {"v5p": "3"}}, "price of 'v5p' is '3'"),
        ({**GOOD, "usd_per_chip_hour": {"v5p": True}}, "price of 'v5p' is True"),
        ({**GOOD, "usd_per_chip_hour": {"v5p": -1}}, "price of 'v5p' is -1"),
        ({**GOOD, "usd_per_chip_hour": {"v5p": {"three_year": 1}}}, "expected dollars"),
        ({**GOOD, "usd_per_chip_hour": {"v5p": {"on_demand": None}}}, "on_demand price of 'v5p' is None"),
    ],
)
def test_malformed_price_file_is_one_line_naming_file_and_fault(tmp_path, values, message):
    path = price_file(tmp_path, values)
    with pytest.raises(ConfigError, match=message) as error:
        load_prices(path, today=DAY)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_price_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read: No such file"):
        load_prices(str(tmp_path / "nowhere.json"))


def test_energy_is_stated_power_with_the_data_centre_on_top():
    cost = plan_cost(chip=V4, chip_hours=1_000.0, prices=load_prices(None))
    assert cost.energy_kwh == pytest.approx(192.0 * PUE.value)
    assert "2304.01433" in cost.energy_source


def test_energy_of_a_whole_system_has_the_data_centre_in_it():
    assert plan_cost(chip=TPU7X, chip_hours=9_216.0, prices=load_prices(None)).energy_kwh == pytest.approx(10_000.0)


def test_energy_that_nobody_states_is_none_with_a_reason():
    cost = plan_cost(chip=V5P, chip_hours=1.0, prices=load_prices(None))
    assert cost.energy_kwh is None
    assert "no vendor or paper states the power of TPU v5p" in cost.energy_source


def test_every_row_of_power_is_a_chip_and_is_found():
    names = {chip.name for chip in CHIPS}
    for power in POWER:
        assert power.chip in names
        assert find_power(next(chip for chip in CHIPS if chip.name == power.chip)) is power


@pytest.mark.parametrize(
    ("alias", "name"),
    [("v4", "TPU v4"), ("V5E", "TPU v5e"), ("v5p", "TPU v5p"), ("v6e", "TPU v6e"), ("tpu7x", "TPU7x"),
     ("a100", "NVIDIA A100-80GB SXM"), ("h100", "NVIDIA H100 SXM"), ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM"),
     ("h200", "NVIDIA H200"), ("b200", "NVIDIA B200"), ("gb200", "NVIDIA GB200"), ("mi300x", "AMD MI300X")],
)  # fmt: skip
def test_chip_is_found_by_its_short_name(alias, name):
    found = find_named_chip(alias)
    assert found is not None
    assert found.name == name


def test_part_of_a_name_finds_no_chip():
    assert find_named_chip("h10") is None
