"""The layout of a sample: segments, visibility, and everything derived from them."""

from wamjax.layout.alternating import alternating_layout
from wamjax.layout.blocks import choose_block, executed_pairs
from wamjax.layout.first_frame import first_frame_layout
from wamjax.layout.formulations import (
    JOINT_VISIBILITY,
    build_decoder_layout,
    build_layout,
    joint_layout,
    video_layout,
)
from wamjax.layout.layout import Layout, Pass
from wamjax.layout.plan import decoder_layout, plan_layout, present_segments
from wamjax.layout.policy import image_layout, policy_layout, query_layout
from wamjax.layout.schedule import Rectangle, Schedule, build_schedule
from wamjax.layout.segments import (
    ACTION_ROLES,
    ALL,
    BEFORE,
    CAUSAL,
    SAME,
    UP_TO,
    VIDEO_ROLES,
    Relation,
    RelationKind,
    Role,
    Rotary,
    Segment,
    Visibility,
    window,
    window_before,
)

__all__ = [
    "ACTION_ROLES",
    "ALL",
    "BEFORE",
    "CAUSAL",
    "JOINT_VISIBILITY",
    "SAME",
    "UP_TO",
    "VIDEO_ROLES",
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
    "alternating_layout",
    "build_decoder_layout",
    "build_layout",
    "build_schedule",
    "choose_block",
    "decoder_layout",
    "executed_pairs",
    "first_frame_layout",
    "image_layout",
    "joint_layout",
    "plan_layout",
    "policy_layout",
    "present_segments",
    "query_layout",
    "video_layout",
    "window",
    "window_before",
]
