"""Reading and writing safetensors: equal to the library's own, lazy, and clear about what is broken."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wamjax.errors import DataError
from wamjax.weights.tensors import TensorFolder
from wamjax.weights.write import write_tensors

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.normal(size=(4, 6)).astype(np.float32),
    "a.bias": RNG.normal(size=6).astype(ml_dtypes.bfloat16),
    "b.weight": RNG.normal(size=(2, 3, 5)).astype(np.float16),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.asarray(7, np.int64),
}


def assert_same(own: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> None:
    assert own.keys() == reference.keys()
    for name, value in reference.items():
        assert own[name].dtype == value.dtype
        assert own[name].shape == value.shape
        assert own[name].tobytes() == value.tobytes()


def test_folder_reads_what_the_library_wrote(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    folder = TensorFolder(tmp_path)
    assert_same({name: folder.view(name) for name in folder}, TENSORS)
    folder.release()
    assert_same({name: folder.view(name) for name in folder}, TENSORS)  # pages come back


@pytest.mark.parametrize(("max_file_bytes", "num_files"), [(10**9, 1), (100, 2)])
def test_library_reads_what_write_tensors_wrote(tmp_path: Path, max_file_bytes: int, num_files: int) -> None:
    planned = [(name, value.dtype, value.shape) for name, value in TENSORS.items()]
    paths = write_tensors(tmp_path, "model", planned, TENSORS.__getitem__, max_file_bytes=max_file_bytes)
    files = [path for path in paths if path.suffix == ".safetensors"]
    assert len(files) == num_files
    assert_same({name: value for path in files for name, value in load_file(path).items()}, TENSORS)
    assert set(TensorFolder(tmp_path)) == set(TENSORS)  # by the index, where there is one
    assert not list(tmp_path.glob("*.tmp"))


def test_index_names_the_file_of_every_tensor(tmp_path: Path) -> None:
    planned = [(name, value.dtype, value.shape) for name, value in TENSORS.items()]
    *files, index = write_tensors(tmp_path, "model", planned, TENSORS.__getitem__, max_file_bytes=100)
    written = json.loads(index.read_text())
    assert written["metadata"]["total_size"] == sum(value.nbytes for value in TENSORS.values())
    assert written["weight_map"] == {name: path.name for path in files for name in load_file(path)}


def test_view_of_a_slice_does_not_read_the_rest(tmp_path: Path) -> None:
    """Pages that were not touched stay out of memory: a view is the file itself, not a copy of it."""
    save_file({"big": np.zeros((1024, 4096), np.float32)}, tmp_path / "model.safetensors")
    view = TensorFolder(tmp_path).view("big")
    assert not view.flags.owndata
    assert not view.flags.writeable


@pytest.mark.parametrize("keep", [4, 60, -1])
def test_truncated_file_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"model\.safetensors is damaged or truncated") as error:
        TensorFolder(tmp_path)
    assert "\n" not in str(error.value)


def _sharded(folder: Path) -> Path:
    planned = [(name, value.dtype, value.shape) for name, value in TENSORS.items()]
    return write_tensors(folder, "model", planned, TENSORS.__getitem__, max_file_bytes=100)[-1]


def test_index_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    _sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"names model-00002-of-00002\.safetensors, which is not there \(1 of 2"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ghost": "model-00001-of-00002.safetensors"}, "says tensor ghost is in model-00001.*but no file holds it"),
        ({"a.bias": "model-00001-of-00002.safetensors"}, "says tensor a.bias is in model-00001.*but it is in model-"),
        ({"a.bias": None}, r"holds 1 tensors that .* does not name: a\.bias"),
    ],
)
def test_index_that_disagrees_with_its_files_is_refused(
    tmp_path: Path, change: dict[str, str | None], words: str
) -> None:
    path = _sharded(tmp_path)
    index = json.loads(path.read_text())
    changed = {**index["weight_map"], **change}
    index["weight_map"] = {name: file for name, file in changed.items() if file is not None}
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=words):
        TensorFolder(tmp_path)


def test_index_that_is_no_index_is_refused(tmp_path: Path) -> None:
    _sharded(tmp_path).write_text("[]")
    with pytest.raises(DataError, match="expected weight_map"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin"])
def test_pickle_is_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "pwned").encode() + b"'\ntR.")
    with pytest.raises(DataError, match=r"is a pickle.*convert it first with safetensors\.torch\.save_file"):
        TensorFolder(path)
    with pytest.raises(DataError, match=rf"holds no \.safetensors file; {name} is a pickle"):
        TensorFolder(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_same_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"x": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(DataError, match=r"tensor x is in .*one\.safetensors and again in .*two\.safetensors"):
        TensorFolder(tmp_path)


def test_hash_depends_on_every_byte_and_not_on_the_folder(tmp_path: Path) -> None:
    hashes = []
    for name, last in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"x": np.asarray([0.0, last], np.float32)}, tmp_path / name / "model.safetensors")
        hashes.append(TensorFolder(tmp_path / name).hash())
    assert hashes[0] == hashes[1] != hashes[2]
