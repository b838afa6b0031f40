"""Orientations between the forms in which datasets write them and models see them, by ``scipy``'s ``Rotation``.

``euler_xyz``: angles in rad about the fixed axes x, y, z in this order (DROID's
and BridgeData's way). ``quaternion``: x, y, z, w. ``rotation_6d``: the first two columns of the matrix, one after the
other. Source of the last: Zhou et al. 2019, arXiv 1812.07035, section 4.2; PyTorch3D takes the first two rows instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_pipelines.embodiments.rotation_forms import ROTATION_DIMS, RotationForm

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

# Two columns that are this short, or this close to one line, give no orientation.
_MIN_LENGTH = 1e-6


def parse_rotations(values: npt.NDArray[Any], form: RotationForm) -> Rotation:
    """Returns the rotations ``[n]`` that ``values`` ``[..., d]`` write, leading dims flattened.

    Columns of ``rotation_6d`` need not be orthonormal: they are made so, the first one keeping its direction.

    Raises:
      ValueError: A value stands for no rotation: a quaternion of length zero, columns of ``rotation_6d`` on one line.
    """
    from scipy.spatial.transform import Rotation  # over half of the start of a process that only indexes or streams

    flat = np.asarray(values, np.float64).reshape(-1, ROTATION_DIMS[form])
    if form == "euler_xyz":
        return Rotation.from_euler("xyz", flat)
    if form == "axis_angle":
        return Rotation.from_rotvec(flat)
    if form == "quaternion":
        return Rotation.from_quat(flat)
    return Rotation.from_matrix(_complete_columns(flat))


def format_rotations(rotations: Rotation, form: RotationForm) -> npt.NDArray[np.float64]:
    """Returns rotations ``[n]`` as values ``[n, d]``.

    The values are unique: angles of axis-angle within [0, pi], the w of a quaternion at least zero, the middle Euler
    angle within [-pi/2, pi/2].
    """
    if form == "euler_xyz":
        return rotations.as_euler("xyz")
    if form == "axis_angle":
        return rotations.as_rotvec()
    if form == "quaternion":
        return rotations.as_quat(canonical=True)
    return rotations.as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)


def _complete_columns(flat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the matrices ``[n, 3, 3]`` of two columns each, ``[n, 6]``, by Gram and Schmidt."""
    first, second = flat[:, :3], flat[:, 3:]
    length = np.linalg.norm(first, axis=1, keepdims=True)
    first = first / np.maximum(length, _MIN_LENGTH)
    second = second - np.sum(first * second, axis=1, keepdims=True) * first
    rest = np.linalg.norm(second, axis=1, keepdims=True)
    if len(flat) and min(length.min(), rest.min()) < _MIN_LENGTH:
        raise ValueError("the two columns of a rotation_6d lie on one line or are zero")
    second = second / rest
    return np.stack([first, second, np.cross(first, second)], axis=-1)
