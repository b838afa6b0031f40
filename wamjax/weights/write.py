"""Writing safetensors: the header first, then one tensor at a time, so that no file is ever whole in memory.

Owns file layout: one file, or several with an index, as diffusers and transformers read them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from wamjax.errors import DataError
from wamjax.weights.tensors import DTYPE_CODES

Planned = tuple[str, np.dtype, tuple[int, ...]]  # name, dtype, shape
_ALIGNMENT_BYTES = 8  # the format asks for headers of a multiple of this


def write_tensors(
    folder: Path,
    stem: str,
    planned: Sequence[Planned],
    read: Callable[[str], np.ndarray],
    *,
    max_file_bytes: int,
) -> list[Path]:
    """Writes tensors into ``folder`` as ``<stem>.safetensors``, or as numbered files with an index.

    Args:
      folder: Exists.
      stem: ``model`` or ``diffusion_pytorch_model``, say.
      planned: Every tensor, in file order.
      read: Name -> the array; called once per tensor, in order.
      max_file_bytes: A file is closed before it would grow beyond this (one tensor may).

    Returns:
      The files, the index last if there is one.

    Raises:
      DataError: The disk is full, or the folder cannot be written to.
    """
    groups = _group(planned, max_file_bytes)
    if len(groups) == 1:
        names = [f"{stem}.safetensors"]
    else:
        names = [f"{stem}-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    paths = [folder / name for name in names]
    try:
        for path, group in zip(paths, groups, strict=True):
            _write_file(path, group, read)
        if len(groups) > 1:
            index = {
                "metadata": {"total_size": sum(_num_bytes(tensor) for tensor in planned)},
                "weight_map": {
                    name: path.name for path, group in zip(paths, groups, strict=True) for name, *_ in group
                },
            }
            paths.append(folder / f"{stem}.safetensors.index.json")
            paths[-1].write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        place = error.filename or folder
        raise DataError(f"cannot write {place}: {error.strerror}; free space or name another --out") from error
    return paths


def _write_file(path: Path, planned: Iterable[Planned], read: Callable[[str], np.ndarray]) -> None:
    """Writes one file under another name and puts it in place when complete."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers insists on this entry
    offset = 0
    for tensor in planned:
        name, dtype, shape = tensor
        end = offset + _num_bytes(tensor)
        header[name] = {"dtype": DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    half = path.with_name(f"{path.name}.tmp")
    with open(half, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dtype, shape in planned:
            array = np.asarray(read(name), order="C")
            assert (array.dtype, array.shape) == (dtype, tuple(shape)), (name, array.dtype, array.shape, dtype, shape)
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)


def _group(planned: Sequence[Planned], max_file_bytes: int) -> list[list[Planned]]:
    groups: list[list[Planned]] = [[]]
    used = 0
    for tensor in planned:
        size = _num_bytes(tensor)
        if groups[-1] and used + size > max_file_bytes:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += size
    return groups


def _num_bytes(tensor: Planned) -> int:
    _, dtype, shape = tensor
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
