"""Sizes of a backbone's clips: pixels to latents to tokens."""

from __future__ import annotations

from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError


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
