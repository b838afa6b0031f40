"""Money and energy of chip-hours: the price file, and what a number of chip-hours costs by it.

A price file is JSON:

    {"date": "2026-03-01", "region": "us-east5", "usd_per_chip_hour": {"TPU v5p": 3.10, "h100": {"on_demand": 4.2}}}

Chips are named as in ``flops.hardware`` or by the last word of that (``v5p``, ``h100``). A file replaces the example
prices as a whole: a chip it does not list has no price, rather than an example's.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wamjax.errors import ConfigError
from wamjax.flops.hardware import CHIPS, Chip
from wamjax.planning.assumption import Assumption
from wamjax.planning.power import find_power

STALE_AFTER_DAYS = 90
_FIELDS = ("date", "region", "usd_per_chip_hour")
_TARIFFS = ("on_demand", "three_year")

# Google's fleet; hyperscale data centres of others lie within 0.1 of it.
PUE = Assumption(
    name="power of the data centre over that of its machines",
    value=1.1,
    unit="",
    source="power usage effectiveness of Google's data centres, Environmental Report 2024",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChipPrice:
    """US dollars per chip and hour: on demand, and under a three-year commitment where listed."""

    on_demand: float
    three_year: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices by chip, with when, where and by whom they were read.

    Attributes:
      by_chip: ``Chip.name`` -> price.
      date: When they were read: a day, or for the examples a span of years.
      region: Where they hold.
      source: File, or where the examples come from.
      warning: One line for whoever reads the result, or None: the file is older than ``STALE_AFTER_DAYS``, or these are
        the examples.
    """

    by_chip: Mapping[str, ChipPrice]
    date: str
    region: str
    source: str
    warning: str | None = None

    def describe(self) -> str:
        """One line: source, region, date."""
        return f"{self.source}, {self.region}, {self.date}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What chip-hours cost.

    Attributes:
      chip_hours: Hours of chips.
      usd: US dollars on demand; None where the chip has no price.
      usd_three_year: The same under a three-year commitment; None where not listed.
      usd_per_chip_hour: The price that was taken.
      usd_reason: Why there is no price, or None.
      energy_kwh: Energy with the data centre's share; None where nobody states the chip's power.
      energy_source: Whose power figure, and of what; or why there is none.
      prices: Where prices come from: ``Prices.describe``.
    """

    chip_hours: float
    usd: float | None
    usd_three_year: float | None
    usd_per_chip_hour: float | None
    usd_reason: str | None
    energy_kwh: float | None
    energy_source: str
    prices: str

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain JSON data."""
        return dataclasses.asdict(self)


