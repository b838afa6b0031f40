"""How long a collective occupies the inter-chip links: ring formulas on the chips' torus.

Closed forms without latency or contention, so a lower bound of what hardware takes. A collective may use every torus
dim along which its group extends, in both directions. A dim is a ring where the group spans all of it and it wraps
around, and a line otherwise.

Source: the formulas of "How to Scale Your Model", chapters 3 and 12 (jax-ml.github.io/scaling-book); what differs:
lines, and groups over several dims for all-to-all (the longest dim decides).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from wamjax.planning.chips import TpuGeneration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Torus:
    """Where the devices of a program are.

    Attributes:
      coords: ``[device dim]`` chip coordinates, in the program's device order (the order of the mesh's devices).
      sizes: Chips along each dim.
      wraps: Which dims close into a ring.
      link_bytes_per_s: One link, one way, one device's share.
    """

    coords: np.ndarray
    sizes: tuple[int, ...]
    wraps: tuple[bool, ...]
    link_bytes_per_s: float

    def wire_seconds(self, kind: str, num_bytes: int, group: Sequence[int]) -> float:
        """Returns the seconds that a collective of ``group`` needs the links for.

        Args:
          kind: ``all-gather``, ``all-reduce``, ``reduce-scatter``, ``all-to-all``, ``collective-permute`` or
            ``collective-broadcast``.
          num_bytes: The whole array of one device: gathered, reduced, before scattering, exchanged or sent.
          group: Devices that take part, as positions in the program's device order.
        """
        if len(group) < 2 or num_bytes == 0:
            return 0.0
        if kind in ("collective-permute", "collective-broadcast"):
            return num_bytes / self.link_bytes_per_s
        spans = self._spans(group)
        if not spans:  # cores of one chip: no link, taken to be as fast as all links of the chip
            return num_bytes / (2 * len(self.sizes) * self.link_bytes_per_s)
        if kind == "all-to-all":
            # Through the middle of a dim goes a quarter of what its devices hold, over one link or, in a ring, two.
            per_link = max(num_bytes * length / (8 if ring else 4) for length, ring in spans)
            return per_link / self.link_bytes_per_s
        links = sum(2 if ring else 1 for _, ring in spans)
        passes = 2 if kind == "all-reduce" else 1  # a reduce-scatter, then an all-gather
        return passes * num_bytes * (1 - 1 / len(group)) / (links * self.link_bytes_per_s)

    def _spans(self, group: Sequence[int]) -> list[tuple[int, bool]]:
        """Returns (length, is a ring) of each torus dim along which the devices of ``group`` differ."""
        places = self.coords[list(group)]
        lengths = [len(np.unique(places[:, dim])) for dim in range(len(self.sizes))]
        return [
            (length, self.wraps[dim] and length == self.sizes[dim]) for dim, length in enumerate(lengths) if length > 1
        ]


def build_torus(generation: TpuGeneration, devices: Sequence[Any]) -> Torus:
    """Returns the torus that ``devices`` (of a TPU topology, in the mesh's order) form."""
    coords = np.array([device.coords[: generation.dims] for device in devices])
    sizes = tuple(int(size) for size in coords.max(axis=0) + 1)
    return Torus(
        coords=coords,
        sizes=sizes,
        wraps=generation.wraps(sizes),
        link_bytes_per_s=generation.link_bytes_per_s,
    )
