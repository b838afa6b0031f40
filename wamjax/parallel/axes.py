"""The axes of the device mesh: their names, and their sizes from a configuration. Knows no devices."""

from __future__ import annotations

import math
from collections.abc import Mapping

from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError

MESH_AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")  # mesh axes the batch dim is split over


def resolve_axis_sizes(config: ParallelConfig, num_devices: int, batch_size: int | None = None) -> dict[str, int]:
    """Returns the size of each mesh axis.

    Axes of -1 share the devices that the others leave, one prime factor at a time (largest first), leftmost axis
    first. With ``context=0`` fsdp takes as many of those devices as the batch divides over, and context the rest.

    Args:
      config: Sizes as configured.
      num_devices: Devices of the mesh.
      batch_size: Samples that are computed at one time on all devices. Only ``context=0`` needs it.

    Raises:
      ConfigError: A size is neither -1 nor positive (or 0, of context), or the sizes do not multiply to
        ``num_devices``.
    """
    sizes = {name: getattr(config, name) for name in MESH_AXES}
    for name, size in sizes.items():
        if size < 1 and size != -1 and (name, size) != ("context", 0):
            raise ConfigError(f"config.parallel.{name}={size}; expected a positive size, or -1 for what is left")
    if sizes["context"] == 0:
        sizes["context"] = _context_left_by_batch(sizes, num_devices, batch_size)
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


def check_batch_divides(global_batch_size: int, mesh: Mapping[str, int], num_parts: int = 1) -> None:
    """Raises ``ConfigError`` if the batch, taken in ``num_parts``, cannot be split evenly over the data axes."""
    ways = math.prod(mesh[name] for name in BATCH_AXES)
    if num_parts > 1 and global_batch_size % (ways * num_parts):
        raise ConfigError(
            f"config.train.global_batch_size={global_batch_size} is not a multiple of the {ways * num_parts} ways the "
            f"batch is split (config.train.accumulate={num_parts} x data={mesh['data']} x "
            f"fsdp={mesh['fsdp']}, config.parallel)"
        )
    if global_batch_size < 1 or global_batch_size % ways:
        raise ConfigError(
            f"config.train.global_batch_size={global_batch_size} is not a multiple of the {ways} ways the batch is "
            f"split (data={mesh['data']} x fsdp={mesh['fsdp']}, config.parallel)"
        )


def _context_left_by_batch(sizes: Mapping[str, int], num_devices: int, batch_size: int | None) -> int:
    """Returns the devices that hold parts of one sample when fsdp splits the batch over as many as divide it."""
    if sizes["fsdp"] != -1 or -1 in (sizes["data"], sizes["tensor"]):
        raise ConfigError(
            "config.parallel.context=0 (what the batch leaves) needs fsdp=-1 and sizes of data and tensor; found "
            + ", ".join(f"{name}={sizes[name]}" for name in ("data", "fsdp", "tensor"))
        )
    if batch_size is None:
        raise ConfigError("config.parallel.context=0 (what the batch leaves) needs the batch; give context a size")
    free = num_devices // (sizes["data"] * sizes["tensor"])
    return max(free // math.gcd(free, batch_size // sizes["data"]), 1) if free else 1


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return sorted(factors, reverse=True)
