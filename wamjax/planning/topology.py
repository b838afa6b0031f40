"""TPU topologies on a machine without TPUs: their devices as libtpu describes them.

Owns what must be true before libtpu is loaded (environment, JAX on the CPU). The devices it returns can be put into a
mesh and compiled for; nothing can run on them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
from typing import Any

import jax
from jax.experimental import topologies

from wamjax.errors import ConfigError
from wamjax.planning.chips import TpuGeneration
from wamjax.planning.slices import parse_topology

# libtpu asks the cloud's metadata server what machine it is on unless it is told; any accelerator type will do.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another process may be compiling
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """A TPU slice to compile for.

    Attributes:
      name: ``v5p:4x4x4``.
      generation: What its chips are.
      sizes: Chips along each dim.
      devices: Its JAX devices.
    """

    name: str
    generation: TpuGeneration
    sizes: tuple[int, ...]
    devices: tuple[Any, ...]

    @property
    def num_chips(self) -> int:
        """Chips of the slice."""
        return math.prod(self.sizes)


def open_topology(name: str) -> Topology:
    """Returns the slice ``name`` with its devices; makes JAX itself run on the CPU.

    Dims that wrap around on hardware are told to libtpu, whose default is a mesh without wrap-around: with it, an
    all-gather over three dims compiles to an all-reduce.

    Raises:
      ConfigError: The name is unknown, or libtpu is missing or cannot describe it.
    """
    generation, sizes = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology={name} needs the TPU compiler, and libtpu is not installed; pip install "
            "'wamjax[tpu-compile]' (or pip install 'libtpu>=0.0.51'; Linux on x86-64 only)"
        )
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with contextlib.suppress(
        RuntimeError
    ):  # JAX already runs: on whatever it runs, topologies are described all the same
        jax.config.update("jax_platforms", "cpu")
    options: dict[str, Any] = {"wrap": tuple(generation.wraps(sizes)) + (False,) * (3 - len(sizes))}
    if generation.chip_config:
        options["chip_config_name"] = generation.chip_config
    try:
        described = topologies.get_topology_desc(topology_name=name, platform="tpu", **options)
    except Exception as error:  # libtpu's own, of several types
        raise ConfigError(f"--topology={name}: libtpu cannot describe it: {' '.join(str(error).split())}") from error
    return Topology(name=name, generation=generation, sizes=sizes, devices=tuple(described.devices))
