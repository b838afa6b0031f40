"""One job at a time makes an index: two would write each other's parts and delete them when done.

Owns the lock. The system frees it when the process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from wamjax.errors import ConfigError, DataError

LOCK_FILE = "index.lock"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds the folder of an index for this process.

    Raises:
      ConfigError: Another process holds it.
      DataError: The folder cannot be made, or its file system has no locks.
    """
    path = out / LOCK_FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DataError(f"--out={out} cannot be used: {error.strerror}; choose another --out") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataError(f"{path} cannot be locked: {error.strerror}; use a local disk") from error
            holder = os.pread(file, 1000, 0).decode(errors="replace").strip() or "another process"
            raise ConfigError(
                f"--out={out} is being made by {holder}; wait for that job, stop it, or choose another --out"
            ) from error
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(file)
