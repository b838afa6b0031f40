"""What a step reads: frames, bytes and decoding cores per host, cached latents instead, storage, hours of video.

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
from wamjax.planning.assumption import Assumption, to_json

_HOUR_S = 3600.0
_CHANNELS = 3  # uint8 RGB


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedAssumptions:
    """What is taken for granted of videos, decoders and hosts.

    Attributes:
      video_hz: Frames per second of the clips of video pretraining.
      robot_hz: Frames per second of the windows of a backbone that also predicts actions.
      dataset_hz: Steps per second of a robot dataset; the frames of the small model are ``data.frame_stride`` apart.
      source_video_hz: Frames per second at which pretraining videos are stored; all of them are decoded.
      encoded_bits_per_pixel: Stored size of compressed video.
      decoded_pixels_per_core_s: Pixels per second that one core decodes and converts to RGB.
      host_cores: Cores of one host that may decode.
      cached_bytes_per_value: Bytes of one cached latent or embedding value.
    """

    video_hz: Assumption = Assumption(value=16.0, unit="Hz", source="Wan 2.1, sample_fps of wan/configs")
    robot_hz: Assumption = Assumption(value=5.0, unit="Hz", source="DreamZero (arXiv 2602.15922): 33 frames at 5 Hz")
    dataset_hz: Assumption = Assumption(value=15.0, unit="Hz", source="DROID (arXiv 2403.12945) records at 15 Hz")
    source_video_hz: Assumption = Assumption(value=30.0, unit="Hz", source="a guess: common rate of web video")
    encoded_bits_per_pixel: Assumption = Assumption(
        value=0.1, unit="bit", source="a guess: H.264 of moderate quality; AV1 takes about half"
    )
    decoded_pixels_per_core_s: Assumption = Assumption(
        value=60e6, unit="pixel/s", source="a guess for H.264 through PyAV, RGB conversion included"
    )
    host_cores: Assumption = Assumption(
        value=90.0, source="half of the 180 virtual CPUs of a v6e host (ct6e-standard-8t, Google Cloud TPU v6e page)"
    )
    cached_bytes_per_value: Assumption = Assumption(value=2.0, unit="B", source="bfloat16")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name).value
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"feed assumption {field.name}={value:g}; expected a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """Load of the input on each host. Per host means: all hosts share the frames of a step equally.

    Attributes:
      num_frames: Frames of one sample, each a canvas of all views.
      frame_height: Rows of one frame.
      frame_width: Columns of one frame.
      frame_hz: Frames per second of a clip.
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
      video_hours_per_step: Hours of video in one global batch; all views of a canvas count once.
      robot_hours_per_step: The same of robot data; 0 where there are no actions.
      assumptions: What was taken for granted.
    """

    num_frames: int
    frame_height: int
    frame_width: int
    frame_hz: float
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
    video_hours_per_step: float
    robot_hours_per_step: float
    assumptions: FeedAssumptions

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain JSON data."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "assumptions": to_json(self.assumptions)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Clip:
    """Frames of one sample, and how many stored frames stand behind each."""

    num_frames: int
    height: int
    width: int
    hz: float
    stored_hz: float
    has_actions: bool


def plan_feed(
    config: RunConfig,
    *,
    step_s: float,
    num_hosts: int,
    num_steps: int | None = None,
    assumptions: FeedAssumptions | None = None,
) -> Feed:
    """Returns what the input pipeline must deliver so that steps of ``step_s`` seconds never wait.

    Args:
      config: The run.
      step_s: Time of one step.
      num_hosts: Hosts that read.
      num_steps: Steps of the run; None for ``config.train.num_steps``.
      assumptions: None for the defaults.

    Raises:
      ConfigError: The step time or the number of hosts is not positive.
    """
    if not (math.isfinite(step_s) and step_s > 0 and num_hosts > 0):
        raise ConfigError(f"the input is planned for steps of {step_s:g} s on {num_hosts} hosts; expected both above 0")
    taken = FeedAssumptions() if assumptions is None else assumptions
    steps = config.train.num_steps if num_steps is None else num_steps
    batch, clip = config.train.global_batch_size, _clip(config, taken)
    pixels = clip.height * clip.width
    stored_frames = clip.num_frames * max(1.0, clip.stored_hz / clip.hz)
    encoded_bytes = stored_frames * pixels * taken.encoded_bits_per_pixel.value / 8.0
    core_s = stored_frames * pixels / taken.decoded_pixels_per_core_s.value
    samples_per_s = batch / num_hosts / step_s
    latents = _cached_values(config)
    latent_bytes = None if latents is None else round(latents * taken.cached_bytes_per_value.value)
    hours = batch * clip.num_frames / clip.hz / _HOUR_S
    return Feed(
        num_frames=clip.num_frames,
        frame_height=clip.height,
        frame_width=clip.width,
        frame_hz=clip.hz,
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
        video_hours_per_step=hours,
        robot_hours_per_step=hours if clip.has_actions else 0.0,
        assumptions=taken,
    )


def _clip(config: RunConfig, taken: FeedAssumptions) -> _Clip:
    """Returns what one sample shows."""
    if config.backbone is None:
        height, width = config.data.canvas
        hz = taken.dataset_hz.value / config.data.frame_stride
        frames = derive_geometry(config).num_frames
        return _Clip(
            num_frames=frames, height=height, width=width, hz=hz, stored_hz=taken.dataset_hz.value, has_actions=True
        )
    has_actions = config.actions.modules != "none"
    hz, stored_hz = (taken.robot_hz, taken.dataset_hz) if has_actions else (taken.video_hz, taken.source_video_hz)
    size = config.clip
    return _Clip(
        num_frames=size.num_frames,
        height=size.height,
        width=size.width,
        hz=hz.value,
        stored_hz=stored_hz.value,
        has_actions=has_actions,
    )


def _cached_values(config: RunConfig) -> int | None:
    """Returns the values of one sample that encoders would have computed beforehand; None for a model on pixels.

    Latents with all channels the backbone reads (a condition and its mask included), the prompt's embedding with its
    padding, and image tokens.
    """
    backbone, clip = config.backbone, config.clip
    if backbone is None:
        return None
    latents = backbone.in_channels * math.prod(latent_grid(config))
    image = 0 if backbone.image_width is None else clip.image_tokens * backbone.image_width
    return latents + clip.text_tokens * backbone.text_width + image
