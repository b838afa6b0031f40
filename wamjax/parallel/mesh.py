"""The device mesh: four axes, present from the start, sized by configuration.

Owns axis sizes and which rows of the global batch a process reads. Does not know parameters or models.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.parallel.rules import MESH_AXES

BATCH_AXES = ("data", "fsdp")  # mesh axes the batch dim is split over


def resolve_axis_sizes(config: ParallelConfig, num_devices: int) -> dict[str, int]:
    """Returns the size of each mesh axis.

    Axes of -1 share the devices that the others leave, one prime factor at a time (largest first), leftmost axis
    first.

    Raises:
      ConfigError: A size is neither -1 nor positive, or the sizes do not multiply to ``num_devices``.
    """
    sizes = {name: getattr(config, name) for name in MESH_AXES}
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise ConfigError(f"config.parallel.{name}={size}; expected a positive size, or -1 for what is left")
    fixed = math.prod(size for size in sizes.values() if size > 0)
    free = [name for name in MESH_AXES if sizes[name] == -1]
    given = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if num_devices % fixed or (not free and fixed != num_devices):
        raise ConfigError(
            f"the mesh ({given}) needs a multiple of {fixed} devices and there are {num_devices}; change "
            "config.parallel.* or the number of devices"
        )
    sizes.update(dict.fromkeys(free, 1))
    for turn, factor in enumerate(_prime_factors(num_devices // fixed)):
        sizes[free[turn % len(free)]] *= factor
    return sizes


def build_mesh(config: ParallelConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of ``config`` over ``devices`` (all devices of all processes by default).

    Raises:
      ConfigError: See ``arrange_devices``.
    """
    grid = arrange_devices(config, list(devices) if devices is not None else jax.devices())
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def arrange_devices(config: ParallelConfig, devices: Sequence[Any]) -> np.ndarray:
    """Returns ``devices`` in a grid with the axes ``MESH_AXES``.

    Devices next to each other along an axis are neighbours on the chips' network; an axis may be a part of a physical
    one. Of several slices each is a whole number of rows of ``data``, so that no other axis leaves a slice.

    Raises:
      ConfigError: The axis sizes do not multiply to the number of devices, or the data axis is not split by slices.
    """
    sizes = resolve_axis_sizes(config, len(devices))
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


def check_batch_divides(global_batch_size: int, mesh: Mesh | AbstractMesh, num_parts: int = 1) -> None:
    """Raises ``ConfigError`` if the batch, taken in ``num_parts``, cannot be split evenly over the data axes."""
    ways = math.prod(mesh.shape[name] for name in BATCH_AXES)
    if num_parts > 1 and global_batch_size % (ways * num_parts):
        raise ConfigError(
            f"config.train.global_batch_size={global_batch_size} is not a multiple of the {ways * num_parts} ways the "
            f"batch is split (config.train.accumulate={num_parts} x data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']}, config.parallel)"
        )
    if global_batch_size < 1 or global_batch_size % ways:
        raise ConfigError(
            f"config.train.global_batch_size={global_batch_size} is not a multiple of the {ways} ways the batch is "
            f"split (data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}, config.parallel)"
        )


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


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return sorted(factors, reverse=True)
