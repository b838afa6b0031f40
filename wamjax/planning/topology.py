"""TPU topologies on a machine without TPUs: their names, and their devices as libtpu describes them.

Owns what must be true before libtpu is loaded (environment, JAX on the CPU). The devices it returns can be put into a
mesh and compiled for; nothing can run on them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import itertools
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from wamjax.errors import ConfigError
from wamjax.planning.chips import BY_PREFIX, TpuGeneration

# libtpu asks the cloud's metadata server what machine it is on unless it is told; any accelerator type will do.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another process may be compiling
}

# Slices below a cube of 4 x 4 x 4, and all slices of the 2-D generations. Source: Google Cloud TPU docs, pages
# "TPU v4", "v5p", "TPU7x" (cubes are joined to any 4a x 4b x 4c, a <= b <= c) and "TPU v5e", "v6e".
_BELOW_A_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = 4
_MAX_CUBES_ALONG = 7  # the largest v5p slice is 16 x 20 x 28


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


def topology_names(generation: TpuGeneration) -> list[str]:
    """Returns the names of the slices that ``generation`` is offered in, small ones first."""
    if generation.dims == 2:
        return [f"{generation.prefix}:{sizes}" for sizes in _SQUARES]
    lengths = [_CUBE * cubes for cubes in range(1, _MAX_CUBES_ALONG + 1)]
    slices = itertools.combinations_with_replacement(lengths, 3)
    joined = sorted(
        (s for s in slices if math.prod(s) <= generation.chip.domain_chips), key=lambda s: (math.prod(s), s)
    )
    return [f"{generation.prefix}:{sizes}" for sizes in (*_BELOW_A_CUBE, *("x".join(map(str, s)) for s in joined))]


def parse_topology(name: str) -> tuple[TpuGeneration, tuple[int, ...]]:
    """Returns the generation and the chips along each dim that ``name`` (``v5p:4x4x4``) stands for.

    Raises:
      ConfigError: No such slice is offered; names the nearest that are.
    """
    prefix, _, sizes = name.partition(":")
    if prefix in BY_PREFIX and name in topology_names(BY_PREFIX[prefix]):
        return BY_PREFIX[prefix], tuple(int(size) for size in sizes.split("x"))
    raise ConfigError(
        f"--topology={name} is no TPU slice; nearest are {', '.join(_nearest(name))} (GENERATION:AxB or "
        f"AxBxC chips, of {', '.join(BY_PREFIX)})"
    )


def _nearest(name: str, count: int = 3) -> list[str]:
    """Returns slices like ``name``: of the generation spelled most alike, those with the most similar sizes."""
    prefix, *rest = re.split(r"[^a-z0-9]", name.lower(), maxsplit=1)
    alike = difflib.get_close_matches(prefix, BY_PREFIX, n=1, cutoff=0.0)
    names = topology_names(BY_PREFIX[alike[0]])
    wanted = sorted(int(size) for size in re.findall(r"[1-9]\d*", "".join(rest))) or [1]

    def distance(valid: str) -> float:
        sizes = [int(size) for size in valid.partition(":")[2].split("x")]
        chips = abs(math.log(math.prod(sizes) / math.prod(wanted)))
        if len(sizes) != len(wanted):
            return chips
        return chips + sum(abs(math.log(a / b)) for a, b in zip(sizes, wanted, strict=True))

    return sorted(names, key=distance)[:count]


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
