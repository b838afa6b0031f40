import dataclasses
import operator
import re

import pytest

from wamjax.config import bridge, validation
from wamjax.config.schema import RunConfig
from wamjax.config.sources import MixtureConfig, MixtureSource, MixtureStage
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


A, B = MixtureSource(name="a", path="x"), MixtureSource(name="b", path="y", weight=0.0)


@pytest.mark.parametrize(
    ("mixture", "words"),
    [
        (MixtureConfig(sources=(A, A)), "sources[1].name = 'a'"),
        (MixtureConfig(sources=(MixtureSource(name="../x", path="x"),)), "sources[0].name = '../x'"),
        (MixtureConfig(sources=(B,)), "weight = (0.0,); expected 0 or more each, and one above 0"),
        (MixtureConfig(sources=(A, dataclasses.replace(B, frame_stride=0))), "sources[1].frame_stride = 0"),
        (MixtureConfig(stages=(MixtureStage(step=4, weights=(1.0,)),)), "config.data.mixture.sources is empty"),
        (
            MixtureConfig(sources=(A, B), stages=(MixtureStage(step=4, weights=(1.0,)),)),
            "config.data.mixture.stages[0].weights = (1.0,) has 1 entries; expected 2: a, b",
        ),
        (
            MixtureConfig(sources=(A,), stages=(MixtureStage(step=4, weights=(1.0,)),) * 2),
            "config.data.mixture.stages[1].step = 4; expected more than 4",
        ),
    ],
)
def test_mixture_that_makes_no_sense_is_refused_in_one_line(mixture: MixtureConfig, words: str) -> None:
    config = dataclasses.replace(RunConfig(), data=dataclasses.replace(RunConfig().data, mixture=mixture))
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        bridge.from_config_dict(dataclasses.asdict(config))
    assert "\n" not in str(caught.value)


def test_mixture_survives_config_dict_json_and_the_command_line() -> None:
    mixture = MixtureConfig(sources=(A, B), stages=(MixtureStage(step=9, weights=(0.5, 0.5)),))
    config = dataclasses.replace(RunConfig(), data=dataclasses.replace(RunConfig().data, mixture=mixture))
    assert bridge.from_config_dict(bridge.to_config_dict(config)) == config
    assert bridge.from_json(bridge.to_json(config)) == config
    text = "[{'name': 'a', 'path': 'x'}, {'name': 'b', 'path': 'z', 'weight': 0.0}]"
    changed = bridge.apply_overrides(config, [f"data.mixture.sources={text}"])
    assert bridge.diff_configs(config, changed) == [("data.mixture.sources[1].path", "y", "z")]
