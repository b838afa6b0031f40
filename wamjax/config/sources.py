"""The datasets of a run that reads several, and what of a dataset is left out: sections of ``config.data``."""

from __future__ import annotations

import dataclasses
from typing import Literal

# A camera view on the canvas: (feature key of the dataset, top, left, height, width), in canvas pixels.
ViewPlacement = tuple[str, int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which sound episodes and windows are not read, decided before the stream starts.

    Attributes:
      min_steps: Episodes with fewer steps are left out.
      success_key: Feature that is above 0 at some step of a successful episode; others are left out. Empty: all stay.
      needs_prompt: Whether episodes without an instruction or caption are left out.
      idle_motion: A step is idle where no dim of the state moved by more than this since the step before, in the
        feature's own unit.
      max_idle: Windows in which a larger share of the steps is idle are left out; 1 keeps all.
    """

    min_steps: int = 0
    success_key: str = ""
    needs_prompt: bool = False
    idle_motion: float = 0.0
    max_idle: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """How training frames are changed at random, alike for all frames and views of a window; by default not at all.

    Attributes:
      crop: Sides of the part that is kept of every view, as a share of its own; it lies anywhere and is resized back.
        1: no crop. openpi and GR00T crop to 0.95.
      brightness: Largest change of brightness, as a share: 0.3 draws a factor between 0.7 and 1.3. GR00T has 0.3.
      contrast: As ``brightness``, of the distance to the mean luma. GR00T has 0.4.
      saturation: As ``brightness``, of the distance to grey. GR00T has 0.5.
      hue: Largest turn of the colours, in turns of the colour circle. GR00T has 0.08.
      seed: Seed of the draws.
    """

    crop: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    seed: int = 0

    @property
    def changes_colour(self) -> bool:
        """Whether colours are changed."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    @property
    def is_on(self) -> bool:
        """Whether anything is changed."""
        return self.crop < 1 or self.changes_colour


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureSource:
    """One dataset of a mixture. What is None is as in ``config.data``; all else there holds for every source.

    Attributes:
      name: Name in tables and of its folder in the work directory.
      path: As ``DataConfig.path``.
      weight: Its share of the samples, relative to the others (``MixtureConfig.weighting``).
      index: As ``DataConfig.index``.
      latents: As ``DataConfig.latents``.
      embodiment: As ``DataConfig.embodiment``.
      views: As ``DataConfig.views``.
      state_key: As ``DataConfig.state_key``.
      action_key: As ``DataConfig.action_key``.
      frame_stride: As ``DataConfig.frame_stride``.
      filters: As ``DataConfig.filters``.
    """

    name: str
    path: str
    weight: float = 1.0
    index: str = ""
    latents: str = ""
    embodiment: str | None = None
    views: tuple[ViewPlacement, ...] | None = None
    state_key: str | None = None
    action_key: str | None = None
    frame_stride: int | None = None
    filters: FilterConfig | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureStage:
    """Weights from one training step on.

    Attributes:
      step: First training step with these weights.
      weights: In the order of the sources; 0 leaves one out.
    """

    step: int
    weights: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Several datasets read as one stream.

    Attributes:
      sources: The datasets; none: the run reads ``config.data.path`` alone.
      weighting: ``fixed``: shares are proportional to the weights; ``hours``: to weight x hours^(1 / temperature),
        hours being those of the source's episodes that are read.
      temperature: 1 follows the hours, larger values come closer to the weights alone.
      stages: Other weights from some step on, in the order of their steps (pretraining to tuning).
    """

    sources: tuple[MixtureSource, ...] = ()
    weighting: Literal["fixed", "hours"] = "fixed"
    temperature: float = 1.0
    stages: tuple[MixtureStage, ...] = ()
