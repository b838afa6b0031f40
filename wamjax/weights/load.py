"""Loading: tensors on disk to parameters on a mesh, shard by shard.

A process touches only the bytes its own devices need. On CPU devices two readers fill the parameters themselves,
transposing on the way, and hold one tensor's piece each. On other devices a tensor travels as it lies in the file while
a thread reads the next one ahead, and is transposed and put into its stack there.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.weights.rules import TensorRule
from wamjax.weights.tensors import TensorFolder
from wamjax.weights.transposition import copy_transposed

_RELEASE_BYTES = 2**26  # pages read from files are given back after this much
_NUM_READERS = 2  # one waits for the disk while the other transposes; each holds a tensor
_ALIGNMENT_BYTES = 64  # of memory that JAX takes over as it is


def load_params(
    folder: TensorFolder,
    rules: Sequence[TensorRule],
    shardings: Mapping[str, jax.sharding.Sharding],
    shapes: Mapping[str, tuple[int, ...]],
    stored_names: Mapping[str, str],
    dtype: str = "preserve",
) -> dict[str, jax.Array]:
    """Loads the tensors of ``folder`` as parameters.

    Args:
      folder: A checkpoint whose names and shapes were compared and fit (``weights.report``).
      rules: One per parameter.
      shardings: Path -> where the parameter goes.
      shapes: Path -> its shape, the layer dim included.
      stored_names: Reference name -> name in ``folder``, of every tensor (``Comparison.matched``).
      dtype: ``preserve`` keeps each tensor's dtype (a stacked parameter takes the widest of its layers); otherwise the
        dtype to cast to.

    Returns:
      Path -> global array.
    """
    reader, shards = _Reader(folder), {}
    pool = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="weights")
    try:
        for rule in rules:
            shape, places = shapes[rule.path], shardings[rule.path]
            names = [stored_names[rule.name_of(layer)] for layer in range(shape[0] if rule.is_stacked else 1)]
            kept = np.result_type(*(folder[name].dtype for name in names)) if dtype == "preserve" else np.dtype(dtype)
            shards[rule.path] = []
            for device, index in places.addressable_devices_indices_map(shape).items():
                assert index is not None
                load = _start_on_host if device.platform == "cpu" else _load_on_device
                shards[rule.path].append((load(reader, pool, rule, names, index, shape, kept, device), device))
        return {
            path: jax.make_array_from_single_device_arrays(
                shapes[path], shardings[path], [_finish(shard, device) for shard, device in started]
            )
            for path, started in shards.items()
        }
    finally:
        pool.shutdown(cancel_futures=True)
        folder.release()


class _Reader:
    """Reads pieces of tensors, into memory that a thread uses again."""

    def __init__(self, folder: TensorFolder) -> None:
        self.folder = folder
        self._own, self._lock, self._touched = threading.local(), threading.Lock(), 0

    def fill(self, rule: TensorRule, name: str, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Reads the slice ``index`` of one layer into ``out``, in our layout."""
        stored = rule.part_of(self.folder.view(name))
        ours = rule.part_to_ours(stored)
        in_order = ours.flags.c_contiguous and ours.ctypes.data == stored.ctypes.data
        if in_order and (ours.shape, ours.dtype) == (out.shape, out.dtype):
            self.folder.read(name, out.reshape(-1).view(np.uint8), rule.part)
            return
        buffer = getattr(self._own, "buffer", None)
        if buffer is None or buffer.size < stored.nbytes:
            self._own.buffer = buffer = np.empty(stored.nbytes, np.uint8)
        piece, axes = self.read(rule, name, index, buffer)
        copy_transposed(out, piece.transpose(axes))

    def read(
        self, rule: TensorRule, name: str, index: tuple[slice, ...], buffer: np.ndarray | None = None
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """Returns one layer's slice with its dims in the order they lie in the file, and where each of ours is in it.

        ``buffer`` is used where all of the rule's part is read. In the file's order that runs at the speed of the disk.
        """
        mapped = rule.to_ours(self.folder.view(name))
        is_whole = all(len(range(*part.indices(size))) == size for part, size in zip(index, mapped.shape, strict=True))
        view = rule.part_to_ours(self.folder.read(name, buffer, rule.part)) if is_whole else mapped[index]
        order = sorted(range(view.ndim), key=lambda axis: -view.strides[axis])
        piece = np.ascontiguousarray(view.transpose(order)) if view.ndim else np.array(view)
        self._release(0 if is_whole else piece.nbytes)
        return piece, tuple(order.index(axis) for axis in range(view.ndim))

    def _release(self, num_bytes: int) -> None:
        """Counts bytes that were read as mapped pages, and gives the pages back once they are many."""
        with self._lock:
            self._touched += num_bytes
            is_due = self._touched > _RELEASE_BYTES
            self._touched = 0 if is_due else self._touched
        if is_due:
            self.folder.release()


def _finish(shard: jax.Array | tuple[np.ndarray, list[Future[None]]], device: Any) -> jax.Array:
    """Returns what was begun, once it is there; the memory of a host array becomes the device's."""
    if isinstance(shard, jax.Array):
        return shard
    filled, pending = shard
    for future in pending:
        future.result()
    return jax.device_put(filled, device, may_alias=True)


def _start_on_host(
    reader: _Reader,
    pool: ThreadPoolExecutor,
    rule: TensorRule,
    names: Sequence[str],
    index: tuple[slice, ...],
    shape: tuple[int, ...],
    dtype: np.dtype,
    device: Any,
) -> tuple[np.ndarray, list[Future[None]]]:
    """Begins to read one shard into host memory; returns the memory and what is still to happen."""
    del device
    sizes = [len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True)]
    filled = _aligned_empty(tuple(sizes), dtype)
    if not rule.is_stacked:
        return filled, [pool.submit(reader.fill, rule, names[0], index, filled)]
    first, last, _ = index[0].indices(shape[0])
    layers = ((name, filled[layer, ...]) for layer, name in enumerate(names[first:last]))
    return filled, [pool.submit(reader.fill, rule, name, index[1:], layer) for name, layer in layers]


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns memory that JAX takes over without a copy."""
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(num_bytes + _ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[start : start + num_bytes].view(dtype).reshape(shape)


def _load_on_device(
    reader: _Reader,
    pool: ThreadPoolExecutor,
    rule: TensorRule,
    names: Sequence[str],
    index: tuple[slice, ...],
    shape: tuple[int, ...],
    dtype: np.dtype,
    device: Any,
) -> jax.Array:
    """Returns one shard, layer by layer."""
    if not rule.is_stacked:
        piece, axes = reader.read(rule, names[0], index)
        return _arrange(jax.device_put(piece, device), axes, dtype)
    first, last, _ = index[0].indices(shape[0])
    sizes = [len(range(*part.indices(size))) for part, size in zip(index[1:], shape[1:], strict=True)]
    stack = jnp.zeros((last - first, *sizes), dtype, device=device)
    for layer, (piece, axes) in enumerate(_read_ahead(reader, pool, rule, names[first:last], index[1:])):
        own = _arrange(jax.device_put(piece, device), axes, dtype).block_until_ready()  # ``piece`` is used again
        stack = _put_layer(stack, own, layer)
    return stack


def _read_ahead(
    reader: _Reader, pool: ThreadPoolExecutor, rule: TensorRule, names: Sequence[str], index: tuple[slice, ...]
) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Yields what ``_Reader.read`` returns of each name, reading the next one meanwhile; a piece is valid until then.

    Two buffers are used in turn: fresh memory for every tensor would cost more than reading it.
    """
    size = max(rule.part_of(reader.folder.view(name)).nbytes for name in names)
    buffers = [np.empty(size, np.uint8) for _ in names[:2]]

    def submit(number: int) -> Future[tuple[np.ndarray, tuple[int, ...]]] | None:
        if number == len(names):
            return None
        return pool.submit(reader.read, rule, names[number], index, buffers[number % 2])

    coming = submit(0)
    for number in range(len(names)):
        assert coming is not None
        ready, coming = coming.result(), submit(number + 1)
        yield ready


@functools.partial(jax.jit, static_argnums=(1, 2))
def _arrange(piece: jax.Array, axes: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """Returns ``piece`` with our order of dims, cast."""
    return piece.transpose(axes).astype(dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _put_layer(stack: jax.Array, array: jax.Array, layer: Any) -> jax.Array:
    """Writes ``array`` as ``stack[layer]``, in place."""
    return jax.lax.dynamic_update_index_in_dim(stack, array, layer, axis=0)
