"""CLIP's image preprocessing against transformers' image processor, and by hand."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from data_pipelines.image_preprocessing import MEAN, STD, preprocess_images

SHAPES = [(97, 333), (333, 97), (224, 224), (640, 480), (31, 31), (225, 224), (57, 113)]
GOLDEN = (
    (-0.3470183, 0.0188195, 0.3399488),
    (0.3829031, -0.2513203, -0.2999543),
    (-0.8871601, 0.7091769, 1.3922336),
)


def _image(height, width, seed=0, channels=3):
    """A smooth picture with noise on it, uint8 [H W channels]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 6, height)[:, None, None], np.linspace(0, 9, width)[None, :, None]
    smooth = np.sin(rows + np.arange(channels)) * np.cos(columns)
    return np.clip(127 + 90 * smooth + rng.normal(0, 20, (height, width, channels)), 0, 255).astype(np.uint8)


def test_preprocess_images_golden_numbers():
    # CLIPImageProcessorPil of transformers 5.23 with Pillow 13.0 on the same images; crop of 8.
    (got,) = preprocess_images([_image(12, 20)], size=8)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[[0, 3, 7], [0, 5, 7]], GOLDEN, atol=1e-6)


def test_preprocess_images_square_of_one_colour():
    (got,) = preprocess_images([np.full((50, 80, 3), (255, 0, 51), np.uint8)], size=16)
    expected = (np.array([1.0, 0.0, 0.2]) - MEAN) / np.array(STD)
    np.testing.assert_allclose(got, np.broadcast_to(expected, (16, 16, 3)), atol=1e-6)


def test_preprocess_images_crops_the_centre():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    (got,) = preprocess_images([image], size=10)
    np.testing.assert_allclose(got, np.broadcast_to((1.0 - np.array(MEAN)) / STD, got.shape), atol=1e-6)


def test_preprocess_images_transparent_becomes_white():
    image = Image.fromarray(_image(20, 20, channels=4) // 255 * 255)
    white = np.asarray(image)[..., 3] == 0
    assert white.any()
    (got,) = preprocess_images([image], size=20)
    np.testing.assert_allclose(got[white], np.broadcast_to((1.0 - np.array(MEAN)) / STD, got[white].shape), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the parity extra (transformers)")
def test_preprocess_images_equals_transformers():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil()
    images = [Image.fromarray(_image(*shape, seed=i)) for i, shape in enumerate(SHAPES)]
    images += [images[0].convert("L"), Image.fromarray(_image(80, 60, channels=4)), images[3].convert("P")]
    for image in images:
        expected = processor(images=image, return_tensors="np")["pixel_values"][0]
        (got,) = preprocess_images([image])
        np.testing.assert_array_equal(got.transpose(2, 0, 1), expected)
