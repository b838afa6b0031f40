"""Presets and overrides of the rule tables, and that every preset trains as one device does."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.parallel.test_explicit import CONFIG, _two_steps
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.parallel.explicit import make_placement
from wamjax.parallel.mesh import build_mesh
from wamjax.parallel.rule_tables import RULES, build_rules
from wamjax.training.program import build_program

MESHES = {
    "fsdp": {"fsdp": 4, "context": 2},
    "fsdp_context": {"data": 2, "fsdp": 2, "context": 2},
    "fsdp_context_tensor": {"fsdp": 2, "context": 2, "tensor": 2},
    "multi_slice": {"data": 2, "fsdp": 2, "context": 2},
}


@pytest.fixture(scope="module")
def on_one_device() -> list[list[float]]:
    return _two_steps(ParallelConfig(fsdp=1), 1)


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(RULES))
@pytest.mark.parametrize("blocks", ["sharded", "explicit"])
def test_preset_trains_as_one_device_does(preset: str, blocks: str, on_one_device: list[list[float]]) -> None:
    axes = MESHES[preset]
    if blocks == "explicit" and "tensor" in axes:
        pytest.skip("explicit blocks have no tensor axis, which is refused")
    parallel = ParallelConfig(**{**axes, "rules": preset, "blocks": blocks})
    np.testing.assert_allclose(_two_steps(parallel, 8), on_one_device, rtol=1e-5)


def test_fsdp_context_tensor_splits_what_is_kept_between_layers() -> None:
    parallel = ParallelConfig(fsdp=2, context=2, tensor=2, rules="fsdp_context_tensor")
    mesh = build_mesh(parallel)
    program = build_program(dataclasses.replace(CONFIG, parallel=parallel), mesh)
    up = program.abstract_state["params"]["blocks"]["mlp"]["up"]["kernel"]
    assert up.sharding.shard_shape(up.shape) == (up.shape[0], up.shape[1] // 4, up.shape[2] // 2)
    assert build_rules(parallel).activations["stream"] == ("context", "tensor")
    assert jax.device_count() == mesh.size


def test_overrides_replace_rules_of_both_tables() -> None:
    config = ParallelConfig(rules="fsdp_context", rule_overrides=(("embed", "fsdp"), ("mlp", "")))
    tables = build_rules(config)
    assert tables.parameters["embed"] == tables.activations["embed"] == ("fsdp",)
    assert tables.parameters["mlp"] is tables.activations["mlp"] is None
    assert RULES["fsdp_context"].parameters["embed"] == ("fsdp", "context")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ParallelConfig(rule_overrides=(("embd", "fsdp"),)), "no dim is named 'embd'; known: attention_heads, batch"),
        (ParallelConfig(rule_overrides=(("embed", "fsdp+model"),)), "names no mesh axis 'model'; axes are data, fsdp"),
        (ParallelConfig(rule_overrides=(("tokens", ""),)), r"rule_overrides: tokens=''; .*config\.parallel\.context=1"),
        (ParallelConfig(rules="multi_slice"), r"multi_slice with data=1.*config\.parallel\.data"),
        (ParallelConfig(rules="multi_slice", data=-1, fsdp=8), "multi_slice with data=1"),
        (
            ParallelConfig(context=2, blocks="explicit", rule_overrides=(("mlp", "context"),)),
            r"explicit splits kernels along embed alone, and the rules put mlp on context",
        ),
    ],
)
def test_rules_that_cannot_be_are_one_line(config: ParallelConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        make_placement(config, build_mesh(config))
    assert "\n" not in str(error.value)
