"""The sizes of a run's windows: one configuration for each bucket of ``config.data.buckets``.

Owns what of a configuration follows from a bucket: canvas, views, blocks, clip and batch. Which window goes into which
bucket is the data pipeline's.
"""

from __future__ import annotations

import dataclasses

from wamjax.config.buckets import BucketConfig
from wamjax.config.schema import RunConfig
from wamjax.config.sources import ViewPlacement
from wamjax.errors import ConfigError
from wamjax.layout.formulations import build_layout
from wamjax.layout.segments import Role


def split_buckets(config: RunConfig) -> dict[str, RunConfig]:
    """Returns the configuration of each bucket by name, its batch in ``train.global_batch_size``; empty without any.

    Raises:
      ConfigError: A size does not fit the model, the layout or the views.
    """
    buckets = config.data.buckets
    if not buckets.sets:
        return {}
    is_one_canvas = len({bucket.canvas for bucket in buckets.sets}) == 1
    if config.backbone is None and config.data.video_statistics != "none" and not is_one_canvas:
        raise ConfigError(
            f"config.data.video_statistics={config.data.video_statistics} is a mean canvas, and config.data.buckets "
            "has several canvases: set it to none"
        )
    configs = {bucket.name: at_bucket(config, bucket) for bucket in buckets.sets}
    if buckets.batch == "samples":
        return configs
    tokens = {name: count_tokens(own) for name, own in configs.items()}
    base = config.train.global_batch_size
    return {
        name: dataclasses.replace(
            own,
            train=dataclasses.replace(
                own.train, global_batch_size=_enlarge(base, max(tokens.values()), tokens[name], buckets.batch_multiple)
            ),
        )
        for name, own in configs.items()
    }


def at_bucket(config: RunConfig, bucket: BucketConfig) -> RunConfig:
    """Returns ``config`` with windows of the bucket's size alone; the batch stays as it is.

    Raises:
      ConfigError: ``num_frames`` are no whole blocks, or a view does not scale to whole pixels.
    """
    data, layout = config.data, config.layout
    views = tuple(_scale_view(view, data.canvas, bucket) for view in data.views)
    sources = tuple(
        source
        if source.views is None
        else dataclasses.replace(source, views=tuple(_scale_view(view, data.canvas, bucket) for view in source.views))
        for source in data.mixture.sources
    )
    mixture = dataclasses.replace(data.mixture, sources=sources)
    replaced = dataclasses.replace(data, canvas=bucket.canvas, views=views, mixture=mixture)
    own = dataclasses.replace(config, data=replaced)
    if config.backbone is not None:
        height, width = bucket.canvas
        clip = dataclasses.replace(config.clip, num_frames=bucket.num_frames, height=height, width=width)
        own = dataclasses.replace(own, clip=clip)
        if layout.formulation == "video" or bucket.num_frames == config.clip.num_frames:
            return own
    if layout.formulation != "joint":
        raise ConfigError(
            f"bucket {bucket.name!r} of config.data.buckets has num_frames={bucket.num_frames}, and windows of "
            f"config.layout.formulation={layout.formulation} are all of config.clip.num_frames={config.clip.num_frames}"
        )
    step = layout.frames_per_block * (config.clip.stride[0] if config.backbone is not None else 1)
    if (bucket.num_frames - 1) % step:
        raise ConfigError(
            f"bucket {bucket.name!r} of config.data.buckets has num_frames={bucket.num_frames}; expected {step} n + 1: "
            "a first frame and whole blocks (config.layout.frames_per_block)"
        )
    return dataclasses.replace(own, layout=dataclasses.replace(layout, num_blocks=(bucket.num_frames - 1) // step))


def shortest_windows(config: RunConfig) -> RunConfig:
    """Returns ``config`` on its own canvas with the frames of its shortest bucket, and no buckets; else itself.

    These are the windows that are listed, and that an index holds: what lies between the shortest and a longer bucket
    is decided window by window, and so is how much of a window is idle.
    """
    buckets = config.data.buckets
    if not buckets.sets:
        return config
    shortest = min(bucket.num_frames for bucket in buckets.sets)
    own = at_bucket(config, BucketConfig(name="shortest", canvas=config.data.canvas, num_frames=shortest))
    filters = dataclasses.replace(own.data.filters, max_idle=1.0, idle_motion=0.0)
    data = dataclasses.replace(own.data, filters=filters, buckets=dataclasses.replace(buckets, sets=()))
    return dataclasses.replace(own, data=data)


def count_tokens(config: RunConfig) -> int:
    """Returns the tokens of one packed sample, padding left out."""
    segments = build_layout(config).segments
    return sum(segment.num_tokens for segment in segments if segment.role is not Role.PADDING)


def _enlarge(base: int, most: int, tokens: int, multiple: int) -> int:
    """Returns the largest multiple that makes no more than ``base * most`` tokens, and no less than ``base``."""
    return max(base, base * most // tokens // multiple * multiple)


def _scale_view(view: ViewPlacement, canvas: tuple[int, int], bucket: BucketConfig) -> ViewPlacement:
    """Returns a view's place on the bucket's canvas."""
    key, *place = view
    scaled = []
    for size, side in zip(place, (0, 1, 0, 1), strict=True):
        pixels, rest = divmod(size * bucket.canvas[side], canvas[side])
        if rest:
            raise ConfigError(
                f"view {key!r} at {tuple(place)} on config.data.canvas={canvas} is no whole number of pixels on the "
                f"canvas {bucket.canvas} of bucket {bucket.name!r} (config.data.buckets)"
            )
        scaled.append(pixels)
    return (key, scaled[0], scaled[1], scaled[2], scaled[3])
