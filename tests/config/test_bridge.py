import dataclasses
import json
import typing

import pytest

from wamjax.config import bridge
from wamjax.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from wamjax.errors import ConfigError

VIEWS = (("observation.images.left", 0, 0, 96, 96), ("observation.images.right", 0, 96, 96, 96))
CONFIG = RunConfig(
    name="unlike the defaults",
    model=ModelConfig(width=96, patch=(1, 8, 8), compute_dtype="bfloat16"),
    data=DataConfig(views=VIEWS, validation_fraction=0.25),
    train=TrainConfig(num_steps=7),
)


def with_value(key: str, value: object) -> dict:
    """The default configuration as a nested dict with one value replaced (or added)."""
    nested = dataclasses.asdict(RunConfig())
    holder = nested
    *sections, name = key.split(".")
    for section in sections:
        holder = holder[section]
    holder[name] = value
    return nested


def refusal(key: str, value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        bridge.from_config_dict(with_value(key, value))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_config_dict_round_trip_is_identity() -> None:
    assert bridge.from_config_dict(bridge.to_config_dict(CONFIG)) == CONFIG


def test_json_round_trip_is_identity_and_keeps_tuples() -> None:
    restored = bridge.from_json(bridge.to_json(CONFIG))
    assert restored == CONFIG
    assert isinstance(restored.data.views[0], tuple)
    assert isinstance(restored.model.patch, tuple)


def test_config_dict_is_locked() -> None:
    config: typing.Any = bridge.to_config_dict(RunConfig())
    with pytest.raises(AttributeError, match="nope"):
        config.train.nope = 1
    with pytest.raises(TypeError):
        config.train.num_steps = "many"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.num_step", 3, ["config.train.num_step ", "did you mean config.train.num_steps?"]),
        ("trian", {}, ["config.trian ", "did you mean config.train?"]),
        ("num_layers", 3, ["did you mean config.model.num_layers?"]),
        ("train.zzz", 3, ["config.train.zzz", "num_steps, global_batch_size, accumulate, seed"]),
        ("train.num_steps", 3.0, ["config.train.num_steps = 3.0", "a whole number"]),
        ("train.num_steps", True, ["config.train.num_steps = True", "a whole number"]),
        ("train.num_steps", None, ["config.train.num_steps", "None"]),
        ("log.tensorboard", 1, ["config.log.tensorboard = 1", "true or false"]),
        ("optimizer.peak_lr", True, ["config.optimizer.peak_lr = True", "a number"]),
        ("optimizer.peak_lr", "1e-3", ["config.optimizer.peak_lr = '1e-3'", "a number"]),
        ("optimizer.peak_lr", float("nan"), ["config.optimizer.peak_lr", "not finite"]),
        ("model.compute_dtype", "bf16", ["config.model.compute_dtype = 'bf16'", "did you mean bfloat16?"]),
        ("model.patch", [1, 2], ["config.model.patch", "2 entries", "expected 3"]),
        ("model.patch", [1, 2, 2.0], ["config.model.patch[2] = 2.0", "a whole number"]),
        ("data.views", [["left", 0, 0, 96]], ["config.data.views[0]", "4 entries", "expected 5"]),
        ("data.views", "left", ["config.data.views = 'left'", "a tuple"]),
        ("train", 3, ["config.train = 3", "a section"]),
        ("train.num_steps", 0, ["config.train.num_steps = 0", "more than 0"]),
        ("data.validation_fraction", 1.0, ["config.data.validation_fraction = 1.0", "between 0 and 1"]),
        ("objective.video_residual", "last_clean", ["config.objective.video_prediction = x0"]),
    ],
)
def test_from_config_dict_refuses_in_one_line_naming_the_key(key: str, value: object, words: list[str]) -> None:
    message = refusal(key, value)
    for word in words:
        assert word in message


def test_from_config_dict_takes_a_whole_number_for_a_float() -> None:
    config = bridge.from_config_dict(with_value("optimizer.peak_lr", 1))
    assert config.optimizer.peak_lr == 1.0
    assert isinstance(config.optimizer.peak_lr, float)


def test_from_config_dict_gives_absent_keys_their_default() -> None:
    nested = dataclasses.asdict(CONFIG)
    del nested["data"]["frame_stride"], nested["log"]
    assert bridge.from_config_dict(nested) == CONFIG


