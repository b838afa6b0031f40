"""Import of a random 3 GB checkpoint: speed against the disk's sequential read, memory above the parameters.

Command:   python benchmarks/weights_import.py [--folder=DIR] [--repeats=2]
Prints:    the rate of `weights import`'s loading, and that of reading the same files front to back, both with the files
           dropped from the page cache first, alternating (parameters are fresh memory, the reader uses one buffer
           again and again); and the peak of memory above the parameters themselves, in units of the largest tensor.
           At least 0.5 of the disk and under 2 tensors are expected.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np

from wamjax.config.schema import ParallelConfig
from wamjax.parallel.mesh import build_mesh
from wamjax.weights.exchange import load_reference
from wamjax.weights.kinds.umt5_encoder import KIND
from wamjax.weights.tensors import TensorFolder
from wamjax.weights.write import write_tensors

CONFIG = {  # a UMT5 encoder of 1.5e9 parameters
    "architectures": ["UMT5EncoderModel"],
    "vocab_size": 64_000,
    "d_model": 2048,
    "num_layers": 28,
    "num_heads": 32,
    "d_kv": 64,
    "d_ff": 5120,
}
_BLOCK_BYTES = 2**24


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to put the checkpoint (default: a temporary one)"
    )
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_checkpoint(folder)
        tensors = TensorFolder(folder)
        num_bytes = sum(tensor.num_bytes for tensor in tensors.values())
        largest = max(tensor.num_bytes for tensor in tensors.values())
        mesh = build_mesh(ParallelConfig(data=1, fsdp=-1, context=1, tensor=1))
        read_s, load_s, peaks = [], [], []
        for _ in range(arguments.repeats):
            drop_cache(tensors.files)
            read_s.append(timed(lambda: read_sequentially(tensors.files)))
            drop_cache(tensors.files)
            gc.collect()  # what the last round loaded: JAX lets go of host memory only now
            with PeakMemory() as memory:
                load_s.append(timed(lambda: jax.block_until_ready(load_reference(folder, mesh).params)))
            peaks.append(memory.peak_bytes - num_bytes)
    disk, own = num_bytes / min(read_s), num_bytes / min(load_s)
    print(
        f"{num_bytes / 1e9:.2f} GB in {len(tensors)} tensors, the largest {largest / 1e6:.0f} MB, {mesh.size} devices"
    )
    print(f"disk, front to back: {disk / 1e9:.2f} GB/s; import: {own / 1e9:.2f} GB/s; ratio {own / disk:.2f}")
    print(f"memory above the parameters: {max(peaks) / 1e6:.0f} MB = {max(peaks) / largest:.2f} of the largest tensor")


def write_checkpoint(folder: Path) -> None:
    """Writes random bf16 tensors in four files with an index."""
    config = KIND.parse_config(CONFIG)
    shapes = jax.eval_shape(lambda: jax.tree.map(lambda v: v, KIND.build(jax.random.key(0), config)))
    flat = {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    planned, dtype = [], np.dtype(jax.numpy.bfloat16)
    for rule in KIND.rules(config, "diffusers"):
        shape = flat[rule.path]
        layer = np.broadcast_to(np.zeros((), np.uint8), shape[1:] if rule.is_stacked else shape)
        for index in range(shape[0] if rule.is_stacked else 1):
            planned.append((rule.name_of(index), dtype, rule.to_reference(layer).shape))
    random = np.random.default_rng(0)
    sizes = {name: shape for name, _, shape in planned}

    def read(name: str) -> np.ndarray:
        count = int(np.prod(sizes[name]))
        return random.integers(0, 2**15, count, np.uint16).view(dtype).reshape(sizes[name])

    write_tensors(folder, "model", planned, read, max_file_bytes=10**9)
    (folder / "config.json").write_text(json.dumps(CONFIG))


def read_sequentially(files: list[Path]) -> None:
    """Reads every file front to back into one buffer."""
    buffer = bytearray(_BLOCK_BYTES)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop_cache(files: list[Path]) -> None:
    """Asks the system to forget the pages of ``files``."""
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(function) -> float:
    """Returns the seconds ``function`` takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


class PeakMemory:
    """Largest anonymous memory of this process above what it had at the start (file pages belong to the system)."""

    def __enter__(self) -> PeakMemory:
        self._start, self.peak_bytes, self._running = anonymous_bytes(), 0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()

    def _watch(self) -> None:
        while self._running:
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes() - self._start)
            time.sleep(0.002)


def anonymous_bytes() -> int:
    """Returns ``RssAnon`` of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon line; this benchmark needs Linux")


if __name__ == "__main__":
    main()
