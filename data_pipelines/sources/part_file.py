"""A part of a file as a file to read: a member of an archive, or a file in a store that is fetched piece by piece.

Owns the position. Where the bytes come from, and what is tried again, is the reader's that it is given.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable

ReadAt = Callable[[int, int], bytes]


class PartFile(io.RawIOBase):
    """Bytes ``begin .. begin + size - 1`` of a file; archives are shared by nobody's position."""

    def __init__(self, read_at: ReadAt, *, begin: int, size: int, close: Callable[[], None] | None = None) -> None:
        """Reads nothing yet.

        Args:
          read_at: (offset, size) -> bytes of the whole file; fewer at its end.
          begin: Offset of the first byte.
          size: In bytes.
          close: Called once when the part is closed.
        """
        self._read_at, self._begin, self._size, self._close = read_at, begin, size, close
        self._position = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the offset within the part."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to an offset within the part, or beyond its end, and returns it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Returns the next ``size`` bytes, all that are left for -1; fewer at the end."""
        left = max(0, self._size - self._position)
        count = left if size is None or size < 0 else min(size, left)
        content = self._read_at(self._begin + self._position, count) if count else b""
        self._position += len(content)
        return content

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] - Buffer is 3.12's
        """Fills ``buffer`` as far as there are bytes, and returns how many."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Closes the file below."""
        if not self.closed and self._close is not None:
            self._close()
        super().close()
