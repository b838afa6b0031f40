"""Datasets in object stores and on web servers (``gs://``, ``s3://``, ``http://``...), read as those on a disk are.

Owns ``RemotePath``, the listing of a dataset, and the local copies. A dataset is listed once, when it is opened. What
can read ranges gets ranges (``read_at``, ``open``: TFRecord, tar shards); what needs a file on disk (FFmpeg, HDF5,
Parquet, ArrayRecord) gets a copy of the whole file, fetched when it is first asked for: that is what ``os.fspath`` of
a ``RemotePath`` returns. Every network read is tried again as ``retry`` says; what fails to the end is an ``OSError``,
which readers quarantine as they do any unreadable file.

Copies lie under ``WAMJAX_CACHE_DIR`` (default ``~/.cache/wamjax/files``) and take ``WAMJAX_CACHE_GIB`` (default 64) at
most; those that were not used for longest go first. Both are the machine's, not the run's: they change no result.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fnmatch
import io
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path, PosixPath
from typing import Any, NamedTuple, TypeVar

from data_pipelines.sources.part_file import PartFile
from data_pipelines.sources.retry import retry_read
from wamjax.errors import ConfigError, DataError

CACHE_DIR, CACHE_GIB = "WAMJAX_CACHE_DIR", "WAMJAX_CACHE_GIB"
_DEFAULT_GIB = 64.0
_FETCHED_BYTES = 2**16  # at a time, of a file that is open: headers that are read one by one lie far apart
_MESSAGE_CHARACTERS = 200
_JUST_USED_S = 60.0  # a copy that was asked for this recently is not deleted: its reader may not have opened it yet
_KEYS = "config.data.path, config.data.latents"
_URL = re.compile(r"([a-z][a-z0-9+.-]*):/+")
# What object stores call the time of the last change.
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "created")

T = TypeVar("T")


class _Entry(NamedTuple):
    """Size and time of the last change (0 where the store does not tell) of a file."""

    size: int
    time_s: float


class RemotePath(PosixPath):
    """A file or folder of a dataset that lies elsewhere; everything read-only that readers ask of a ``Path``."""

    def __str__(self) -> str:
        head, *rest = self.parts or (".",)
        return f"{head}//{'/'.join(rest)}" if head.endswith(":") else "/".join((head, *rest))

    def __fspath__(self) -> str:
        return str(_fetch(self))

    def exists(self, **_: Any) -> bool:
        """Returns whether there is such a file or folder."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """Returns whether it is a file."""
        return str(self) in _listing(self).files

    def is_dir(self, **_: Any) -> bool:
        """Returns whether there is a file below it."""
        return str(self) in _listing(self).folders

    def stat(self, **_: Any) -> os.stat_result:
        """Returns size and time of a file; 0 for what object stores do not have."""
        entry = _listing(self).files.get(str(self))
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, entry.size, entry.time_s, entry.time_s, entry.time_s))

    def iterdir(self) -> Generator[RemotePath, None, None]:
        """Yields what lies directly in a folder."""
        depth = len(self.parts) + 1
        below = (RemotePath(name) for name in (*_listing(self).files, *_listing(self).folders))
        yield from (path for path in below if len(path.parts) == depth and path.parts[: depth - 1] == self.parts)

    def glob(self, pattern: str, **_: Any) -> Generator[RemotePath, None, None]:
        """Yields the files whose path within the folder matches, part by part."""
        yield from (path for path, parts in self._files() if _matches(parts, pattern.split("/")))

    def rglob(self, pattern: str, **_: Any) -> Generator[RemotePath, None, None]:
        """Yields the files at any depth whose last parts match."""
        wanted = pattern.split("/")
        yield from (path for path, parts in self._files() if _matches(parts[-len(wanted) :], wanted))

    def resolve(self, strict: bool = False) -> RemotePath:
        """Returns itself."""
        return self

    def open(self, mode: str = "r", *_: Any, encoding: str | None = None, newline: str | None = None, **__: Any) -> Any:
        """Opens a file to read; bytes are fetched as they are read, and every fetch is tried again."""
        if "b" not in mode:
            return io.StringIO(self.read_bytes().decode(encoding or "utf-8"), newline)
        part = PartFile(lambda offset, size: read_at(self, offset, size), begin=0, size=self.stat().st_size)
        return io.BufferedReader(part, _FETCHED_BYTES)

    def read_bytes(self) -> bytes:
        """Returns the content of a file."""
        return _try_again(self, lambda: _filesystem(self).cat_file(str(self)))

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        """Returns the content of a text file."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def _files(self) -> Iterator[tuple[RemotePath, tuple[str, ...]]]:
        """Yields the files of a folder, at any depth, and the parts of their paths within it."""
        for name in _listing(self).files:
            path = RemotePath(name)
            if path.parts[: len(self.parts)] == self.parts:
                yield path, path.parts[len(self.parts) :]


