"""Loading: tensors on disk to parameters on a mesh, shard by shard.

A process touches only the bytes its own devices need, one tensor at a time: above the shards themselves it holds one
tensor's piece. Stacked parameters are filled layer by layer in place on their device.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
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
        for layer in range(first, last):
            folder.expect(names[min(layer + 1, last - 1)])
            piece, axes = _read(folder, rule, names[layer], index[1:])
            layer_array = _arrange(jax.device_put(piece, device), axes, dtype)
            stack = _put_layer(stack, layer_array, layer - first)
        shards.append(stack)
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _read(
    folder: TensorFolder, rule: TensorRule, name: str, index: tuple[slice, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns one layer's slice with its dims in the order they lie in the file, and where each of our dims is in it.

    In the file's order it is read at the speed of memory; the device transposes faster than this process would.
    """
    view = rule.to_ours(folder.view(name))[index]
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
