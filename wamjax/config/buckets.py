"""Sizes that the windows of one run may have: the section ``config.data.buckets``."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """One size of windows; each is compiled for itself.

    Attributes:
      name: Name in tables, logs and of the folder of its latents.
      canvas: Height and width in pixels; the views of ``config.data.views`` are scaled to it.
      num_frames: Frames of a window, the first one included (of a backbone: pixel frames of its clip).
    """

    name: str
    canvas: tuple[int, int]
    num_frames: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketsConfig:
    """The buckets of a run (docs/design/buckets.md).

    Attributes:
      sets: The buckets; none: all windows have the size of ``config.data.canvas`` and ``config.layout``.
      batch: ``tokens``: the bucket with most tokens gets ``config.train.global_batch_size`` samples, the others as many
        more as make about as many tokens; ``samples``: all get that many samples.
      batch_multiple: Batches that ``tokens`` enlarges are multiples of this: of the ways devices and
        ``config.train.accumulate`` split a batch.
      upsample: Whether a window whose camera has fewer pixels than every bucket goes to the smallest one of its aspect;
        else it is left out, and counted.
    """

    sets: tuple[BucketConfig, ...] = ()
    batch: Literal["tokens", "samples"] = "tokens"
    batch_multiple: int = 1
    upsample: bool = False