def dataset_path(name: str | Path) -> Path:
    """Returns the folder that a configuration names: a local one, or a ``RemotePath`` whose files were just listed.

    Raises:
      ConfigError: No package is installed that reads such addresses.
      DataError: The store cannot be reached.
    """
    text = str(name)
    found = _URL.match(text)
    if isinstance(name, Path) and not isinstance(name, RemotePath):
        return name
    if not found:
        return Path(name)
    if found[1] in ("file", "local"):
        return Path("/" + text[found.end() :])
    path = RemotePath(text.rstrip("/"))
    with _LOCK:
        if str(path) not in _LISTINGS:
            _LISTINGS[str(path)] = _Listing(path)
    return path


def refuse_address(path: str | Path, what: str) -> None:
    """Raises ``ConfigError`` for a folder to write to or map into memory, named ``what``, that is none of a disk."""
    if _URL.match(str(path)):
        raise ConfigError(
            f"{what}={path} is an address; expected a path on a disk: datasets and latents alone are read from stores"
        )


def read_at(path: Path, offset: int, size: int) -> bytes:
    """Returns a part of a file, here or elsewhere; less of it than asked for at its end.

    Raises:
      OSError: It cannot be read.
    """
    if isinstance(path, RemotePath):
        content = _try_again(path, lambda: _filesystem(path).cat_file(str(path), start=offset, end=offset + size))
        if len(content) > size:
            raise OSError(
                f"{path}: asked for {size} bytes, got {len(content)}: the store does not serve parts of files"
            )
        return content

    def read() -> bytes:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    return retry_read(read, str(path))


def list_remote(path: RemotePath) -> list[tuple[str, int, int]]:
    """Returns name within the folder, size and modification time in ns of every file."""
    entries = _listing(path).files
    return [("/".join(parts), entries[str(f)].size, int(entries[str(f)].time_s * 1e9)) for f, parts in path._files()]


class _Listing:
    """The files of a dataset by address, and the folders they lie in."""

    def __init__(self, root: RemotePath) -> None:
        filesystem = _filesystem(root)
        prefix = f"{root.parts[0]}//"

        def find() -> dict[str, Any]:
            filesystem.invalidate_cache()  # another object may have listed it before it was changed
            return filesystem.find(str(root), detail=True)

        try:
            found = _try_again(root, find)
        except FileNotFoundError as error:
            raise DataError(f"{root} does not exist ({_KEYS}): the store knows no such folder or bucket") from error
        except OSError as error:
            raise DataError(f"{root} cannot be listed ({_KEYS}): {error}") from error
        self.files: dict[str, _Entry] = {}
        self.folders: set[str] = set()
        for name, info in found.items():
            address = name if "://" in name else prefix + name.lstrip("/")
            path = RemotePath(address)
            size = info.get("size")
            if size is None:  # a listing over HTTP has names alone
                size = _try_again(path, lambda name=name: filesystem.info(name)).get("size")
            if size is None:
                raise DataError(f"{root} ({_KEYS}): the store does not say how large {path} is")
            self.files[str(path)] = _Entry(int(size), _time_of(info))
            self.folders.update(str(parent) for parent in path.parents)


_LOCK = threading.RLock()
_LISTINGS: dict[str, _Listing] = {}
_FETCHING: dict[str, threading.Lock] = {}


