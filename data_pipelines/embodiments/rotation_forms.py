"""The forms in which orientations are written, by name, and how many values each takes.

What they mean and how they turn into each other is ``data_pipelines.rotations``'s, which takes a while to import.
"""

from __future__ import annotations

from typing import Literal

RotationForm = Literal["none", "euler_xyz", "axis_angle", "quaternion", "rotation_6d"]
ROTATION_DIMS: dict[RotationForm, int] = {"euler_xyz": 3, "axis_angle": 3, "quaternion": 4, "rotation_6d": 6}
