"""Records of cached latents: a sample as bytes and back, shards of them, and random access over all of a split.

A record is the arrays of the manifest one behind the other, nothing else: every record of a folder has one size, and
reading copies nothing. Shards are ArrayRecord files of groups of one, uncompressed: a window is read with one seek.
ArrayRecord keeps a hash of every record, so bytes that changed on disk are found when they are read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data_pipelines.latents.manifest import Field, Manifest
from wamjax.errors import DataError

# Random reads of 1 MB: 1,307 per second and core in groups of one, 3 in groups of 1,000 (benchmarks/latent_reads.py).
WRITER_OPTIONS = "group_size:1,uncompressed"
# A reader of random records must not read the next ones too.
READER_OPTIONS = "readahead_buffer_size:0"
_HALF = ".tmp"


def pack(arrays: dict[str, npt.NDArray[Any]], fields: Sequence[Field]) -> bytes:
    """Returns the record of one sample; the arrays must have the dtypes and shapes of ``fields``."""
    parts = []
    for field in fields:
        array = np.asarray(arrays[field.name])
        assert (array.dtype.name, array.shape) == (field.dtype, field.shape), (field, array.dtype, array.shape)
        parts.append(array.tobytes())
    return b"".join(parts)


def unpack(record: bytes, fields: Sequence[Field]) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays of a record, as views of its bytes."""
    arrays, offset = {}, 0
    for field in fields:
        dtype, count = np.dtype(field.dtype), int(np.prod(field.shape))
        arrays[field.name] = np.frombuffer(record, dtype, count, offset).reshape(field.shape)
        offset += count * dtype.itemsize
    return arrays


def write_shard(path: Path, records: Iterable[bytes], *, owner: str = "0") -> None:
    """Writes a shard under another name and renames it, so that a file with the name of a shard is whole.

    Args:
      path: The shard.
      records: Its records.
      owner: Who writes: two owners may write the same shard at a time, and the last one's stays.

    Raises:
      DataError: The file system refuses.
    """
    half = path.with_name(f".{path.name}.{owner}{_HALF}")
    try:
        writer = ArrayRecordWriter(str(half), WRITER_OPTIONS)
        with contextlib.closing(writer):
            for record in records:
                writer.write(record)
        file = os.open(half, os.O_RDONLY)
        os.fsync(file)
        os.close(file)
        os.replace(half, path)
    except (OSError, RuntimeError) as error:
        raise DataError(f"shard {path} cannot be written: {' '.join(str(error).split())}") from error


def remove_halves(folder: Path, owner: str) -> None:
    """Removes what ``owner`` left half written when it was killed."""
    for path in folder.glob(f".*.{owner}{_HALF}"):
        path.unlink()


def count_records(path: Path) -> int:
    """Returns how many records a shard has; 0 for one that is cut short, whose index at the end is lost."""
    try:
        with contextlib.closing(ArrayRecordReader(str(path), READER_OPTIONS)) as reader:
            return reader.num_records()
    except RuntimeError:  # too short for any index; raised when it is closed
        return 0


class SplitRecords:
    """Random access to the records of one split. Reading is safe from several threads."""

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        """Opens all shards.

        Raises:
          DataError: A shard is missing or has another number of records than the manifest says.
        """
        self._manifest = manifest
        shards = manifest.shards(split)
        self._paths = [folder / name for name, _ in shards]
        missing = [path for path in self._paths if not path.exists()]
        if missing:
            raise DataError(
                f"latents {folder} are not complete: {len(missing)} of {len(shards)} {split} shards are missing, first "
                f"{missing[0].name}; run the same wamjax data cache again to make them"
            )
        for path, (_, windows) in zip(self._paths, shards, strict=True):
            found = count_records(path)
            if found != len(windows):
                raise DataError(
                    f"shard {path} has {found} records, expected {len(windows)}: it is damaged; run the same "
                    "wamjax data cache again to make it anew"
                )
        self._readers = [ArrayRecordReader(str(path), READER_OPTIONS) for path in self._paths]
        self._size = manifest.splits[split].windows

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """Returns the arrays of window ``index``.

        Raises:
          DataError: Its bytes are damaged.
        """
        if not 0 <= index < self._size:
            raise IndexError(index)
        shard, place = divmod(index, self._manifest.shard_windows)
        try:
            record = self._readers[shard].read([place])[0]
        except (RuntimeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"record {place} of {self._paths[shard]} cannot be read: {reason}") from error
        if len(record) != self._manifest.record_bytes:
            raise DataError(
                f"record {place} of {self._paths[shard]} has {len(record)} bytes, expected "
                f"{self._manifest.record_bytes}: the file is another folder's"
            )
        return unpack(record, self._manifest.fields)
