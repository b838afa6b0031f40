"""The layout of a sample: segments, visibility, and everything derived from them."""

from wamjax.layout.blocks import choose_block, executed_pairs
from wamjax.layout.formulations import JOINT_VISIBILITY, build_layout, joint_layout, video_layout
from wamjax.layout.layout import Layout, Pass
from wamjax.layout.schedule import Rectangle, Schedule, build_schedule
from wamjax.layout.segments import (
    ALL,
    BEFORE,
    CAUSAL,
    SAME,
    UP_TO,
    Relation,
    RelationKind,
    Role,
    Rotary,
    Segment,
    Visibility,
    window,
)

__all__ = [
    "ALL",
    "BEFORE",
    "CAUSAL",
    "JOINT_VISIBILITY",
    "SAME",
    "UP_TO",
    "Layout",
    "Pass",
    "Rectangle",
    "Relation",
    "RelationKind",
    "Role",
    "Rotary",
    "Schedule",
    "Segment",
    "Visibility",
    "build_layout",
    "build_schedule",
    "choose_block",
    "executed_pairs",
    "joint_layout",
    "video_layout",
    "window",
]
