"""What holds of every kind of model whose checkpoints can be read, on each golden folder."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.weights.golden_folder import GOLDEN, parameter_shapes, read_golden, to_ours, to_reference
from wamjax.config.schema import ParallelConfig
from wamjax.parallel.mesh import build_mesh
from wamjax.parallel.parameters import flatten_params
from wamjax.weights.exchange import load_reference
from wamjax.weights.kinds.registry import KINDS, find_kind
from wamjax.weights.tensors import TensorFolder

FOLDERS = sorted(path.parent for path in GOLDEN.glob("**/config.json"))
NAMES = [str(folder.relative_to(GOLDEN)) for folder in FOLDERS]


def _namings() -> list[tuple[Path, str]]:
    kinds = [find_kind(json.loads((folder / "config.json").read_text())) for folder in FOLDERS]
    return [(folder, naming) for folder, kind in zip(FOLDERS, kinds, strict=True) for naming in kind.namings]


def test_every_kind_with_a_forward_pass_has_a_golden_folder() -> None:
    held = {find_kind(json.loads((folder / "config.json").read_text())).class_name for folder in FOLDERS}
    assert held == {kind.class_name for kind in KINDS.values() if kind.has_outputs}


@pytest.mark.parametrize(("folder", "naming"), _namings(), ids=str)
def test_every_parameter_has_one_rule_and_every_rule_a_tensor_or_part_of_its_own(folder: Path, naming: str) -> None:
    golden = read_golden(folder)
    kind = find_kind(golden.config)
    config = kind.parse_config(golden.config)
    rules = kind.rules(config, naming)
    assert sorted(rule.path for rule in rules) == sorted(parameter_shapes(kind, config))
    assert len({(rule.name, rule.part) for rule in rules}) == len(rules)


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_tensors_come_back_byte_for_byte_through_every_naming(folder: Path) -> None:
    golden = read_golden(folder)
    kind = find_kind(golden.config)
    config = kind.parse_config(golden.config)
    tensors = golden.tensors
    for former, naming in zip(kind.namings, (*kind.namings[1:], kind.namings[0]), strict=True):
        arrays = to_ours(kind, config, former, tensors)
        assert {path: array.shape for path, array in arrays.items()} == parameter_shapes(kind, config)
        tensors = to_reference(kind, config, naming, arrays)
    assert tensors.keys() == golden.tensors.keys()
    for name, tensor in golden.tensors.items():
        assert tensors[name].shape == tensor.shape
        assert tensors[name].tobytes() == np.ascontiguousarray(tensor).tobytes(), name


def test_devices_that_do_not_divide_a_width_hold_it_whole() -> None:
    folder = GOLDEN / "cosmos_transformer" / "frames"  # 24 wide, 48 in its feed-forward layers
    tensors = TensorFolder(folder, [folder / "model.safetensors"])
    one, five = (
        flatten_params(
            load_reference(folder, build_mesh(ParallelConfig(fsdp=-1), jax.devices()[:count]), folder=tensors).params
        )
        for count in (1, 5)
    )
    assert all(array.sharding.num_devices == 5 for array in five.values())
    for path, array in one.items():
        assert np.array_equal(array, five[path]), path
