"""Names of TPU slices (``v5p:4x4x4``): which are offered, and what an unknown one may have meant.

Knows no devices (``planning.topology``).
"""

from __future__ import annotations

import difflib
import itertools
import math
import re

from wamjax.errors import ConfigError
from wamjax.planning.chips import BY_PREFIX, TpuGeneration

# Slices below a cube of 4 x 4 x 4, and all slices of the 2-D generations. Source: Google Cloud TPU docs, pages
# "TPU v4", "v5p", "TPU7x" (cubes are joined to any 4a x 4b x 4c, a <= b <= c) and "TPU v5e", "v6e".
_BELOW_A_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = 4
_MAX_CUBES_ALONG = 7  # the largest v5p slice is 16 x 20 x 28


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


def parse_topology(name: str, *, flag: str = "--topology") -> tuple[TpuGeneration, tuple[int, ...]]:
    """Returns the generation and the chips along each dim that ``name`` (``v5p:4x4x4``) stands for.

    Raises:
      ConfigError: No such slice is offered; names the nearest that are.
    """
    prefix, _, sizes = name.partition(":")
    if prefix in BY_PREFIX and name in topology_names(BY_PREFIX[prefix]):
        return BY_PREFIX[prefix], tuple(int(size) for size in sizes.split("x"))
    raise ConfigError(
        f"{flag}={name} is no TPU slice; nearest are {', '.join(_nearest(name))} (GENERATION:AxB or "
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
