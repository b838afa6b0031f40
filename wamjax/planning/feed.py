"""What a step reads: frames, bytes and decoding cores per host, cached latents instead, and storage.

Owns the arithmetic from a configuration and a step time to the load on hosts and storage. Reads no data: the rates of
source videos and of decoding are assumptions, which a caller who knows better replaces.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from wamjax.config.clip import latent_grid
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.planning.assumption import Assumption

_CHANNELS = 3  # uint8 RGB


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedAssumptions:
    """What is taken for granted of videos, decoders and hosts.

    Attributes:
      video_hz: Frames per second of the clips of video pretraining.
      robot_hz: Frames per second of the windows of a backbone that also predicts actions.
      stored_video_hz: Frames per second at which pretraining videos are stored; all of them are decoded.
      stored_robot_hz: The same of robot datasets.
      encoded_bits_per_pixel: Stored size of compressed video.
      decoded_pixels_per_core_s: Pixels per second that one core decodes and converts to RGB.
      host_cores: Cores of one host that may decode.
      cached_bytes_per_value: Bytes of one cached latent or embedding value.
    """

    video_hz: Assumption
    robot_hz: Assumption
    stored_video_hz: Assumption
    stored_robot_hz: Assumption
    encoded_bits_per_pixel: Assumption
    decoded_pixels_per_core_s: Assumption
    host_cores: Assumption
    cached_bytes_per_value: Assumption

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name).value
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"feed assumption {field.name}={value:g}; expected a positive number")


FEED_ASSUMPTIONS = FeedAssumptions(
    video_hz=Assumption(
        name="frames of a video clip", value=16.0, unit="Hz", source="Wan 2.1, sample_fps of wan/configs"
    ),
    robot_hz=Assumption(
        name="frames of a robot window", value=5.0, unit="Hz", source="DreamZero (arXiv 2602.15922): 33 frames at 5 Hz"
    ),
    stored_video_hz=Assumption(
        name="frames of stored video", value=30.0, unit="Hz", source="a guess: common rate of web video"
    ),
    stored_robot_hz=Assumption(
        name="frames of a stored robot dataset", value=15.0, unit="Hz", source="DROID (arXiv 2403.12945)"
    ),
    encoded_bits_per_pixel=Assumption(
        name="stored video", value=0.1, unit="bit/pixel", source="a guess: H.264 of moderate quality"
    ),
    decoded_pixels_per_core_s=Assumption(
        name="decoding on one core",
        value=200e6,
        unit="pixel/s",
        source="measured: H.264 of 480 x 832 with PyAV, RGB included, AMD EPYC (Zen 3); benchmarks/video_decode.py",
    ),
    host_cores=Assumption(
        name="cores of a host that may decode",
        value=90.0,
        unit="",
        source="half of the 180 virtual CPUs of a v6e host (ct6e-standard-8t, Google Cloud TPU v6e page)",
    ),
    cached_bytes_per_value=Assumption(
        name="cached latents and embeddings", value=2.0, unit="B/value", source="bfloat16"
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """Load of the input on each host. Per host means: all hosts share the frames of a step equally.

    Attributes:
      num_frames: Frames of one sample, each a canvas of all views.
      frame_height: Rows of one frame.
      frame_width: Columns of one frame.
      frames_per_step: Frames of one global batch.
      frames_per_s: Frames per second that one host must deliver.
      decoded_frames_per_s: Frames per second that one host must decode to deliver them.
      pixel_bytes_per_s: Bytes of delivered frames per second and host (uint8 RGB).
      encoded_bytes_per_s: Bytes of compressed video that one host reads per second.
      decode_cores: Cores that one host needs for decoding.
      decode_step_s: Time of a step if decoding on all cores of the host were all it waits for.
      latent_bytes_per_sample: Bytes of one sample's cached latents and embeddings; None for a model on pixels.
      latent_bytes_per_s: Bytes of them that one host reads per second instead of video.
      encoded_storage_bytes: Compressed video of the whole run, if no sample is seen twice.
      latent_storage_bytes: Cached latents of the same.
      assumptions: What was taken for granted.
    """

    num_frames: int
    frame_height: int
    frame_width: int
    frames_per_step: int
    frames_per_s: float
    decoded_frames_per_s: float
    pixel_bytes_per_s: float
    encoded_bytes_per_s: float
    decode_cores: float
    decode_step_s: float
    latent_bytes_per_sample: int | None
    latent_bytes_per_s: float | None
    encoded_storage_bytes: int
    latent_storage_bytes: int | None
    assumptions: FeedAssumptions

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain JSON data."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Clip:
    """Frames of one sample, and how many stored frames are decoded for each."""

    num_frames: int
    height: int
    width: int
    stored_per_frame: float


def plan_feed(
    config: RunConfig,
    *,
    step_s: float,
    num_hosts: int,
    num_steps: int | None = None,
    clip_hz: float | None = None,
    assumptions: FeedAssumptions | None = None,
) -> Feed:
    """Returns what the input pipeline must deliver so that steps of ``step_s`` seconds never wait.

    Args:
      config: The run.
      step_s: Time of one step.
      num_hosts: Hosts that read.
      num_steps: Steps of the run; None for ``config.train.num_steps``.
      clip_hz: Frames per second of a backbone's clips; None for the assumption. The small model's frames are
        ``data.frame_stride`` stored frames apart at any rate.
      assumptions: None for ``FEED_ASSUMPTIONS``.

    Raises:
      ConfigError: The step time or the number of hosts is not positive.
    """
    if not (math.isfinite(step_s) and step_s > 0 and num_hosts > 0):
        raise ConfigError(f"the input is planned for steps of {step_s:g} s on {num_hosts} hosts; expected both above 0")
    taken = FEED_ASSUMPTIONS if assumptions is None else assumptions
    steps = config.train.num_steps if num_steps is None else num_steps
    batch, clip = config.train.global_batch_size, _clip(config, taken, clip_hz)
    pixels = clip.height * clip.width
    stored_frames = clip.num_frames * clip.stored_per_frame
    encoded_bytes = stored_frames * pixels * taken.encoded_bits_per_pixel.value / 8.0
    core_s = stored_frames * pixels / taken.decoded_pixels_per_core_s.value
    samples_per_s = batch / num_hosts / step_s
    latents = _cached_values(config)
    latent_bytes = None if latents is None else round(latents * taken.cached_bytes_per_value.value)
    return Feed(
        num_frames=clip.num_frames,
        frame_height=clip.height,
        frame_width=clip.width,
        frames_per_step=batch * clip.num_frames,
        frames_per_s=samples_per_s * clip.num_frames,
        decoded_frames_per_s=samples_per_s * stored_frames,
        pixel_bytes_per_s=samples_per_s * clip.num_frames * pixels * _CHANNELS,
        encoded_bytes_per_s=samples_per_s * encoded_bytes,
        decode_cores=samples_per_s * core_s,
        decode_step_s=batch / num_hosts * core_s / taken.host_cores.value,
        latent_bytes_per_sample=latent_bytes,
        latent_bytes_per_s=None if latent_bytes is None else samples_per_s * latent_bytes,
        encoded_storage_bytes=round(steps * batch * encoded_bytes),
        latent_storage_bytes=None if latent_bytes is None else steps * batch * latent_bytes,
        assumptions=taken,
    )


def _clip(config: RunConfig, taken: FeedAssumptions, clip_hz: float | None) -> _Clip:
    """Returns what one sample shows."""
    if config.vla is not None:
        size = config.vla.vision.image_size
        return _Clip(num_frames=config.vla.num_images, height=size, width=size, stored_per_frame=1.0)
    if config.gpt is not None:
        size, views = config.gpt.image_size, config.gpt.num_views
        return _Clip(num_frames=config.layout.num_blocks, height=views * size, width=size, stored_per_frame=1.0)
    if config.backbone is None:
        height, width = config.data.canvas
        frames, stride = derive_geometry(config).num_frames, config.data.frame_stride
        return _Clip(num_frames=frames, height=height, width=width, stored_per_frame=float(stride))
    has_actions = config.layout.formulation != "video"
    usual, stored = (taken.robot_hz, taken.stored_robot_hz) if has_actions else (taken.video_hz, taken.stored_video_hz)
    hz = usual.value if clip_hz is None else clip_hz
    return _Clip(
        num_frames=config.clip.num_frames,
        height=config.clip.height,
        width=config.clip.width,
        stored_per_frame=max(1.0, stored.value / hz),
    )


def _cached_values(config: RunConfig) -> int | None:
    """Returns the values of one sample that encoders would have computed beforehand; None for a model on pixels.

    Latents with all channels the backbone reads (a condition and its mask included), the prompt's embedding with its
    padding, and image tokens.
    """
    backbone, clip, gpt = config.backbone, config.clip, config.gpt
    if gpt is not None:  # pictures are read beside them, for the loss
        return config.layout.num_blocks * gpt.num_views * (gpt.num_patches + 1) * gpt.image_width + gpt.text_width
    if backbone is None:
        return None
    latents = backbone.in_channels * math.prod(latent_grid(config))
    image = 0 if backbone.image_width is None else clip.image_tokens * backbone.image_width
    return latents + clip.text_tokens * backbone.text_width + image
