"""Camera views on one canvas, as ``DataConfig.views`` declares it. Used by the pipeline and by closed-loop rollouts.

Owns resizing and placement. A view is stretched to its rectangle; what no view covers, and a missing view, is black.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from wamjax.config.schema import DataConfig


def compose_canvas(
    views: Mapping[str, npt.NDArray[np.uint8]], config: DataConfig
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Lays views on the canvas in the order of ``config.views`` (a later one covers an earlier one).

    Args:
      views: uint8 ``[f h w 3]`` by camera feature, at least one; all have the same f. A camera of ``config.views``
        that is not here is missing.
      config: Gives ``canvas`` and ``views``.

    Returns:
      The canvas, uint8 ``[f H W 3]``, and ``view_mask``, bool ``[v]``: False where a camera is missing.
    """
    lengths = {len(frames) for frames in views.values()}
    assert len(lengths) == 1, {key: frames.shape for key, frames in views.items()}
    canvas = np.zeros((lengths.pop(), *config.canvas, 3), np.uint8)
    for key, top, left, height, width in config.views:
        if key in views:
            canvas[:, top : top + height, left : left + width] = resize_frames(views[key], height, width)
    return canvas, np.array([key in views for key, *_ in config.views], np.bool_)


def resize_frames(frames: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Returns ``[f height width 3]``: frames as they are where the size agrees, else resampled.

    Pillow's bilinear filter widens its support when it shrinks (a triangle over the source pixels of one target
    pixel), so small canvases do not alias.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)) for frame in frames])
