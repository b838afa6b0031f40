"""Pictures and films: read back, they show what was put in."""

from __future__ import annotations

import av
import numpy as np
from PIL import Image

from launch.film import Comparison, write_film, write_strip


def comparison(frames: int, shade: int = 200) -> Comparison:
    # Odd sizes, which the film must even out; wide enough to be drawn once in a film and in a strip.
    true = np.full((frames, 33, 201, 3), shade, np.uint8)
    predicted = np.full_like(true, 60)
    given = np.arange(frames) == 0
    predicted[0] = true[0]
    return Comparison(true=true, predicted=predicted, given=given, title="reach (episode 3, step 8)")


def test_write_strip_of_windows_of_different_length_shows_all_frames(tmp_path):
    write_strip(tmp_path / "strip.png", [comparison(5), comparison(3)])
    picture = np.asarray(Image.open(tmp_path / "strip.png"))
    true_pixels = (picture == 200).all(axis=-1).sum()
    predicted_pixels = (picture == 60).all(axis=-1).sum()
    assert true_pixels == (5 + 3 + 2) * 33 * 201  # all true frames, and the given one in each predicted row
    assert predicted_pixels == (4 + 2) * 33 * 201


def test_write_film_is_h264_yuv420p_with_true_left_and_predicted_right(tmp_path):
    path = tmp_path / "film.mp4"
    write_film(path, [comparison(5), comparison(3)], fps=4)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 4
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 8
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    middle, quarter = frames[1].shape[0] * 2 // 3, frames[1].shape[1] // 4
    np.testing.assert_allclose(frames[1][middle, quarter], 200, atol=6)
    np.testing.assert_allclose(frames[1][middle, 3 * quarter], 60, atol=6)
    np.testing.assert_allclose(frames[0][middle, 3 * quarter], 200, atol=6)  # given frames are the true ones


def test_write_strip_of_a_small_canvas_enlarges_its_pixels(tmp_path):
    small = np.zeros((2, 8, 16, 3), np.uint8)
    small[:, 2, 3] = 255
    write_strip(tmp_path / "strip.png", [Comparison(true=small, predicted=small, given=np.ones(2, bool), title="")])
    white = (np.asarray(Image.open(tmp_path / "strip.png")) == 255).all(axis=-1)
    assert white.sum() == 4 * 12 * 12  # 192 / 16 = 12 times as wide and as high, in four pictures
