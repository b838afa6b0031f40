"""Sizes that follow from a configuration: frames, grid, tokens, actions. Checked once, used everywhere.

Owns the arithmetic between pixels, latent frames, tokens and action steps. Knows no arrays.
"""

from __future__ import annotations

import dataclasses

from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """Derived sizes of one sample.

    Attributes:
      num_frames: Pixel frames F of a window.
      num_latent_frames: Latent frames T (equal to F for the patch codec).
      grid: Rows and columns (h, w) of video tokens in one latent frame.
      tokens_per_frame: h x w.
      token_channels: Values c of one video token before embedding.
      num_actions: Action steps A of a window, over all blocks.
      num_states: State steps S of a window, over all blocks.
      steps_per_block: Dataset steps one block spans.
      action_stride: Dataset steps between two actions of a window.
      window_steps: Dataset steps from the first to the last frame of a window.
    """

    num_frames: int
    num_latent_frames: int
    grid: tuple[int, int]
    tokens_per_frame: int
    token_channels: int
    num_actions: int
    num_states: int
    steps_per_block: int
    action_stride: int
    window_steps: int


def derive_geometry(config: RunConfig) -> Geometry:
    """Returns the sizes that follow from ``config``.

    Raises:
      ConfigError: The patch does not divide the canvas, a view leaves the canvas, or the action horizon does not
        divide the dataset steps of a block.
    """
    layout, data = config.layout, config.data
    patch = config.model.patch if config.inverse_dynamics is None else (1, 1, 1)  # convolutions read any canvas
    if patch[0] != 1:
        raise ConfigError(f"config.model.patch has {patch[0]} frames; the patch codec needs 1 (it keeps every frame)")
    for name, size, step in (("height", data.canvas[0], patch[1]), ("width", data.canvas[1], patch[2])):
        if step < 1 or size % step:
            raise ConfigError(
                f"canvas {name} {size} (config.data.canvas) is not a multiple of the patch {step} (config.model.patch)"
            )
    _check_views(config)
    num_latent = 1 + layout.num_blocks * layout.frames_per_block
    steps_per_block = layout.frames_per_block * data.frame_stride
    if layout.actions_per_block < 1 or steps_per_block % layout.actions_per_block:
        raise ConfigError(
            f"config.layout.actions_per_block={layout.actions_per_block} does not divide the {steps_per_block} dataset "
            f"steps of a block (config.layout.frames_per_block={layout.frames_per_block} x "
            f"config.data.frame_stride={data.frame_stride})"
        )
    grid = (data.canvas[0] // patch[1], data.canvas[1] // patch[2])
    return Geometry(
        num_frames=num_latent,
        num_latent_frames=num_latent,
        grid=grid,
        tokens_per_frame=grid[0] * grid[1],
        token_channels=3 * patch[0] * patch[1] * patch[2],
        num_actions=layout.num_blocks * layout.actions_per_block,
        num_states=layout.num_blocks * layout.states_per_block,
        steps_per_block=steps_per_block,
        action_stride=steps_per_block // layout.actions_per_block,
        window_steps=layout.num_blocks * steps_per_block,
    )


def statistics_canvas(config: RunConfig) -> tuple[int, int]:
    """Returns height and width of the mean canvas that the small model keeps.

    That is one patch, the same at every place, where buckets have several canvases: all of them share one model.
    """
    if len({bucket.canvas for bucket in config.data.buckets.sets}) > 1:
        return config.model.patch[1], config.model.patch[2]
    return config.data.canvas


def _check_views(config: RunConfig) -> None:
    """Raises ``ConfigError`` where a view is not inside the canvas."""
    height, width = config.data.canvas
    for key, top, left, rows, columns in config.data.views:
        if min(top, left) < 0 or min(rows, columns) < 1 or top + rows > height or left + columns > width:
            raise ConfigError(
                f"view {key!r} at top={top}, left={left}, {rows}x{columns} leaves the {height}x{width} canvas "
                "(config.data.views, config.data.canvas)"
            )
