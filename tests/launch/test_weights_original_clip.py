"""``wamjax weights`` on the image encoder as Wan published it: fused projections, a text half, no config.json."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch import cli
from tests.weights.clip_original import original_clip
from wamjax.weights.kinds import clip_vision

FOLDER = Path(__file__).resolve().parents[1] / "golden/clip_vision"
WEIGHTS = "model.safetensors"
FUSED = "visual.transformer.1.attn.to_qkv.weight"  # [48 16] here
# What the published file holds beside the image encoder.
UNREAD = {"visual.head": (16, 8), "textual.head.0.weight": (4, 4), "textual.norm.bias": (4,), "log_scale": ()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The golden checkpoint and its recordings under original names."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "inputs.npz", "outputs.npz"):
        shutil.copy(FOLDER / name, folder)
    _save(original_clip(load_file(FOLDER / WEIGHTS)), folder / WEIGHTS)
    gradients = load_file(FOLDER / "grads.safetensors")
    _save(original_clip(gradients), folder / "grads.safetensors")
    return folder


@pytest.fixture
def published(source: Path) -> Path:
    """The checkpoint alone, with what it holds beside."""
    for name in ("inputs.npz", "outputs.npz", "grads.safetensors"):
        (source / name).unlink()
    unread = {name: np.ones(shape, np.float32) for name, shape in UNREAD.items()}
    _save({**load_file(source / WEIGHTS), **unread}, source / WEIGHTS)
    return source


def _save(tensors: dict[str, np.ndarray], path: Path) -> None:
    save_file({name: np.ascontiguousarray(tensor).reshape(tensor.shape) for name, tensor in tensors.items()}, path)


def _exported(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def _require_equal(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        assert got[name].tobytes() == tensor.tobytes(), name


def weights(*arguments: object) -> int:
    return cli.main(["weights", *map(str, arguments)])


def test_fused_projections_come_back_byte_for_byte_under_either_naming(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One fused tensor has another dtype than its neighbours: so have the three that it becomes, and back."""
    tensors = load_file(published / WEIGHTS)
    tensors[FUSED] = tensors[FUSED].astype(np.float16)
    _save(tensors, published / WEIGHTS)
    read = {name: tensor for name, tensor in tensors.items() if name not in UNREAD}
    separate = load_file(FOLDER / WEIGHTS)
    for role in "qkv":
        name = f"encoder.layers.1.self_attn.{role}_proj.weight"
        separate[name] = separate[name].astype(np.float16)

    assert weights("import", published, f"--out={tmp_path / 'in'}") == 0
    said = capsys.readouterr().out
    assert f"original names: {len(read)} tensors matched" in said
    for words in ("visual.head (1): ", "textual.* (2): the text half", "log_scale (1): "):
        assert words in said
    assert weights("export", tmp_path / "in", f"--out={tmp_path / 'same'}", "--max_file_gb=0.000004") == 0
    _require_equal(_exported(tmp_path / "same"), read)
    assert weights("export", tmp_path / "in", f"--out={tmp_path / 'other'}", "--naming=diffusers") == 0
    _require_equal(_exported(tmp_path / "other"), separate)

    assert weights("import", tmp_path / "other", f"--out={tmp_path / 'again'}") == 0
    assert weights("export", tmp_path / "again", f"--out={tmp_path / 'back'}", "--naming=original") == 0
    _require_equal(_exported(tmp_path / "back"), read)


def test_verify_compares_gradients_of_fused_tensors(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gradients = load_file(source / "grads.safetensors")
    gradients[FUSED][-1] += 1  # a row of the values
    _save(gradients, source / "grads.safetensors")
    assert weights("verify", source) == 1
    said = capsys.readouterr().out
    assert "original names: " in said
    assert f"\n1 of {len(gradients) + 7} beyond the limit, first grad {FUSED}\n" in said


def test_fused_tensors_that_are_missing_or_of_another_shape_are_named_once(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(published / WEIGHTS)
    tensors[FUSED] = tensors[FUSED][:40]
    del tensors["visual.transformer.2.attn.to_qkv.bias"]
    _save(tensors, published / WEIGHTS)
    assert weights("import", published, f"--out={tmp_path / 'in'}") == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "CLIPVisionModel (original names)" in error
    assert "1 missing, first visual.transformer.2.attn.to_qkv.bias;" in error
    paths = ", ".join(f"blocks.attention.{role}" for role in ("query", "key", "value"))
    assert f"1 of another shape, first {FUSED} (40, 16); expected (48, 16) for {paths}" in error


@pytest.mark.parametrize("beside", [None, {"_class_name": "WanModel", "num_layers": 40}])
def test_file_without_a_config_of_its_own_is_the_published_model(
    published: Path, tmp_path: Path, beside: dict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the folder of an image-to-video model, whose config.json is the transformer's."""
    config = json.loads((published / "config.json").read_text())
    monkeypatch.setattr(clip_vision, "ORIGINAL_CONFIG", config)
    (published / "config.json").unlink()
    if beside:
        (published / "config.json").write_text(json.dumps(beside))
    file = published / WEIGHTS
    assert weights("import", file, f"--out={tmp_path / 'in'}", "--kind=CLIPVisionModel") == 0
    assert json.loads((tmp_path / "in/config.json").read_text()) == config


def test_file_without_a_config_and_of_another_size_is_told_the_size(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (published / "config.json").unlink()
    assert weights("import", published, f"--out={tmp_path / 'in'}", "--kind=CLIPVisionModel") == 3
    error = capsys.readouterr().err
    assert "of another shape, first visual.cls_embedding (1, 1, 16); expected (1, 1, 1280) for class_token" in error