def test_from_json_refuses_what_is_no_configuration() -> None:
    for text in ("{", "[1]"):
        with pytest.raises(ConfigError, match="configuration is"):
            bridge.from_json(text)


def test_diff_configs_names_every_differing_field_and_no_other() -> None:
    assert bridge.diff_configs(CONFIG, CONFIG) == []
    changed = dataclasses.replace(CONFIG, name="b", train=TrainConfig(num_steps=8))
    assert bridge.diff_configs(CONFIG, changed) == [("name", CONFIG.name, "b"), ("train.num_steps", 7, 8)]


def replace_field(section: typing.Any, names: list[str], value: int) -> typing.Any:
    """``section`` with another value in a field of it, or of a section inside it."""
    head, *rest = names
    inner = replace_field(getattr(section, head), rest, value) if rest else value
    return dataclasses.replace(section, **{head: inner})


@pytest.mark.parametrize("key", [key for key, value in bridge.iterate_fields(RunConfig()) if type(value) is int])
def test_diff_configs_sees_every_field(key: str) -> None:
    old = dict(bridge.iterate_fields(RunConfig()))[key]
    changed = replace_field(RunConfig(), key.split("."), old + 1)
    assert bridge.diff_configs(RunConfig(), changed) == [(key, old, old + 1)]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.num_steps=40", 40),
        ("train.num_steps=1_000", 1000),
        ("optimizer.peak_lr=3e-4", 3e-4),
        ("optimizer.peak_lr=1", 1.0),
        ("log.tensorboard=false", False),
        ("name=a=b", "a=b"),
        ("model.compute_dtype=bfloat16", "bfloat16"),
        ("model.patch=1,8,8", (1, 8, 8)),
        ("model.patch=(1, 8, 8)", (1, 8, 8)),
        ("evaluate.rollout_tasks=reach-v3,door-open-v3", ("reach-v3", "door-open-v3")),
        ("evaluate.rollout_tasks=reach-v3", ("reach-v3",)),
        ("evaluate.rollout_tasks=()", ()),
        ("evaluate.rollout_tasks=", ()),
        ("data.views=(('left', 0, 0, 96, 96),)", (("left", 0, 0, 96, 96),)),
        ("parallel.context=-1", -1),
    ],
)
def test_apply_overrides_reads_the_fields_type(override: str, expected: object) -> None:
    config = bridge.apply_overrides(RunConfig(), [override])
    fields = dict(bridge.iterate_fields(config))
    value = fields[override.partition("=")[0]]
    assert value == expected
    assert type(value) is type(expected)


def test_apply_overrides_changes_only_the_named_field_and_the_last_one_wins() -> None:
    config = bridge.apply_overrides(CONFIG, ["train.num_steps=8", "train.num_steps=9"])
    assert bridge.diff_configs(CONFIG, config) == [("train.num_steps", 7, 9)]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.num_step=3", "did you mean config.train.num_steps?"),
        ("train=3", "config.train is a section"),
        ("train.num_steps.more=3", "config.train.num_steps is a value"),
        ("train.num_steps", "has no value"),
        ("train.num_steps=3.5", "config.train.num_steps = '3.5' is not a whole number"),
        ("train.num_steps=True", "config.train.num_steps = 'True' is not a whole number"),
        ("log.tensorboard=2", "config.log.tensorboard = '2' is not true or false"),
        ("model.patch=1,8", "2 entries; expected 3"),
        ("model.patch=(1,8", "cannot be read as a tuple of 3"),
        ("layout.order=natrual", "did you mean natural?"),
        ("train.num_steps=-1", "out of range"),
    ],
)
def test_apply_overrides_refuses_in_one_line(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bridge.apply_overrides(RunConfig(), [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_default_passes_its_own_check() -> None:
    assert bridge.from_config_dict(dataclasses.asdict(RunConfig())) == RunConfig()


def test_every_number_of_the_schema_survives_json_with_its_type() -> None:
    restored = json.loads(bridge.to_json(RunConfig()))
    for key, value in bridge.iterate_fields(RunConfig()):
        section: typing.Any = restored
        for name in key.split("."):
            section = section[name]
        if not isinstance(value, tuple):
            assert type(section) is type(value), key
