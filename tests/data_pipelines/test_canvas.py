from typing import Any

import numpy as np
import pytest
from skimage.transform import downscale_local_mean

from data_pipelines.canvas import compose_canvas, resize_frames
from wamjax.config.schema import DataConfig


def test_views_lie_where_the_config_places_them() -> None:
    rng = np.random.default_rng(0)
    views = {key: rng.integers(0, 256, (3, 4, 6, 3), dtype=np.uint8) for key in ("a", "b")}
    config = DataConfig(canvas=(8, 16), views=(("a", 0, 10, 4, 6), ("b", 4, 2, 4, 6)))
    canvas, mask = compose_canvas(views, config)
    expected = np.zeros((3, 8, 16, 3), np.uint8)
    for frame in range(3):
        for row in range(4):
            for column in range(6):
                expected[frame, row, 10 + column] = views["a"][frame, row, column]
                expected[frame, 4 + row, 2 + column] = views["b"][frame, row, column]
    np.testing.assert_array_equal(canvas, expected)
    np.testing.assert_array_equal(mask, [True, True])


def test_missing_view_is_black_and_masked() -> None:
    views = {"b": np.full((2, 4, 4, 3), 200, np.uint8)}
    config = DataConfig(canvas=(4, 8), views=(("a", 0, 0, 4, 4), ("b", 0, 4, 4, 4)))
    canvas, mask = compose_canvas(views, config)
    assert (canvas[:, :, :4] == 0).all()
    assert (canvas[:, :, 4:] == 200).all()
    np.testing.assert_array_equal(mask, [False, True])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 32), (64, 48)])
def test_resizing_keeps_a_smooth_picture_where_it_is(height: int, width: int) -> None:
    def picture(rows: int, columns: int) -> Any:  # a ramp by relative position of the pixel centres
        y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
        return np.stack(np.broadcast_arrays(200 * y[:, None], 200 * x[None, :], 90.0), axis=-1)

    frames = np.stack([picture(32, 32)] * 2).round().astype(np.uint8)
    resized = resize_frames(frames, height, width)
    assert resized.shape == (2, height, width, 3)
    inner = (slice(2, -2), slice(2, -2))  # at the border there is nothing beyond to average with
    np.testing.assert_allclose(resized[0][inner], picture(height, width)[inner], atol=2)


def test_shrinking_averages_instead_of_dropping_pixels() -> None:
    checkerboard = np.indices((64, 64)).sum(0) % 2 * 255
    frames = np.repeat(checkerboard[None, :, :, None], 3, axis=-1).astype(np.uint8)
    averaged = downscale_local_mean(checkerboard, (8, 8))
    np.testing.assert_allclose(resize_frames(frames, 8, 8)[0, 1:-1, 1:-1, 0], averaged[1:-1, 1:-1], atol=3)
