"""How this process treats memory that XLA gives back after every step on a CPU."""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt, from malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets the process keep the memory of a step for the next one, where the C library is glibc.

    On a CPU, XLA takes the working memory of a program from malloc and frees it after every run. glibc gives blocks of
    that size back to the system, so every step begins with hundreds of megabytes of page faults: a tenth of its time,
    and much more on a virtual machine whose host takes free pages away. The price is memory: what compilation needed
    stays too, and holes are not given back. Call it before JAX starts its threads; later it has no effect.

    Returns:
      Whether it had an effect.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    # Blocks come from the one heap that can grow without limit and is never cut back.
    options = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER))
    return all(library.mallopt(name, value) for name, value in options)
