"""How long a collective takes on a machine's wires, at their listed rates.

On a TPU slice devices are placed as the program would place them and the ring formulas of ``planning.ici`` hold; what
crosses slices goes over the data-centre network. Of GPUs the devices of one scale-up domain share its links, and what
leaves it goes over one network card per GPU.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from wamjax.parallel.axes import MESH_AXES
from wamjax.planning.chips import BY_PREFIX
from wamjax.planning.ici import Torus
from wamjax.planning.machine import Machine

Kind = Literal["all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"]


class WireTime(NamedTuple):
    """Seconds on the links inside a domain, and on the network between domains."""

    links: float
    network: float


class Fabric:
    """The wires of a machine under a mesh."""

    def __init__(self, machine: Machine, mesh: Mapping[str, int]) -> None:
        """Places ``mesh`` on ``machine``."""
        self._machine = machine
        # The devices of a chip share its network.
        self._network_bytes_per_s = machine.host.network_bytes_per_s / machine.chip.devices_per_chip
        self._across = machine.num_slices
        inside = {**mesh, "data": mesh["data"] // self._across}
        self._grid = np.arange(math.prod(inside.values())).reshape(tuple(inside[name] for name in MESH_AXES))
        generation = machine.generation
        self._torus = None if generation is None else _torus(generation.prefix, machine.sizes)

    def time(self, kind: Kind, num_bytes: int | float, axes: Sequence[str]) -> WireTime:
        """Returns the time of one collective.

        Args:
          kind: What it is.
          num_bytes: The whole array of one device: gathered, reduced, before scattering, exchanged or sent.
          axes: Mesh axes it spans.
        """
        group = self._group(axes)
        network = 0.0
        if "data" in axes and self._across > 1:  # the sum over slices, of what each device holds after its own slice's
            passes = {"all-reduce": 2.0}.get(kind, 1.0)
            share = num_bytes / len(group) if kind == "all-reduce" else num_bytes
            network = passes * share * (1 - 1 / self._across) / self._network_bytes_per_s
        if self._torus is not None:
            return WireTime(self._torus.wire_seconds(kind, int(num_bytes), group), network)
        return _gpu_time(self._machine, kind, num_bytes, group)

    def _group(self, axes: Sequence[str]) -> list[int]:
        """Returns one group of devices that take part together, as positions in the mesh's order."""
        index = tuple(slice(None) if name in axes else 0 for name in MESH_AXES)
        return [int(place) for place in np.ravel(self._grid[index])]


@functools.lru_cache(maxsize=256)
def _torus(prefix: str, sizes: tuple[int, ...]) -> Torus:
    """Returns a slice whose devices are in the order of their chips, the last dim fastest, cores of a chip together.

    So the mesh's last axes lie along the last dims of the torus, whole ones where sizes agree, as JAX's own placement
    has them (``parallel.mesh.arrange_devices``); where an axis is a part of a dim, the parts may lie otherwise there.
    """
    generation = BY_PREFIX[prefix]
    coords = np.array(list(itertools.product(*(range(size) for size in sizes))))
    return Torus(
        coords=np.repeat(coords, generation.chip.devices_per_chip, axis=0),
        sizes=sizes,
        wraps=generation.wraps(sizes),
        link_bytes_per_s=generation.link_bytes_per_s,
    )


def _gpu_time(machine: Machine, kind: Kind, num_bytes: int | float, group: Sequence[int]) -> WireTime:
    """Ring formulas over scale-up links and one network card per GPU.

    A ring of g GPUs in each of several domains crosses between domains over g cards at once; an all-to-all sends the
    share that leaves its domain over the GPU's own card.
    """
    size = len(group)
    if size < 2 or num_bytes == 0:
        return WireTime(0.0, 0.0)
    links, card = machine.chip.link_bytes_per_s, machine.host.network_bytes_per_s
    nodes = {place // machine.domain_chips for place in group}
    inside = size // len(nodes)
    if kind == "collective-permute":
        return WireTime(num_bytes / links, num_bytes / card if len(nodes) > 1 else 0.0)
    if kind == "all-to-all":
        leaving = (size - inside) / size
        return WireTime(num_bytes * (inside - 1) / size / links, num_bytes * leaving / card)
    passes = 2 if kind == "all-reduce" else 1
    moved = passes * num_bytes * (1 - 1 / size)
    if len(nodes) == 1:
        return WireTime(moved / links, 0.0)
    return WireTime(0.0, moved / min(links, inside * card))
