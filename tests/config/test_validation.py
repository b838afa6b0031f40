import dataclasses
import operator

import pytest

from wamjax.config import bridge, validation
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError


def numeric_fields() -> list[str]:
    """Dotted keys of every whole or fractional number of the schema (bools are not numbers)."""
    return [key for key, value in bridge.iterate_fields(RunConfig()) if type(value) in (int, float)]


@pytest.mark.parametrize("key", numeric_fields())
def test_every_number_has_a_range_and_refuses_minus_seven(key: str) -> None:
    # -7 is outside every range of the schema: a knob added without a rule fails here.
    with pytest.raises(ConfigError, match=f"config.{key} = -7"):
        bridge.apply_overrides(RunConfig(), [f"{key}=-7"])


def test_every_rule_names_an_existing_field() -> None:
    for section, rules in validation._RULES.items():
        names = {field.name for field in dataclasses.fields(operator.attrgetter(section)(RunConfig()))}
        assert set(rules) <= names, section
