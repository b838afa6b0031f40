"""Images as CLIP's encoder takes them: square, normalised.

Source: ``CLIPImageProcessor`` of transformers, which diffusers' Wan pipelines use. The original Wan code differs: it
squeezes the whole image into the square with torch's bicubic filter, without antialiasing or crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

# Source: OpenAI's CLIP, clip/clip.py, ``_transform``: of the images it was trained on, RGB, in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess_images(
    images: Sequence[Image.Image | npt.NDArray[np.uint8]], size: int = 224
) -> npt.NDArray[np.float32]:
    """Resizes the shorter side to ``size`` (bicubic), crops the centre, scales to [0, 1] and normalises.

    Args:
      images: Pillow images of any mode (what is transparent becomes white), or uint8 RGB ``[H W 3]``.
      size: Height and width of the result in pixels.

    Returns:
      float32 ``[b H W 3]`` with H = W = ``size``.
    """
    return np.stack([_preprocess(_to_rgb(image), size) for image in images])


def _preprocess(image: Image.Image, size: int) -> npt.NDArray[np.float32]:
    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    pixels = pixels[top : top + size, left : left + size]
    # The product is taken in fp64 and rounded once, as the reference does: fp32 differs in the last bit.
    unit = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    return (unit - np.array(MEAN, np.float32)) / np.array(STD, np.float32)


def _to_rgb(image: Image.Image | npt.NDArray[np.uint8]) -> Image.Image:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
