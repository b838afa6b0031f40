"""The device mesh: four axes, present from the start, sized by configuration (``parallel.axes``).

Owns where devices lie in it and which rows of the global batch a process reads. Does not know parameters or models.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.parallel.axes import BATCH_AXES, MESH_AXES, resolve_axis_sizes


def build_mesh(config: ParallelConfig, devices: Sequence[Any] | None = None, *, batch_size: int | None = None) -> Mesh:
    """Returns the mesh of ``config`` over ``devices`` (all devices of all processes by default).

    ``batch_size``, the samples computed at one time, is needed where config says ``context=0``.

    Raises:
      ConfigError: See ``arrange_devices``.
    """
    grid = arrange_devices(config, list(devices) if devices is not None else jax.devices(), batch_size)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def arrange_devices(config: ParallelConfig, devices: Sequence[Any], batch_size: int | None = None) -> np.ndarray:
    """Returns ``devices`` in a grid with the axes ``MESH_AXES``.

    Devices next to each other along an axis are neighbours on the chips' network; an axis may be a part of a physical
    one. Of several slices each is a whole number of rows of ``data``, so that no other axis leaves a slice.

    Raises:
      ConfigError: The axis sizes do not multiply to the number of devices, or the data axis is not split by slices.
    """
    sizes = resolve_axis_sizes(config, len(devices), batch_size)
    shape = tuple(sizes[name] for name in MESH_AXES)
    num_slices = _count_slices(devices)
    if num_slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if sizes["data"] % num_slices:
        raise ConfigError(
            f"config.parallel.data={sizes['data']} is no multiple of the {num_slices} slices there are, and no other "
            "axis may leave a slice; set data to a multiple"
        )
    within, across = (sizes["data"] // num_slices, *shape[1:]), (num_slices, 1, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def data_shard(mesh: Mesh) -> tuple[int, int]:
    """Returns (shard index, shard count): which rows of every global batch this process reads.

    The batch is split over the data axes only, so processes that hold different parts of one model replica read the
    same rows. A process reads one contiguous run of rows.

    Raises:
      ConfigError: This process's devices do not hold one aligned run of rows.
    """
    num_rows = math.prod(mesh.shape[name] for name in BATCH_AXES)
    by_row = mesh.devices.reshape(num_rows, -1)
    mine = [row for row in range(num_rows) if any(d.process_index == jax.process_index() for d in by_row[row])]
    count = len(mine)
    if mine != list(range(mine[0], mine[0] + count)) or mine[0] % count or num_rows % count:
        raise ConfigError(
            f"process {jax.process_index()} holds data rows {mine} of {num_rows}, which is not one aligned run; make "
            "the data and fsdp axes (config.parallel) the outer ones over processes"
        )
    return mine[0] // count, num_rows // count


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batch-first arrays."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that holds a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def make_global_batch(host_rows: Any, mesh: Mesh) -> Any:
    """Makes a pytree of host arrays (this process's rows of every batch-first array) global and sharded."""
    sharding = batch_sharding(mesh)
    _, shard_count = data_shard(mesh)

    def place(rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, rows, (rows.shape[0] * shard_count, *rows.shape[1:]))

    return jax.tree.map(place, host_rows)


def _count_slices(devices: Sequence[Any]) -> int:
    """Returns the number of TPU slices, which the data-centre network joins. Other devices count as one slice.

    Raises:
      ConfigError: The slices are of different sizes.
    """
    if devices[0].platform != "tpu":
        return 1
    sizes = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{size} in slice {index}" for index, size in sorted(sizes.items()))
        raise ConfigError(f"the slices of this run have different numbers of devices ({listed}); expected equal slices")
    return len(sizes)
