"""Reading again where a read failed for a reason that may pass: a network file system that lost its connection.

Owns which errors those are and how long is waited. Everything else (a missing or damaged file) fails at once, and what
fails to the end is the reader's to quarantine or refuse, with the same words as any other error.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

from absl import logging

T = TypeVar("T")

# What NFS, FUSE mounts of object stores and their sockets report while a server is away or restarting (errno(3)).
_NAMES = [
    "EIO",
    "EAGAIN",
    "ESTALE",
    "ETIMEDOUT",
    "ECONNRESET",
    "ECONNABORTED",
    "ECONNREFUSED",
    "ENETDOWN",
    "ENETUNREACH",
    "ENETRESET",
    "EHOSTDOWN",
    "EHOSTUNREACH",
    "EREMOTEIO",
    "ENOTCONN",
    "EPIPE",
]
_TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))  # not every system has all
DELAYS_S = (0.5, 2.0, 8.0)  # before each further attempt


def is_transient(error: BaseException) -> bool:
    """Returns whether an error may pass by itself."""
    return isinstance(error, OSError) and error.errno in _TRANSIENT


def probe(path: str | os.PathLike[str]) -> None:
    """Raises the ``OSError`` of a file that cannot be read now: some packages do not tell it from a damaged one."""
    with open(path, "rb") as file:
        file.read(1)


def retry_read(read: Callable[[], T], what: str) -> T:
    """Returns ``read()``, called again after each of ``DELAYS_S`` while it fails for a reason that may pass.

    Args:
      read: Reads from the beginning, whatever an earlier call did.
      what: The file, for the log.

    Raises:
      OSError: What the last attempt raised; whatever else ``read`` raises at once.
    """
    for attempt, delay_s in enumerate(DELAYS_S, 1):
        try:
            return read()
        except OSError as error:
            if not is_transient(error):
                raise
            reason = error.strerror or error
            logging.warning(
                "%s cannot be read (attempt %d of %d): %s; trying again in %g s",
                *(what, attempt, len(DELAYS_S) + 1, reason, delay_s),
            )
            time.sleep(delay_s)
    return read()
