"""Loading: tensors on disk to parameters on a mesh, shard by shard.

A process touches only the bytes its own devices need, one tensor at a time: above the shards themselves it holds one
tensor's piece and the next one, which a thread reads ahead. Stacked parameters are filled layer by layer in place on
their device.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.weights.rules import TensorRule
from wamjax.weights.tensors import TensorFolder

_RELEASE_BYTES = 2**26  # pages read from files are given back after this much


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
    params, touched = {}, 0
    for rule in rules:
        num_layers = shapes[rule.path][0] if rule.is_stacked else 1
        names = [stored_names[rule.name_of(layer)] for layer in range(num_layers)]
        kept = np.result_type(*(folder[name].dtype for name in names)) if dtype == "preserve" else np.dtype(dtype)
        params[rule.path] = _load_one(folder, rule, names, shardings[rule.path], shapes[rule.path], kept)
        touched += sum(folder[name].num_bytes for name in names)
        if touched > _RELEASE_BYTES:
            jax.block_until_ready(params[rule.path])
            folder.release()
            touched = 0
    folder.release()
    return params


def _load_one(
    folder: TensorFolder,
    rule: TensorRule,
    names: Sequence[str],
    sharding: jax.sharding.Sharding,
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> jax.Array:
    """Returns one parameter, each shard read once per device that holds it."""
    shards = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        if not rule.is_stacked:
            piece, axes = _read(folder, rule, names[0], index)
            # A copy: on a CPU the parameter could otherwise be the mapped file itself.
            shards.append(_arrange(jax.device_put(np.array(piece, order="C", copy=True), device), axes, dtype))
            continue
        first, last, _ = index[0].indices(shape[0])
        sizes = [len(range(*part.indices(size))) for part, size in zip(index[1:], shape[1:], strict=True)]
        stack = jnp.zeros((last - first, *sizes), dtype, device=device)
        for layer, (piece, axes) in enumerate(_read_ahead(folder, rule, names[first:last], index[1:])):
            own = _arrange(jax.device_put(piece, device), axes, dtype).block_until_ready()  # ``piece`` is used again
            stack = _put_layer(stack, own, layer)
        shards.append(stack)
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _read_ahead(
    folder: TensorFolder, rule: TensorRule, names: Sequence[str], index: tuple[slice, ...]
) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Yields what ``_read`` returns of each name, reading the next one meanwhile; a piece is valid until the next.

    Two buffers are used in turn: fresh memory for every tensor would cost more than reading it.
    """
    size = max(folder[name].num_bytes for name in names)
    buffers = [np.empty(size, np.uint8) for _ in names[:2]]
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights") as reader:

        def submit(number: int) -> Future[tuple[np.ndarray, tuple[int, ...]]] | None:
            if number == len(names):
                return None
            return reader.submit(_read, folder, rule, names[number], index, buffers[number % 2])

        coming = submit(0)
        for number in range(len(names)):
            assert coming is not None
            ready, coming = coming.result(), submit(number + 1)
            yield ready


def _read(
    folder: TensorFolder, rule: TensorRule, name: str, index: tuple[slice, ...], buffer: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns one layer's slice with its dims in the order they lie in the file, and where each of our dims is in it.

    ``buffer`` is used where the whole tensor is read. In the file's order that runs at the speed of the disk, and the
    device transposes faster than this process would.
    """
    mapped = rule.to_ours(folder.view(name))
    is_whole = all(len(range(*part.indices(size))) == size for part, size in zip(index, mapped.shape, strict=True))
    view = rule.to_ours(folder.read(name, buffer)) if is_whole else mapped[index]
    order = sorted(range(view.ndim), key=lambda axis: -view.strides[axis])
    piece = np.ascontiguousarray(view.transpose(order)) if view.ndim else np.array(view)
    return piece, tuple(order.index(axis) for axis in range(view.ndim))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _arrange(piece: jax.Array, axes: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """Returns ``piece`` with our order of dims, cast."""
    return piece.transpose(axes).astype(dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _put_layer(stack: jax.Array, array: jax.Array, layer: Any) -> jax.Array:
    """Writes ``array`` as ``stack[layer]``, in place. Fused with a transposition it is three times slower on a CPU."""
    return jax.lax.dynamic_update_index_in_dim(stack, array, layer, axis=0)
