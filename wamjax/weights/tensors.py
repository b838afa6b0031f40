"""Tensors of a checkpoint on disk: names, dtypes and shapes at once, bytes only where they are looked at.

Owns reading safetensors, in one file or in several with an index, as memory-mapped arrays. The library checks each
file's header; the arrays themselves are mapped here because its reader copies whole tensors and cuts only whole rows.
Never unpickles: files of PyTorch's pickle format are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from wamjax.errors import DataError

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_CODES: Mapping[np.dtype, str] = {dtype: code for code, dtype in _DTYPES.items()}  # safetensors' names
_HEADER_SIZE_BYTES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
      path: Its file.
      dtype: NumPy (or ml_dtypes) dtype.
      shape: Sizes, as stored.
      offset: First byte in the file.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class TensorFolder(Mapping[str, StoredTensor]):
    """All tensors of one checkpoint, by name.

    Args:
      source: A ``.safetensors`` file, an ``*.index.json``, or a folder that holds either; every safetensors file of a
        folder without an index belongs to it.
      files: The files to read, where not all of the folder belong together; None finds them.

    Raises:
      DataError: Nothing there can be read: missing, truncated, an index that names other tensors or files than there
        are, two files with the same tensor, or pickles.
    """

    def __init__(self, source: Path, files: Sequence[Path] | None = None) -> None:
        self.source = source
        self.files = list(files) if files else _find_files(source)
        self._tensors: dict[str, StoredTensor] = {}
        for path in self.files:
            for name, tensor in _read_header(path):
                if name in self._tensors:
                    raise DataError(f"tensor {name} is in {self._tensors[name].path} and again in {path}")
                self._tensors[name] = tensor
        _check_index(source, self._tensors)
        self._maps: dict[Path, mmap.mmap] = {}

    def __getitem__(self, name: str) -> StoredTensor:
        """Returns where tensor ``name`` lies."""
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names, file by file."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Returns the number of tensors."""
        return len(self._tensors)

    def view(self, name: str) -> np.ndarray:
        """Returns tensor ``name`` as a read-only array on the mapped file: no byte is read before it is touched."""
        tensor = self._tensors[name]
        if tensor.num_bytes == 0:
            return np.zeros(tensor.shape, tensor.dtype)
        data = np.frombuffer(self._map(tensor.path), tensor.dtype, int(np.prod(tensor.shape)), tensor.offset)
        return data.reshape(tensor.shape)

    def read(self, name: str, buffer: np.ndarray | None = None, part: tuple[int, int] = (0, 1)) -> np.ndarray:
        """Returns a copy of tensor ``name``, read in one go: faster than touching mapped pages.

        Args:
          name: Which.
          buffer: uint8 memory of at least the size of what is read, to read into; None takes fresh memory.
          part: (index, count): read the ``index``-th of ``count`` equal parts of its first dim alone.
        """
        tensor, (index, count) = self._tensors[name], part
        num_bytes = tensor.num_bytes // count
        shape = (tensor.shape[0] // count, *tensor.shape[1:]) if count > 1 else tensor.shape
        array = (np.empty(num_bytes, np.uint8) if buffer is None else buffer)[:num_bytes]
        with open(tensor.path, "rb", buffering=0) as file:
            file.seek(tensor.offset + index * num_bytes)
            num_read = 0
            while num_read < num_bytes:
                count = file.readinto(array[num_read:].data)
                if not count:
                    raise DataError(f"{tensor.path} ended while tensor {name} was read; it changed under way")
                num_read += count
        return array.view(tensor.dtype).reshape(shape)

    def release(self) -> None:
        """Gives the pages that were read back to the system (they stay readable)."""
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with open(path, "rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[path]

    def hash(self) -> str:
        """Returns a hash of every header and every byte: the identity of a parent checkpoint (reads all of it once)."""
        digest = hashlib.sha256()
        for path in self.files:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:32]


def _find_files(source: Path) -> list[Path]:
    """Returns the safetensors files of ``source``, sorted.

    Raises:
      DataError: There are none, or the index names files that are missing.
    """
    if source.suffix in _PICKLES:
        raise DataError(
            f"{source} is a pickle, which can run code when it is read; convert it first with "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), ...)"
        )
    if source.suffix == ".safetensors" and source.is_file():
        return [source]
    index = _index_of(source)
    if index is not None:
        files = sorted({index.parent / name for name in _read_index(index).values()})
        absent = [path for path in files if not path.is_file()]
        if absent:
            raise DataError(f"{index} names {absent[0].name}, which is not there ({len(absent)} of {len(files)} files)")
        return files
    if not source.exists():
        raise DataError(f"{source} does not exist; expected a checkpoint folder or a .safetensors file")
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else []
    if not files:
        pickles = sorted(path.name for path in source.glob("*") if path.suffix in _PICKLES) if source.is_dir() else []
        hint = f"; {pickles[0]} is a pickle and is not read, convert it to safetensors first" if pickles else ""
        raise DataError(f"{source} holds no .safetensors file{hint}")
    return files


def _index_of(source: Path) -> Path | None:
    """Returns the index file that ``source`` is or holds, if any."""
    if source.name.endswith(".index.json"):
        return source
    found = sorted(source.glob("*.safetensors.index.json")) if source.is_dir() else []
    if len(found) > 1:
        raise DataError(
            f"{source} holds {len(found)} index files; name one of them: {', '.join(p.name for p in found)}"
        )
    return found[0] if found else None


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{index} is no index of a sharded checkpoint: expected weight_map, tensor -> file ({error})"
        ) from error


def _check_index(source: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Raises ``DataError`` where the index and the files disagree."""
    index = _index_of(source)
    if index is None:
        return
    promised = _read_index(index)
    for name, file in sorted(promised.items()):
        if name not in tensors:
            raise DataError(f"{index} says tensor {name} is in {file}, but no file holds it")
        if tensors[name].path.name != file:
            raise DataError(f"{index} says tensor {name} is in {file}, but it is in {tensors[name].path.name}")
    extra = sorted(set(tensors) - set(promised))
    if extra:
        raise DataError(f"{tensors[extra[0]].path} holds {len(extra)} tensors that {index} does not name: {extra[0]}")


def _read_header(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Yields name and place of each tensor in ``path``; the library has checked that the file is whole."""
    try:
        with safe_open(path, framework="numpy"):
            pass
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(_HEADER_SIZE_BYTES), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or truncated: {error}; copy it again") from error
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise DataError(f"{path}: tensor {name} has dtype {entry['dtype']}; expected one of {sorted(_DTYPES)}")
        yield (
            name,
            StoredTensor(
                path=path,
                dtype=_DTYPES[entry["dtype"]],
                shape=tuple(entry["shape"]),
                offset=_HEADER_SIZE_BYTES + size + entry["data_offsets"][0],
            ),
        )
