"""Append-only JSON-lines logs that agree with the checkpoint a run resumes from.

Owns ``metrics.jsonl`` and ``ledger.jsonl`` as files: one JSON object with a ``step`` per line. Does not know what the
numbers mean. Only process 0 writes.

Durability: every record is handed to the operating system as one write when it is appended, so a killed process loses
nothing; ``sync`` forces the file to disk and is called before each checkpoint, so a checkpoint that survives a power
cut has its records beside it. When a run resumes from step n, records beyond n (of the part that will be computed
again) and a half-written last line are moved to ``<name>.discarded.jsonl``: no gap, no double count, nothing lost.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wamjax.errors import DataError

DISCARDED_SUFFIX = ".discarded.jsonl"
HALF_WRITTEN = "half_written_line"  # key under which a discarded file keeps one


class RecordLog:
    """One JSON-lines file that records are appended to.

    Args:
      path: The file; made when absent, continued when present (call ``rewind`` first on a resume).
      is_writer: False on every process but the first: then every call does nothing.
    """

    def __init__(self, path: Path, *, is_writer: bool = True) -> None:
        self.path = path
        self._file: int | None = None
        if is_writer:
            self._file = _opened(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes ``record`` as one line; numbers that are not finite become the texts ``nan``, ``inf``, ``-inf``.

        Raises:
          DataError: The file system refuses the write (disk full).
        """
        if self._file is None:
            return
        line = (json.dumps(_strict(record), allow_nan=False) + "\n").encode()
        try:
            written = os.write(self._file, line)
            if written != len(line):  # a file system that ran out mid-line; the second write says why
                os.write(self._file, line[written:])
        except OSError as error:
            raise _refused(self.path, error) from error

    def sync(self) -> None:
        """Forces everything appended so far to disk.

        Raises:
          DataError: The file system refuses.
        """
        if self._file is None:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            raise _refused(self.path, error) from error

    def close(self) -> None:
        """Syncs and closes the file. Appending afterwards does nothing."""
        if self._file is not None:
            self.sync()
            os.close(self._file)
            self._file = None


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns the records of ``path`` in order; a missing file has none. A half-written last line is left out.

    Raises:
      DataError: A line that is not the last one is not a JSON object with a step.
    """
    records, _ = read_log(path)
    return records


def read_log(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Returns the records of ``path`` as ``read_records`` does, and what its unfinished last line holds.

    Raises:
      DataError: A line that is not the last one is not a JSON object with a step.
    """
    if not path.exists():
        return [], ""
    *lines, fragment = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise DataError(f"{path}, line {number} is not a record with a step; delete or repair that line")
        records.append(record)
    return records, fragment


def rewind(path: Path, step: int) -> int:
    """Cuts the log back to ``step``: later records and a half-written last line move to the discarded file.

    Safe against a kill at any moment: what is discarded is on disk before the log is replaced, in one rename.

    Args:
      path: The log; a missing file is left missing.
      step: Records of this step and before stay. 0 moves all of them.

    Returns:
      How many lines were moved.

    Raises:
      DataError: A line that is not the last one is not a record, or the file system refuses.
    """
    records, fragment = read_log(path)
    kept = [record for record in records if record["step"] <= step]
    moved = [json.dumps(record) for record in records if record["step"] > step]
    moved += [json.dumps({HALF_WRITTEN: fragment})] if fragment else []
    if not moved:
        return 0
    try:
        with open(discarded_path(path), "a", encoding="utf-8") as discarded:
            discarded.writelines(f"{line}\n" for line in moved)
            discarded.flush()
            os.fsync(discarded.fileno())
        replacement = path.with_name(f"{path.name}.tmp")
        with open(replacement, "w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(record)}\n" for record in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(replacement, path)
    except OSError as error:
        raise _refused(path, error) from error
    return len(moved)


def discarded_path(path: Path) -> Path:
    """Returns where lines cut from ``path`` go: ``metrics.jsonl`` -> ``metrics.discarded.jsonl``."""
    return path.with_name(path.stem + DISCARDED_SUFFIX)


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise _refused(path, error) from error


def _strict(value: Any) -> Any:
    """Returns ``value`` with numbers JSON does not have written as text."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _refused(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {path}: {error.strerror or error}; free space there or use another --workdir")