def load_prices(path: str | None = None, *, today: datetime.date | None = None) -> Prices:
    """Returns the prices of a file, or the examples of ``flops.hardware``.

    Args:
      path: A price file; None for the examples.
      today: The day to judge its age by; None for the clock's.

    Raises:
      ConfigError: The file cannot be read, is not of the form above, or names an unknown chip.
    """
    if path is None:
        return _example_prices()
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--prices={path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--prices={path} is not JSON: {error}") from error
    return _parse(path, values, datetime.date.today() if today is None else today)


def plan_cost(*, chip: Chip, chip_hours: float, prices: Prices) -> Cost:
    """Returns what ``chip_hours`` hours of ``chip`` cost in money and energy."""
    price = prices.by_chip.get(chip.name)
    power = find_power(chip)
    three_year = None if price is None else price.three_year
    return Cost(
        chip_hours=chip_hours,
        usd=None if price is None else chip_hours * price.on_demand,
        usd_three_year=None if three_year is None else chip_hours * three_year,
        usd_per_chip_hour=None if price is None else price.on_demand,
        usd_reason=None if price is not None else f"{prices.describe()} has no price for {chip.name}",
        energy_kwh=None if power is None else chip_hours * power.watts / 1e3 * _overhead(power.of),
        energy_source=f"no vendor or paper states the power of {chip.name}"
        if power is None
        else f"{power.watts:,.0f} W per chip ({power.of}; {power.source})"
        + ("" if power.of == "system" else f", x {PUE.value:g} for the data centre"),
        prices=prices.describe(),
    )


def find_named_chip(name: str) -> Chip | None:
    """Returns the chip called ``name``: its name, one of its device kinds, or the short form (``v5p``, ``h100``)."""
    return _by_alias().get(name.strip().lower())


def _overhead(of: str) -> float:
    return 1.0 if of == "system" else PUE.value


def _example_prices() -> Prices:
    listed = {chip.name: chip.price for chip in CHIPS if chip.price is not None}
    read = sorted({price.read for price in listed.values()})
    return Prices(
        by_chip={
            name: ChipPrice(on_demand=price.on_demand, three_year=price.three_year) for name, price in listed.items()
        },
        date=", ".join(read),
        region="region not stated",
        source="examples of wamjax/flops/hardware.py",
        warning=f"prices are examples read {', '.join(read)}; give your own with --prices=FILE",
    )


def _by_alias() -> dict[str, Chip]:
    """Returns every name a chip goes by, in lower case; a short form that two chips would share belongs to neither."""
    aliases: dict[str, list[Chip]] = {}
    for chip in CHIPS:
        words = chip.name.lower().removesuffix(" sxm").split()
        short = words[-1].split("-")[0]
        for alias in {chip.name.lower(), *(kind.lower() for kind in chip.device_kinds), short}:
            aliases.setdefault(alias, []).append(chip)
    return {alias: chips[0] for alias, chips in aliases.items() if len(chips) == 1}


def _parse(path: str, values: Any, today: datetime.date) -> Prices:
    if not isinstance(values, dict) or set(values) != set(_FIELDS):
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise ConfigError(f"--prices={path} holds {found}; expected an object with {', '.join(_FIELDS)}")
    try:
        date = datetime.date.fromisoformat(values["date"])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--prices={path}: date {values['date']!r} is not a day such as 2026-03-01") from error
    region, listed = values["region"], values["usd_per_chip_hour"]
    if not (isinstance(region, str) and region):
        raise ConfigError(f"--prices={path}: region {region!r} is not a name")
    if not (isinstance(listed, dict) and listed):
        raise ConfigError(f"--prices={path}: usd_per_chip_hour is {listed!r}; expected an object of chips and prices")
    by_chip: dict[str, ChipPrice] = {}
    for name, price in listed.items():
        chip = find_named_chip(name)
        if chip is None:
            raise ConfigError(f"--prices={path}: unknown chip {name!r}; {_nearest_chip(name)}")
        if chip.name in by_chip:
            raise ConfigError(f"--prices={path}: {chip.name} has two prices, one under {name!r}; leave one")
        by_chip[chip.name] = _parse_price(path, name, price)
    age = (today - date).days
    warning = None
    if age > STALE_AFTER_DAYS:
        warning = f"--prices={path} was read on {date}, {age} days ago; prices change, look again"
    elif age < 0:
        warning = f"--prices={path} is dated {date}, which is still to come"
    return Prices(by_chip=by_chip, date=date.isoformat(), region=region, source=path, warning=warning)


def _parse_price(path: str, name: str, price: Any) -> ChipPrice:
    tariffs = {"on_demand": price} if isinstance(price, int | float) else price
    if not isinstance(tariffs, dict) or "on_demand" not in tariffs or not set(tariffs) <= set(_TARIFFS):
        raise ConfigError(
            f"--prices={path}: price of {name!r} is {price!r}; expected dollars, or an object with on_demand and "
            "perhaps three_year"
        )
    for tariff, dollars in tariffs.items():
        is_number = isinstance(dollars, int | float) and not isinstance(dollars, bool)
        if not (is_number and math.isfinite(dollars) and dollars > 0):
            raise ConfigError(f"--prices={path}: {tariff} price of {name!r} is {dollars!r}; expected dollars above 0")
    return ChipPrice(**{tariff: float(dollars) for tariff, dollars in tariffs.items()})


def _nearest_chip(name: str) -> str:
    nearest = difflib.get_close_matches(name.strip().lower(), _by_alias(), n=3, cutoff=0.4)
    known = ", ".join(chip.name for chip in CHIPS)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"known are {known}"