def _listing(path: RemotePath) -> _Listing:
    """Returns the listing of the dataset that a path is of; a path of none (in a new process) is taken for one."""
    with _LOCK:
        for folder in (path, *path.parents):
            if str(folder) in _LISTINGS:
                return _LISTINGS[str(folder)]
        dataset_path(path)
        return _LISTINGS[str(path)]


def _filesystem(path: RemotePath) -> Any:
    """Returns the ``fsspec`` file system of an address.

    Raises:
      ConfigError: No package is installed for it.
    """
    import fsspec  # half a second of start-up that local datasets do not need

    try:
        return fsspec.core.url_to_fs(str(path))[0]
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{path} ({_KEYS}) cannot be read: {str(error).strip().splitlines()[0]}") from error


def _try_again(path: RemotePath, read: Callable[[], T]) -> T:
    """Returns ``read()`` as ``retry_read`` does; stores raise errors of their own for what a disk calls EIO.

    Raises:
      FileNotFoundError: There is no such file.
      OSError: It failed to the end, or for good. It has no number, so that nobody tries yet again.
    """

    def attempt() -> T:
        try:
            return read()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except Exception as error:  # each store's package has its own
            words = " ".join(str(error).split())[:_MESSAGE_CHARACTERS]  # some quote the page that a server sent
            raise OSError(errno.EIO, f"{type(error).__name__}: {words}") from error

    try:
        return retry_read(attempt, str(path))
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except OSError as error:
        raise OSError(f"{path}: {error.strerror or error}") from error


def _fetch(path: RemotePath) -> Path:
    """Returns a local copy of a whole file, fetched where there is none of its size and time.

    Raises:
      OSError: It cannot be fetched or written.
    """
    folder = Path(os.environ.get(CACHE_DIR) or Path.home() / ".cache" / "wamjax" / "files")
    copy = folder.joinpath(path.parts[0].rstrip(":"), *path.parts[1:])
    with _LOCK:
        lock = _FETCHING.setdefault(str(copy), threading.Lock())
    with lock:
        entry = _listing(path).files.get(str(path))
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        with contextlib.suppress(FileNotFoundError):
            status = copy.stat()
            if (status.st_size, status.st_mtime) == (entry.size, entry.time_s):
                os.utime(copy, (time.time(), entry.time_s))
                return copy
        copy.parent.mkdir(parents=True, exist_ok=True)
        _make_room(folder, entry.size)
        half = copy.with_name(f".{copy.name}.{os.getpid()}.part")
        try:
            _try_again(path, lambda: _filesystem(path).get_file(str(path), str(half)))
            os.utime(half, (time.time(), entry.time_s))
            os.replace(half, copy)
        finally:
            half.unlink(missing_ok=True)
    return copy


def _make_room(folder: Path, size: int) -> None:
    """Deletes the copies that were not used for longest until ``size`` bytes more fit.

    Raises:
      ConfigError: The limit is no number.
    """
    text = os.environ.get(CACHE_GIB) or str(_DEFAULT_GIB)
    try:
        limit = float(text) * 2**30
    except ValueError as error:
        raise ConfigError(f"{CACHE_GIB}={text} is no number of GiB") from error
    copies: list[tuple[float, int, Path]] = []
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room as well
            status = file.stat()
            if stat.S_ISREG(status.st_mode):
                # What is still written is read by nobody.
                used_s = max(status.st_atime, status.st_mtime) if file.suffix == ".part" else status.st_atime
                copies.append((used_s, status.st_size, file))
    total = sum(own for _, own, _ in copies)
    for used_s, own, file in sorted(copies, key=lambda copy: copy[0]):
        if total + size <= limit or used_s > time.time() - _JUST_USED_S:
            return
        file.unlink(missing_ok=True)  # a reader that has it open keeps it
        total -= own


def _matches(parts: tuple[str, ...], patterns: list[str]) -> bool:
    pairs = zip(parts, patterns, strict=False)
    return len(parts) == len(patterns) and all(fnmatch.fnmatchcase(part, pattern) for part, pattern in pairs)


def _time_of(info: dict[str, Any]) -> float:
    """Returns when a file was changed last, in whole seconds since 1970, or 0."""
    value = next((info[key] for key in _TIME_KEYS if info.get(key)), 0)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    return float(int(value)) if isinstance(value, int | float) else 0.0
