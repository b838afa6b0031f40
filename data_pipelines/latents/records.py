"""Records of cached latents: a sample as bytes and back, shards of them, and random access over all of a split.

A record is the arrays of the manifest one behind the other, nothing else: every record of a folder has one size, and
reading copies nothing. Shards are ArrayRecord files of groups of one, uncompressed: a window is read with one seek.
ArrayRecord keeps a hash of every record, so bytes that changed on disk are found when they are read.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data_pipelines.latents.manifest import Field, Manifest
from data_pipelines.sources.remote import RemotePath
from data_pipelines.sources.retry import probe, retry_read
from wamjax.errors import DataError

# Random reads of 1 MB: 1,307 per second and core in groups of one, 3 in groups of 1,000 (benchmarks/latent_reads.py).
WRITER_OPTIONS = "group_size:1,uncompressed"
# A reader of random records must not read the next ones too.
READER_OPTIONS = "readahead_buffer_size:0"
_HALF = ".tmp"
_DAMAGED = "it is damaged; run the same wamjax data cache again to make it anew"
MAX_OPEN_COPIES = 8  # an open file takes its place on the disk even after its copy was deleted to make room


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
    """Random access to the records of one split. Reading is safe from several threads.

    Shards on a disk are counted and opened at once. Those in a store are compared with their listed sizes, and each is
    copied when a record of it is first asked for (``sources.remote``).
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        """Looks at all shards.

        Raises:
          DataError: A shard is missing or has another number of records than the manifest says.
        """
        self._manifest = manifest
        self._shards = manifest.shards(split)
        self._paths = [folder / name for name, _ in self._shards]
        missing = [path for path in self._paths if not path.exists()]
        if missing:
            raise DataError(
                f"latents {folder} are not complete: {len(missing)} of {len(self._shards)} {split} shards are missing, "
                f"first {missing[0].name}; run the same wamjax data cache again to make them"
            )
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._most_open = len(self._paths)
        if isinstance(folder, RemotePath):
            self._most_open = MAX_OPEN_COPIES
            for path, (_, windows) in zip(self._paths, self._shards, strict=True):
                least = len(windows) * manifest.record_bytes
                if path.stat().st_size < least:
                    raise DataError(
                        f"shard {path} has {path.stat().st_size} bytes, expected more than {least}: {_DAMAGED}"
                    )
        else:
            for shard in range(len(self._paths)):
                self._open(shard)
        self._size = manifest.splits[split].windows

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """Returns the arrays of window ``index``.

        Raises:
          DataError: Its bytes are damaged, or cannot be read after several attempts.
        """
        if not 0 <= index < self._size:
            raise IndexError(index)
        shard, place = divmod(index, self._manifest.shard_windows)
        try:
            record = retry_read(lambda: self._read(shard, place), str(self._paths[shard]))
        except (RuntimeError, IndexError, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"record {place} of {self._paths[shard]} cannot be read: {reason}") from error
        if len(record) != self._manifest.record_bytes:
            raise DataError(
                f"record {place} of {self._paths[shard]} has {len(record)} bytes, expected "
                f"{self._manifest.record_bytes}: the file is another folder's"
            )
        return unpack(record, self._manifest.fields)

    def _read(self, shard: int, place: int) -> bytes:
        reader = self._open(shard)
        try:
            return reader.read([place])[0]
        except (RuntimeError, IndexError):
            with self._lock:  # another attempt opens the file anew
                self._readers.pop(shard, None)
            probe(self._paths[shard])
            raise

    def _open(self, shard: int) -> Any:
        """Returns the reader of a shard; of copies, those that were not used for longest are left to be closed.

        Raises:
          DataError: It has another number of records than the manifest says.
          OSError: It cannot be copied.
        """
        with self._lock:
            if shard in self._readers:
                self._readers.move_to_end(shard)
                return self._readers[shard]
        path, windows = self._paths[shard], self._shards[shard][1]
        copy = Path(os.fspath(path))
        found = count_records(copy)
        if found != len(windows):
            raise DataError(f"shard {path} has {found} records, expected {len(windows)}: {_DAMAGED}")
        reader = ArrayRecordReader(str(copy), READER_OPTIONS)
        with self._lock:
            self._readers[shard] = reader
            while len(self._readers) > self._most_open:
                self._readers.popitem(last=False)
        return reader
