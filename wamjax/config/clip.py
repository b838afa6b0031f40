"""Sizes of a backbone's clips: pixels to latents to tokens."""

from __future__ import annotations

import dataclasses

from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError

_BESIDE_PICTURES = 5  # frames of a sample of formulation latent_frames


def latent_grid(config: RunConfig) -> tuple[int, int, int]:
    """Returns the latent frames, rows and columns of ``config.clip``.

    The first frame is a latent frame of its own, then every ``stride[0]`` frames are one (Wan's VAE).

    Raises:
      ConfigError: The clip is not a whole number of latents.
    """
    clip = config.clip
    frames, rows, columns = clip.stride
    if (clip.num_frames - 1) % frames:
        raise ConfigError(
            f"config.clip.num_frames={clip.num_frames} is not {frames}n + 1 (config.clip.stride={clip.stride})"
        )
    for name, size, step in (("height", clip.height, rows), ("width", clip.width, columns)):
        if size % step:
            raise ConfigError(f"config.clip.{name}={size} is not a multiple of {step} (config.clip.stride)")
    return 1 + (clip.num_frames - 1) // frames, clip.height // rows, clip.width // columns


def patch_grid(config: RunConfig) -> tuple[int, int, int]:
    """Returns the tokens along frames, rows and columns of ``config.clip``.

    Raises:
      ConfigError: There is no backbone, or its patch does not divide the latents.
    """
    if config.backbone is None:
        raise ConfigError("config.backbone is none: config.clip describes what a backbone reads")
    latents, patch = latent_grid(config), config.backbone.patch
    if any(size % step for size, step in zip(latents, patch, strict=True)):
        raise ConfigError(
            f"latents of {latents} (frames, rows, columns; config.clip) are no multiple of the patch {patch} "
            "(config.backbone.patch)"
        )
    return latents[0] // patch[0], latents[1] // patch[1], latents[2] // patch[2]


def token_grid(config: RunConfig) -> tuple[int, int, int]:
    """Returns the tokens along frames, rows and columns of what the model reads.

    With ``latent_frames`` there are five frames beside the pictures: blank, two states, actions and a value.

    Raises:
      ConfigError: As ``patch_grid``, or the pictures are not those of all views, now and later.
    """
    grid, sizes = patch_grid(config), config.layout
    if sizes.formulation != "latent_frames":
        return grid
    if grid[0] != 2 * sizes.frames_per_block:
        raise ConfigError(
            f"config.clip.num_frames={config.clip.num_frames} is {grid[0]} pictures; the "
            f"{sizes.frames_per_block} views of config.layout.frames_per_block, now and later, are "
            f"{2 * sizes.frames_per_block}"
        )
    return grid[0] + _BESIDE_PICTURES, grid[1], grid[2]


def pixel_windows(config: RunConfig) -> RunConfig:
    """Returns the run on pixels whose windows are the clips that a backbone's latents stand for.

    One latent frame after the first is ``clip.stride[0]`` frames, ``data.frame_stride`` dataset steps apart, so a block
    has that many times more frames. Where the formulation has no blocks the clip is one of them: no window goes beyond
    the end of its episode.

    Raises:
      ConfigError: There is no backbone, the canvas is not the clip, or the blocks are not the clip's latent frames.
    """
    if config.backbone is None:
        raise ConfigError("config.backbone is none: config.clip describes what a backbone reads")
    if config.layout.formulation in ("alternating", "latent_frames"):
        raise ConfigError(
            f"config.layout.formulation={config.layout.formulation}: windows of it are not cut from datasets; those "
            "of joint, first_frame, plan and video are"
        )
    clip, layout, num_latent = config.clip, config.layout, latent_grid(config)[0]
    if config.data.canvas != (clip.height, clip.width):
        raise ConfigError(
            f"config.data.canvas={config.data.canvas} is not the clip of {clip.height} x {clip.width} pixels "
            "(config.clip): views are laid on what the autoencoder reads; make them equal"
        )
    if layout.formulation == "video":
        blocks = {"num_blocks": 1, "frames_per_block": clip.num_frames - 1}
        layout = dataclasses.replace(layout, **blocks, actions_per_block=1, states_per_block=1)
    else:
        if 1 + layout.num_blocks * layout.frames_per_block != num_latent:
            raise ConfigError(
                f"config.clip.num_frames={clip.num_frames} is {num_latent} latent frames; one and "
                f"{layout.num_blocks} blocks of {layout.frames_per_block} (config.layout) are "
                f"{1 + layout.num_blocks * layout.frames_per_block}"
            )
        layout = dataclasses.replace(layout, frames_per_block=layout.frames_per_block * clip.stride[0])
    return dataclasses.replace(
        config,
        backbone=None,
        layout=dataclasses.replace(layout, formulation="joint"),
        # A prompt is encoded, not looked up in a trained table, and a frame is not cut into patches.
        model=dataclasses.replace(config.model, patch=(1, 1, 1), max_prompts=2**31 - 1),
        data=dataclasses.replace(config.data, video_statistics="none"),
    )
