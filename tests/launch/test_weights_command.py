"""``wamjax weights`` as a user types it: in, out, compared; and what is wrong said in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch import cli

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FOLDER = GOLDEN / "umt5_encoder"
WEIGHTS = "model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of a reference checkpoint that a test may damage."""
    return Path(shutil.copytree(FOLDER, tmp_path / "source"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A reference checkpoint without recordings, as it is published."""
    (tmp_path / "published").mkdir()
    for name in ("config.json", WEIGHTS):
        shutil.copy(FOLDER / name, tmp_path / "published")
    return tmp_path / "published"


def weights(*arguments: object) -> int:
    return cli.main(["weights", *map(str, arguments)])


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("wamjax weights")
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_import_then_export_gives_back_every_tensor_byte_for_byte(
    checkpoint: Path, tmp_path: Path, naming: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the other naming and back, in several files, some tensors of another dtype than their neighbours."""
    reference = load_file(checkpoint / WEIGHTS)
    name = next(name for name in reference if name.startswith("encoder.block.1") and reference[name].ndim == 2)
    reference[name] = reference[name].astype(np.float16)
    save_file(reference, checkpoint / WEIGHTS)

    assert weights("import", checkpoint, f"--out={tmp_path / 'in'}") == 0
    assert f"{len(reference)} tensors matched" in capsys.readouterr().out
    assert weights("export", tmp_path / "in", f"--out={tmp_path / 'out'}", f"--naming={naming}") == 0
    if naming == "original":
        for step, flags in (("import", []), ("export", ["--naming=diffusers", "--max_file_gb=0.00002"])):
            target = tmp_path / f"{step}_again"
            assert (
                weights(step, tmp_path / ("out" if step == "import" else "import_again"), f"--out={target}", *flags)
                == 0
            )
    final = tmp_path / ("out" if naming == "diffusers" else "export_again")
    files = sorted(final.glob("*.safetensors"))
    assert len(files) > 1 or naming == "diffusers"
    exported = {name: value for path in files for name, value in load_file(path).items()}
    assert exported.keys() == reference.keys()
    for name, value in reference.items():
        assert exported[name].dtype == value.dtype, name
        assert exported[name].tobytes() == value.tobytes(), name
    assert json.loads((final / "config.json").read_text()) == json.loads((checkpoint / "config.json").read_text())


def test_export_adds_the_updates_of_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "published").mkdir()
    for file in ("config.json", WEIGHTS):
        shutil.copy(GOLDEN / "wan_transformer" / "t2v" / file, tmp_path / "published")
    adapter = GOLDEN / "lora" / "lora.safetensors"
    assert weights("import", tmp_path / "published", f"--out={tmp_path / 'in'}") == 0
    assert weights("export", tmp_path / "in", f"--out={tmp_path / 'out'}", f"--lora={adapter}") == 0
    before, update = load_file(tmp_path / "published" / WEIGHTS), load_file(adapter)
    after = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    for name, weight in before.items():
        pair = [f"transformer.{name.removesuffix('.weight')}.lora_{letter}.weight" for letter in "BA"]
        delta = 2.0 * (update[pair[0]] @ update[pair[1]]) if pair[0] in update else 0.0
        np.testing.assert_allclose(after[name], weight + delta, atol=1e-6, err_msg=name)

    capsys.readouterr()
    save_file(update, tmp_path / "other.safetensors", metadata={"base_hash": "0123"})
    assert (
        weights("export", tmp_path / "in", f"--out={tmp_path / 'no'}", f"--lora={tmp_path / 'other.safetensors'}") == 2
    )
    assert "was trained on the weights with hash 0123; those at hand have" in only_line(capsys)
    assert not (tmp_path / "no").exists()
    assert (
        weights("export", tmp_path / "in", f"--out={tmp_path / 'no'}", f"--lora={tmp_path / 'none.safetensors'}") == 3
    )
    assert "does not exist" in only_line(capsys)


@pytest.mark.parametrize("name", ["autoencoder_kl_wan_2_1", "autoencoder_kl_wan_2_2"])
def test_model_of_listed_modules_comes_back_byte_for_byte_too(tmp_path: Path, name: str) -> None:
    """Their numbers are keys, which a folder of weights must not turn into text."""
    (tmp_path / "published").mkdir()
    for file in ("config.json", WEIGHTS):
        shutil.copy(GOLDEN / name / file, tmp_path / "published")
    assert weights("import", tmp_path / "published", f"--out={tmp_path / 'in'}") == 0
    assert weights("export", tmp_path / "in", f"--out={tmp_path / 'out'}") == 0
    (file,) = (tmp_path / "out").glob("*.safetensors")
    tensors = load_file(GOLDEN / name / WEIGHTS)
    assert {n: v.tobytes() for n, v in load_file(file).items()} == {n: v.tobytes() for n, v in tensors.items()}


@pytest.mark.parametrize("keep", [True, False])
def test_export_writes_the_names_the_source_had(checkpoint: Path, tmp_path: Path, keep: bool) -> None:
    """A tied table under its other name, or under both."""
    tensors = load_file(checkpoint / WEIGHTS)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()
    if not keep:
        del tensors["shared.weight"]
    save_file(tensors, checkpoint / WEIGHTS)
    assert weights("import", checkpoint, f"--out={tmp_path / 'in'}") == 0
    assert weights("export", tmp_path / "in", f"--out={tmp_path / 'out'}") == 0
    (file,) = (tmp_path / "out").glob("*.safetensors")
    exported = load_file(file)
    assert {name: value.tobytes() for name, value in exported.items()} == {n: v.tobytes() for n, v in tensors.items()}


def test_two_copies_of_a_tied_tensor_that_differ_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1
    save_file(tensors, checkpoint / WEIGHTS)
    assert weights("import", checkpoint, f"--out={tmp_path / 'in'}") == 3
    assert "are one parameter of UMT5EncoderModel but differ" in only_line(capsys)


def test_verify_passes_on_the_reference_and_names_what_a_changed_weight_changes(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weights("verify", source) == 0
    out = capsys.readouterr().out
    assert "last_hidden_state" in out
    assert "grad " in out
    tensors = load_file(source / WEIGHTS)
    tensors["encoder.final_layer_norm.weight"][0] += 0.01
    save_file(tensors, source / WEIGHTS)
    assert weights("verify", source) == 1
    assert "BEYOND THE LIMIT" in capsys.readouterr().out


def test_verify_of_a_nan_fails(source: Path) -> None:
    tensors = load_file(source / WEIGHTS)
    tensors["encoder.final_layer_norm.weight"][0] = np.nan
    save_file(tensors, source / WEIGHTS)
    assert weights("verify", source) == 1


def test_weights_that_do_not_fit_are_refused_naming_both_sides(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    del tensors["encoder.final_layer_norm.weight"]
    tensors["lm_head.weight"] = np.zeros(3, np.float32)
    tensors["shared.weight"] = tensors["shared.weight"][:, :-1].copy()
    save_file(tensors, checkpoint / WEIGHTS)
    assert weights("import", checkpoint, f"--out={tmp_path / 'in'}") == 3
    error = only_line(capsys)
    for words in (
        "1 missing, first encoder.final_layer_norm.weight",
        "1 unexpected, first lm_head.weight",
        "1 of another shape, first shared.weight",
        "--ignore=",
    ):
        assert words in error
    assert not (tmp_path / "in").exists()


def test_unexpected_tensor_may_be_ignored_by_name_and_is_recorded(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({**load_file(checkpoint / WEIGHTS), "lm_head.weight": np.zeros(3, np.float32)}, checkpoint / WEIGHTS)
    assert weights("import", checkpoint, f"--out={tmp_path / 'in'}", "--ignore=lm_head.*") == 0
    assert "ignored: lm_head.weight" in capsys.readouterr().out
    assert json.loads((tmp_path / "in/weights.json").read_text())["ignored"] == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\x08"), 3, "damaged or truncated"),
        (lambda folder: (folder / WEIGHTS).unlink(), 3, "holds no .safetensors file"),
        (lambda folder: (folder / "config.json").write_text("{"), 3, "is not JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), 2, "neither _class_name nor architectures"),
        (
            lambda folder: (folder / "config.json").write_text('{"_class_name": "UMT5EncodrModel"}'),
            2,
            "did you mean UMT5EncoderModel?",
        ),
    ],
)
def test_broken_source_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change, status: int, words: str
) -> None:
    change(checkpoint)
    assert weights("import", checkpoint, f"--out={tmp_path / 'in'}") == status
    assert words in only_line(capsys)
    assert not (tmp_path / "in").exists()


def test_out_that_is_not_empty_is_refused_before_anything_is_read(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weights("import", checkpoint, f"--out={checkpoint}") == 2
    assert "exists and is not an empty folder" in only_line(capsys)


def test_folder_that_was_not_imported_completely_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weights("import", checkpoint, f"--out={tmp_path / 'in'}") == 0
    (tmp_path / "in/weights.json").unlink()
    capsys.readouterr()
    assert weights("export", tmp_path / "in", f"--out={tmp_path / 'out'}") == 3
    assert "has no weights.json" in only_line(capsys)


@pytest.mark.parametrize("missing", ["inputs.npz", "outputs.npz"])
def test_verify_without_recordings_says_which_file_is_missing(
    source: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    (source / missing).unlink()
    assert weights("verify", source) == 3
    assert f"{missing} does not exist" in only_line(capsys)
