"""Memory that is freed stays with the process, so that using it again costs no page faults."""

import platform
import subprocess
import sys

import pytest

FREE_AND_USE_AGAIN = """
import ctypes, resource
from wamjax.parallel.host_memory import keep_freed_memory
keep = {keep}
assert not keep or keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
num_bytes = 2**27
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = ctypes.c_void_p(library.malloc(ctypes.c_size_t(num_bytes)))
    ctypes.memset(memory, 1, num_bytes)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    library.free(memory)
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has these options")
@pytest.mark.parametrize("keep", [False, True])
def test_freed_memory_is_kept_where_asked(keep):
    script = FREE_AND_USE_AGAIN.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert (int(done.stdout) < 100) == keep
