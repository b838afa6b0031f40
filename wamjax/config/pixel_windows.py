"""Which windows in pixels a run's samples are made from: the windows of the small model, whatever the formulation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from wamjax.config.blocks import reads_pixels
from wamjax.config.clip import latent_grid
from wamjax.config.formulation import LayoutConfig
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError


def pixel_windows(config: RunConfig) -> RunConfig:
    """Returns the run on pixels whose windows the samples of ``config`` are made from.

    One latent frame after the first is ``clip.stride[0]`` frames, ``data.frame_stride`` dataset steps apart, so a block
    has that many times more frames. Where the formulation has no blocks the clip is one of them: no window goes beyond
    the end of its episode. By formulation:

    * ``alternating``: a block for every latent frame after the first; the actions of a latent frame lead to it.
    * ``latent_frames``: a block of one frame, now to later, and a second one for the state it begins with.
    * ``policy``: one block, of whose frames the first is read.
    * ``queries``: a block of one frame and one action for every step.

    Models that read pictures of single cameras have them one below the other on the canvas.

    Raises:
      ConfigError: The small model reads its windows as they are, the canvas is not what the model reads, or the blocks
        are not the clip's latent frames.
    """
    if reads_pixels(config):
        raise ConfigError(
            f"config.backbone, config.vla and config.gpt of {config.name} are none: its samples are windows of pixels "
            "as they are"
        )
    layout = _LAYOUTS.get(config.layout.formulation, _of_blocks)(config)
    return dataclasses.replace(
        config,
        backbone=None,
        vla=None,
        gpt=None,
        layout=dataclasses.replace(layout, formulation="joint"),
        # A prompt is encoded, not looked up in a trained table, and a frame is not cut into patches.
        model=dataclasses.replace(config.model, patch=(1, 1, 1), max_prompts=2**31 - 1),
        data=dataclasses.replace(config.data, video_statistics="none"),
    )


def num_pictures(config: RunConfig) -> int:
    """Returns how many pictures of single cameras lie one below the other on the canvas; 0 where it is read whole."""
    if config.vla is not None:
        return config.vla.num_images
    if config.gpt is not None:
        return config.gpt.num_views
    return config.layout.frames_per_block if config.layout.formulation == "latent_frames" else 0


def _of_blocks(config: RunConfig) -> LayoutConfig:
    clip, layout = config.clip, config.layout
    num_latent = _checked_clip(config)
    if 1 + layout.num_blocks * layout.frames_per_block != num_latent:
        raise ConfigError(
            f"config.clip.num_frames={clip.num_frames} is {num_latent} latent frames; one and "
            f"{layout.num_blocks} blocks of {layout.frames_per_block} (config.layout) are "
            f"{1 + layout.num_blocks * layout.frames_per_block}"
        )
    return dataclasses.replace(layout, frames_per_block=layout.frames_per_block * clip.stride[0])


def _of_video(config: RunConfig) -> LayoutConfig:
    _checked_clip(config)
    blocks = {"num_blocks": 1, "frames_per_block": config.clip.num_frames - 1}
    return dataclasses.replace(config.layout, **blocks, actions_per_block=1, states_per_block=1)


def _of_alternating(config: RunConfig) -> LayoutConfig:
    layout, num_latent = config.layout, _checked_clip(config)
    if layout.num_blocks * layout.frames_per_block != num_latent or num_latent < 2:
        raise ConfigError(
            f"config.clip.num_frames={config.clip.num_frames} is {num_latent} latent frames; {layout.num_blocks} "
            f"chunks of {layout.frames_per_block} (config.layout) are {layout.num_blocks * layout.frames_per_block}, "
            "of which 2 are the least"
        )
    if layout.actions_per_block % layout.frames_per_block:
        raise ConfigError(
            f"config.layout.actions_per_block={layout.actions_per_block} does not divide over the chunk's "
            f"frames_per_block={layout.frames_per_block} latent frames"
        )
    return dataclasses.replace(
        layout,
        num_blocks=num_latent - 1,
        frames_per_block=config.clip.stride[0],
        actions_per_block=layout.actions_per_block // layout.frames_per_block,
    )


def _of_latent_frames(config: RunConfig) -> LayoutConfig:
    _check_pictures(config, (config.clip.height, config.clip.width))
    return dataclasses.replace(config.layout, num_blocks=2, frames_per_block=1, states_per_block=1)


def _of_policy(config: RunConfig) -> LayoutConfig:
    assert config.vla is not None, "formulation policy is of config.vla"
    size = config.vla.vision.image_size
    _check_pictures(config, (size, size))
    return dataclasses.replace(config.layout, states_per_block=1)


def _of_queries(config: RunConfig) -> LayoutConfig:
    assert config.gpt is not None, "formulation queries is of config.gpt"
    _check_pictures(config, (config.gpt.image_size, config.gpt.image_size))
    return dataclasses.replace(config.layout, frames_per_block=1, states_per_block=1)


_LAYOUTS: dict[str, Callable[[RunConfig], LayoutConfig]] = {
    "video": _of_video,
    "alternating": _of_alternating,
    "latent_frames": _of_latent_frames,
    "policy": _of_policy,
    "queries": _of_queries,
}


def _checked_clip(config: RunConfig) -> int:
    """Returns the latent frames of the clip, whose pixels must be the canvas."""
    clip, num_latent = config.clip, latent_grid(config)[0]
    if config.data.canvas != (clip.height, clip.width):
        raise ConfigError(
            f"config.data.canvas={config.data.canvas} is not the clip of {clip.height} x {clip.width} pixels "
            "(config.clip): views are laid on what the autoencoder reads; make them equal"
        )
    return num_latent


def _check_pictures(config: RunConfig, size: tuple[int, int]) -> None:
    """Refuses a canvas on which the cameras' pictures do not lie one below the other."""
    (height, width), data, count = size, config.data, num_pictures(config)
    wanted = (count * height, width)
    if data.canvas != wanted:
        raise ConfigError(
            f"config.data.canvas={data.canvas}; {config.name} reads {count} pictures of {height} x {width}, which lie "
            f"one below the other: make it {wanted}"
        )
    # A vision-language-action model is told which pictures there are; the others have them all.
    if len(data.views) > count or (config.vla is None and len(data.views) < count):
        raise ConfigError(f"config.data.views has {len(data.views)} cameras; {config.name} reads {count}")
    for place, (key, *rectangle) in enumerate(data.views):
        if rectangle != [place * height, 0, height, width]:
            raise ConfigError(
                f"config.data.views puts {key!r} at {tuple(rectangle)} (top, left, height, width); {config.name} reads "
                f"picture {place} at {(place * height, 0, height, width)}"
            )
