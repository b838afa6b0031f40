"""Which devices take part in a collective together, read from the three notations of a compiled module.

| notation | groups |
|---|---|
| ``{{0,2},{1,3}}`` | spelled out; ``{}`` is all devices |
| ``[2,2]<=[2,2]T(1,0)`` | device numbers counted up in the right shape, transposed, as rows of the left |
| ``mesh['a'=2,'b'=4] {'b'}`` | devices of a mesh that differ along the axes in braces alone |

A mesh may name its devices, ``device_ids=(...)``, in either of the first two ways, and ``'b':(2)2`` is a part of an
axis: the axis split into 2, 2 and what remains, of which it is the second (XLA, ``xla/hlo/ir/mesh_and_axis.h``).
"""

from __future__ import annotations

import itertools
import math
import re

import numpy as np

from wamjax.planning.hlo import HloError, Instruction

Groups = tuple[tuple[int, ...], ...]

_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_MESH = re.compile(r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([\[\]\d,<=T()]*?)\))? \{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_REFERENCE = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def parse_groups(instruction: Instruction, num_devices: int) -> Groups:
    """Returns the device numbers of each group of a collective; of a permute, its (source, target) pairs.

    Args:
      instruction: The collective.
      num_devices: Of the module: what takes part where no groups are given.

    Raises:
      HloError: The groups are in a notation that is none of the three.
    """
    mesh = _MESH.search(instruction.attributes)
    if mesh:
        return _of_mesh(mesh[1], mesh[2], mesh[3])
    text = instruction.attribute("source_target_pairs") or instruction.attribute("replica_groups") or "{}"
    iota = _IOTA.fullmatch(text)
    if iota:
        return _rows(_count(iota[2] or iota[1], iota[3]).reshape(_numbers(iota[1])))
    if not re.fullmatch(r"[{}\d,]*", text):
        raise HloError(f"{instruction.name}: replica_groups={text} is in no notation that is known here")
    groups = tuple(_numbers(group) for group in re.findall(r"\{([\d,]+)\}", text))
    return groups or (tuple(range(num_devices)),)


def _of_mesh(axes: str, device_ids: str | None, references: str) -> Groups:
    """Returns the groups of ``mesh[axes], device_ids=(device_ids) {references}``."""
    sizes = {name: int(size) for name, size in _AXIS.findall(axes)}
    parts = [(name, int(pre or 1), int(size or sizes[name])) for name, pre, size in _REFERENCE.findall(references)]
    shape: list[int] = []
    together: list[int] = []  # dims of ``shape`` along which the devices of a group differ
    for name, whole in sizes.items():
        own = [(pre, pre * size) for part, pre, size in parts if part == name]
        cuts = sorted({1, whole, *(cut for ends in own for cut in ends)})
        for first, last in itertools.pairwise(cuts):
            if any(begin <= first and last <= end for begin, end in own):
                together.append(len(shape))
            shape.append(last // first)
    grid = _devices(device_ids, math.prod(shape)).reshape(shape)
    apart = [dim for dim in range(len(shape)) if dim not in together]
    return _rows(grid.transpose(apart + together).reshape(-1, math.prod(shape[dim] for dim in together)))


def _devices(text: str | None, count: int) -> np.ndarray:
    """Returns the devices of a mesh, flat: counted up, or as ``device_ids`` says."""
    if text is None:
        return np.arange(count)
    iota = _IOTA.fullmatch(text)
    return _count(iota[1], iota[3]).reshape(-1) if iota else np.array(_numbers(text))


def _count(shape: str, order: str | None) -> np.ndarray:
    """Returns device numbers counted up in ``shape``, with its dims in ``order``."""
    sizes = _numbers(shape)
    counted = np.arange(math.prod(sizes)).reshape(sizes)
    return counted.transpose(_numbers(order)) if order else counted


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _rows(groups: np.ndarray) -> Groups:
    return tuple(map(tuple, groups.tolist()))
