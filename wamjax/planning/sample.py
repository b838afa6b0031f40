"""One training sample: what the cameras show of it, how many tokens it is, and how long it lasted.

Pixels, frames and streams follow from the configuration exactly. Seconds do not: a configuration of cached latents
says nothing of the frame rate, which is an assumption unless it is given.
"""

from __future__ import annotations

import dataclasses

from wamjax.config.clip import latent_grid, token_grid
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import RunConfig
from wamjax.layout import Layout, Role
from wamjax.planning.assumption import Assumption

_WAN_RATE = Assumption(
    name="frames per second of a clip",
    value=16.0,
    unit="Hz",
    source="Wan 2.1, wan/configs/shared_config.py, sample_fps",
)
_ROBOT_RATE = Assumption(
    name="frames per second of a clip",
    value=5.0,
    unit="Hz",
    source="DreamZero (arXiv 2602.15922): 33 frames at 5 Hz; other robots' clips are taken to be alike",
)


_STEP_RATE = Assumption(
    name="frames per second of a clip",
    value=30.0,
    unit="Hz",
    source="CALVIN (arXiv 2112.03227); other datasets are taken to be alike",
)
_ACTION_RATE = Assumption(
    name="actions per second of a chunk",
    value=15.0,
    unit="Hz",
    source="DROID (arXiv 2403.12945); other robots are taken to be alike",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sample.

    Attributes:
      views: Camera features on the canvas; empty where the clip is one picture.
      canvas: Height and width in pixels.
      num_frames: Pixel frames.
      frame_stride: Dataset steps between two of them (1 where the clip is of latents).
      latent_grid: Latent frames, rows and columns; of a policy's sample images and patches.
      token_grid: Tokens along frames, rows and columns.
      tokens: Tokens by stream, without padding.
      padding: Tokens of padding.
      seconds: From the first frame to the last; of a policy's sample, which shows the present alone, its actions.
      has_actions: Whether a robot moved meanwhile.
      rate: The frame rate that ``seconds`` rests on.
    """

    views: tuple[str, ...]
    canvas: tuple[int, int]
    num_frames: int
    frame_stride: int
    latent_grid: tuple[int, int, int]
    token_grid: tuple[int, int, int]
    tokens: dict[str, int]
    padding: int
    seconds: float
    has_actions: bool
    rate: Assumption

    @property
    def num_tokens(self) -> int:
        """Tokens of all streams, without padding."""
        return sum(self.tokens.values())

    @property
    def robot_seconds(self) -> float:
        """Seconds in which a robot acted."""
        return self.seconds if self.has_actions else 0.0


def describe_sample(config: RunConfig, layout: Layout, rate: Assumption | None = None) -> Sample:
    """Returns the sizes of a sample of ``config``.

    Args:
      config: The run.
      layout: Its layout.
      rate: Frames of a sample per second, where it is known; None for the published one of such clips.
    """
    rate = rate or default_rate(config)
    streams = layout.tokens_by_stream()
    padding = streams.pop(Role.PADDING.value, 0)
    if config.vla is not None:
        vision = config.vla.vision
        canvas, num_frames, stride = (vision.image_size, vision.image_size), 1, 1
        side = vision.image_size // vision.patch_size
        latents = tokens = (config.vla.num_images, side, side)
    elif config.gpt is not None:
        size, views = config.gpt.image_size, config.gpt.num_views
        canvas, num_frames, stride = (views * size, size), config.layout.num_blocks, 1
        side = size // config.gpt.patch_size
        latents = tokens = (num_frames, views * side, side)
    elif config.backbone is not None:
        clip = config.clip
        canvas, num_frames, stride = (clip.height, clip.width), clip.num_frames, 1
        latents, tokens = latent_grid(config), token_grid(config)
    else:  # pixels, which the small model reads in patches and an inverse-dynamics model as they are
        geometry = derive_geometry(config)
        canvas, num_frames, stride = config.data.canvas, geometry.num_frames, config.data.frame_stride
        latents = tokens = (geometry.num_latent_frames, *geometry.grid)
    return Sample(
        views=tuple(name for name, *_ in config.data.views),
        canvas=canvas,
        num_frames=num_frames,
        frame_stride=stride,
        latent_grid=latents,
        token_grid=tokens,
        tokens=streams,
        padding=padding,
        seconds=(config.layout.actions_per_block if config.vla is not None else num_frames - 1) / rate.value,
        has_actions=config.layout.formulation != "video",
        rate=rate,
    )


def default_rate(config: RunConfig) -> Assumption:
    """Returns the frame rate of a sample's frames where none is given."""
    if config.vla is not None:
        return _ACTION_RATE
    if config.gpt is not None:
        return _STEP_RATE
    return _WAN_RATE if config.layout.formulation == "video" else _ROBOT_RATE
