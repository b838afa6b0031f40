"""Random crops and colours of a window, the same for all its frames and views (``config.data.augmentation``).

Owns the transform of one sample. Where its randomness comes from is ``stream``'s: a generator that depends on a seed
and the sample's place in the global stream alone, so that any number of hosts and any resume draw the same.

A view is cropped within its rectangle on the canvas and resized back, so that one implementation serves all datasets
and mixtures; cropping the camera's own frames would be a little sharper. All colour changes are one affine map of each
pixel, clipped at its end (torchvision clips after each change). Hue is turned in YIQ, at constant luma (torchvision: in
HSV).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from data_pipelines.canvas import resize_frames
from wamjax.batch import WamBatch
from wamjax.config.schema import DataConfig

# From RGB to luma and two colour differences. Source: NTSC, as in skimage.color.rgb2yiq.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.59590059, -0.27455667, -0.32134392], [0.21153661, -0.52273617, 0.31119955]])
_LUMA = _YIQ[0]


class Augmentation:
    """Changes the pixels of samples; frames, masks and actions stay as they are."""

    def __init__(self, config: DataConfig) -> None:
        """Takes strengths and views from ``config``."""
        self._strengths, self._views = config.augmentation, config.views

    def __call__(self, sample: WamBatch, rng: np.random.Generator) -> WamBatch:
        """Returns ``sample``, without batch dim, with its video changed as ``rng`` says."""
        strengths = self._strengths
        # All of them are drawn, whatever is on: switching one on leaves the others as they were.
        corner = rng.uniform(size=2)
        brightness, contrast, saturation, hue = rng.uniform(-1.0, 1.0, 4)
        views = [view for view, present in zip(self._views, sample.view_mask, strict=True) if present]
        parts = [sample.video[:, top : top + h, left : left + w] for _, top, left, h, w in views]
        if strengths.crop < 1:
            parts = [_crop(part, strengths.crop, corner) for part in parts]
        if strengths.changes_colour:
            mean = np.mean([part.mean(axis=(0, 1, 2)) for part in parts], axis=0)
            matrix, offset = colour_map(
                brightness=1 + strengths.brightness * brightness,
                contrast=1 + strengths.contrast * contrast,
                saturation=1 + strengths.saturation * saturation,
                hue=strengths.hue * hue,
                mean=mean,
            )
            parts = [_recolour(part, matrix, offset) for part in parts]
        video = sample.video.copy()
        for (_, top, left, height, width), part in zip(views, parts, strict=True):
            video[:, top : top + height, left : left + width] = part
        return dataclasses.replace(sample, video=video)


def colour_map(
    *, brightness: float, contrast: float, saturation: float, hue: float, mean: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Returns the matrix ``[3 3]`` and offset ``[3]`` of ``rgb -> matrix @ rgb + offset``, in pixel levels.

    Args:
      brightness: Factor on all channels.
      contrast: Factor on the distance to the window's mean luma.
      saturation: Factor on the distance to a pixel's own luma.
      hue: Turn of the colour circle, in turns.
      mean: Mean colour of the window.
    """
    to_grey = np.tile(_LUMA, (3, 1))
    angle = 2 * np.pi * hue
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    colour = np.linalg.inv(_YIQ) @ turn @ _YIQ @ (saturation * np.eye(3) + (1 - saturation) * to_grey)
    matrix = brightness * contrast * colour
    # Greys are left alone by ``colour``.
    offset = np.full(3, brightness * (1 - contrast) * float(_LUMA @ mean))
    return matrix.astype(np.float32), offset.astype(np.float32)


def _crop(frames: npt.NDArray[np.uint8], share: float, corner: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Returns a part of the frames with ``share`` of their sides, resized to their size."""
    height, width = frames.shape[1:3]
    rows, columns = max(1, round(share * height)), max(1, round(share * width))
    top, left = round(corner[0] * (height - rows)), round(corner[1] * (width - columns))
    return resize_frames(frames[:, top : top + rows, left : left + columns], height, width)


def _recolour(
    frames: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float32], offset: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    changed = frames.astype(np.float32) @ matrix.T + offset
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)
