"""What makes a run of a video model and a run of an inverse-dynamics model one system that acts."""

from __future__ import annotations

import dataclasses
import os

from wamjax.config.acting import check_acting
from wamjax.config.pixel_windows import pixel_windows
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError

# What both stages must read alike; ``canvas`` of the first is what its clips decode to.
_SHARED = ("embodiment", "canvas", "views", "frame_stride", "action_dim", "normalisation")


def two_stage_windows(video: RunConfig, inverse: RunConfig) -> RunConfig:
    """Returns the run on pixels whose windows are one clip of ``video`` and the actions that ``inverse`` reads off it.

    Raises:
      ConfigError: The two are no system: one is no such stage, or they read frames or actions that differ.
    """
    check_stages(video, inverse)
    sizes, windows = inverse.layout, pixel_windows(video)
    per_frame = sizes.actions_per_block // sizes.frames_per_block
    layout = dataclasses.replace(
        windows.layout, actions_per_block=(video.clip.num_frames - 1) * per_frame, states_per_block=0
    )
    return dataclasses.replace(windows, name=f"{video.name}+{inverse.name}", layout=layout, data=inverse.data)


def check_stages(video: RunConfig, inverse: RunConfig) -> None:
    """Refuses two runs that make no system.

    Raises:
      ConfigError: As ``two_stage_windows``.
    """
    if video.backbone is None or video.layout.formulation != "video":
        raise ConfigError(
            f"config.layout.formulation={video.layout.formulation} of {video.name}, the first of two stages; it "
            "generates video alone, with config.backbone: a run of formulation video is expected"
        )
    if video.layout.noisy_first_frame:
        raise ConfigError(
            f"config.layout.noisy_first_frame=True of {video.name}: it generates clips from a prompt alone, and a "
            "policy goes on from what it observes; train the first stage with False"
        )
    if inverse.inverse_dynamics is None:
        raise ConfigError(
            f"config.inverse_dynamics of {inverse.name}, the second of two stages, is none: an inverse-dynamics model "
            "reads the actions off the frames (config.layout.formulation=frame_pairs)"
        )
    clip = (video.clip.height, video.clip.width)
    if clip != inverse.data.canvas:
        raise ConfigError(
            f"clips of {video.name} are {clip[0]} x {clip[1]} pixels (config.clip) and {inverse.name} reads "
            f"{inverse.data.canvas[0]} x {inverse.data.canvas[1]} (config.data.canvas): train both on one canvas"
        )
    for name in _SHARED:
        first, second = getattr(video.data, name), getattr(inverse.data, name)
        if first != second:
            raise ConfigError(
                f"config.data.{name} is {first} of {video.name} and {second} of {inverse.name}: both stages of a "
                "system read the same frames and actions; train one of them again"
            )
    for name in ("split_seed", "validation_fraction", "filters"):
        first, second = getattr(video.data, name), getattr(inverse.data, name)
        if first != second and _same_folder(video.data.path, inverse.data.path):
            raise ConfigError(
                f"config.data.{name} is {first} of {video.name} and {second} of {inverse.name}, of one dataset: what "
                "one stage holds out the other was trained on; train one of them again"
            )
    check_acting(video)
    sampling = video.sampling
    if sampling.action_guidance != 1 or sampling.action_steps or sampling.action_shift:
        raise ConfigError(
            f"config.sampling of {video.name} has action_guidance={sampling.action_guidance}, action_steps="
            f"{sampling.action_steps} and action_shift={sampling.action_shift}; actions are read off the video at "
            "once: set them to 1, 0 and 0"
        )


def _same_folder(first: str, second: str) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)
