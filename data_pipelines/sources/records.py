"""Records of TFRecord and ArrayRecord files at random access, without TensorFlow.

Owns the framing. A TFRecord file is a row of: length (8 bytes, little-endian), masked CRC-32C of these 8 bytes, the
record, its masked CRC-32C. Lengths are checked; the records' own checksums are not (a damaged record fails to parse).
Source of the framing: tensorflow/tensorflow, tensorflow/core/lib/io/record_writer.h and lib/hash/crc32c.h.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, Protocol

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] - compiled

from data_pipelines.sources.remote import read_at
from data_pipelines.sources.retry import probe, retry_read

_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
_CASTAGNOLI = 0x82F63B78  # reflected CRC-32C polynomial, RFC 3720 appendix B.4
_MASK_DELTA = 0xA282EAD8


class RecordError(Exception):
    """A file of records that cannot be read; the dataset reader adds which dataset it was for."""


class RecordFile(Protocol):
    """Records of one file by number."""

    def __len__(self) -> int:
        """How many records can be read."""
        ...

    def read(self, number: int) -> bytes:
        """Returns record ``number``."""
        ...


class TfRecordFile:
    """A TFRecord file: one pass over the length headers, then any record by one read."""

    def __init__(self, path: Path) -> None:
        """Finds the records; ``problem`` says why where the pass ended before the file did.

        Raises:
          OSError: The file cannot be opened.
        """
        self._path = path
        self._places, self.problem = retry_read(lambda: _find_records(path), str(path))

    def __len__(self) -> int:
        return len(self._places)

    def read(self, number: int) -> bytes:
        """Returns record ``number``.

        Raises:
          RecordError: The file is shorter than it was.
        """
        offset, length = self._places[number]
        content = read_at(self._path, offset, length)
        if len(content) < length:
            raise RecordError(f"record {number} is cut off")
        return content


def _find_records(path: Path) -> tuple[list[tuple[int, int]], str | None]:
    """Returns offset and length of each record, and why the pass ended before the file did."""
    places: list[tuple[int, int]] = []
    size, offset = path.stat().st_size, 0
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return places, "is cut off in a record's header"
            length, checksum = _HEADER.unpack(header)
            end = offset + _HEADER.size + length + _FOOTER_BYTES
            if checksum != masked_crc32c(header[:8]):
                return places, "has a damaged record length"
            if end > size:
                return places, "is cut off inside a record"
            places.append((offset + _HEADER.size, length))
            offset = end
    return places, None


class ArrayRecordFile:
    """An ArrayRecord file. Opened again for each read: a reader of the package is not safe between threads."""

    problem: str | None = None

    def __init__(self, path: Path) -> None:
        """Counts the records.

        Raises:
          OSError: The file cannot be opened.
          RecordError: It is no ArrayRecord file.
        """
        path.stat()  # the package's own error for a missing file is no OSError
        self._path = path
        self._count = retry_read(self._num_records, str(path))

    def __len__(self) -> int:
        return self._count

    def read(self, number: int) -> bytes:
        """Returns record ``number``.

        Raises:
          RecordError: It cannot be read.
        """
        return retry_read(lambda: self._read(number), str(self._path))

    def _read(self, number: int) -> bytes:
        reader = self._open()
        try:
            return reader.read([number])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            probe(self._path)
            raise RecordError(f"record {number}: {error}") from error
        finally:
            reader.close()

    def _num_records(self) -> int:
        reader = self._open()
        try:
            return reader.num_records()
        finally:
            reader.close()

    def _open(self) -> Any:
        reader = array_record_module.ArrayRecordReader(os.fspath(self._path))
        if not reader.ok():
            probe(self._path)
            raise RecordError("no ArrayRecord file")
        return reader


def masked_crc32c(content: bytes) -> int:
    """Returns TFRecord's checksum of a few bytes: CRC-32C, rotated right by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_CASTAGNOLI if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF
