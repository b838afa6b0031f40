"""One job at a time works in a folder: two would write each other's files and delete them when done.

Owns the lock of a file, of a run's work directory as of an index that is made. The system frees it when the process
dies, however it dies; the file then still says who held it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from wamjax.errors import ConfigError


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Holds the file ``path`` for this process; it is made where there is none.

    Args:
      path: The file; its folder exists.
      refusal: What to tell where another process holds it; ``{holder}`` is replaced by that process.

    Raises:
      ConfigError: A live process holds it, or it cannot be opened or locked.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another folder") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConfigError(f"{path} cannot be locked: {error.strerror}; use a local disk") from error
            raise ConfigError(refusal.replace("{holder}", _holder(file) or "another process")) from error
        former = _holder(file)
        if former:
            logging.info("took over the lock of %s, which ended without releasing it", former)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
        os.ftruncate(file, 0)
    finally:
        os.close(file)


def _holder(file: int) -> str:
    return os.pread(file, 1000, 0).decode(errors="replace").strip()
