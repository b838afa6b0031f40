"""Clips keep their frames in number, order and time, alone and appended."""

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from data_pipelines.recording.lerobot_writer import Episode
from data_pipelines.recording.video_encoder import Mp4Appender, VideoSettings, encode_clip


def decode(source: str | io.BytesIO) -> tuple[list[npt.NDArray[np.uint8]], list[float], list[int]]:
    """All frames, their times in seconds and the places of the keyframes."""
    with av.open(source, "r") as container:
        decoded = list(container.decode(video=0))
    times = [float(frame.time) for frame in decoded if frame.time is not None]
    keyframes = [index for index, frame in enumerate(decoded) if frame.key_frame]
    return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in decoded], times, keyframes


@pytest.mark.parametrize("fps", [7, 20, 80])
def test_encode_clip_at_any_rate_puts_frame_n_at_n_over_fps(episode_of: Callable[..., Episode], fps: int) -> None:
    frames = episode_of(0, 40).images["left"]
    _, times, _ = decode(io.BytesIO(encode_clip(frames, VideoSettings(fps=fps))))
    np.testing.assert_allclose(times, np.arange(40) / fps, atol=1e-9)


def test_encode_clip_with_changing_scene_keeps_the_keyframe_grid() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 32, 32, 3), np.uint8)  # every frame is a scene cut
    _, _, keyframes = decode(io.BytesIO(encode_clip(noise, VideoSettings(fps=20, keyframe_every=15))))
    assert keyframes == [0, 15, 30, 45]


def test_encode_clip_of_flat_colours_returns_them_within_two_levels() -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [20, 40, 200], [128, 128, 128]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (4, 32, 32, 3))
    decoded, _, _ = decode(io.BytesIO(encode_clip(np.ascontiguousarray(frames), VideoSettings(fps=10, crf=4))))
    assert np.abs(np.stack(decoded).astype(int) - frames).max() <= 3


def test_encode_clip_with_odd_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"31x32.*even"):
        encode_clip(np.zeros((2, 31, 32, 3), np.uint8), VideoSettings(fps=10))


def test_appended_clips_decode_to_the_same_pixels_as_alone(episode_of: Callable[..., Episode], tmp_path: Path) -> None:
    settings = VideoSettings(fps=80)
    clips = [encode_clip(episode_of(i, n).images["top"], settings) for i, n in enumerate((31, 1, 20))]
    path = tmp_path / "all.mp4"
    with Mp4Appender(path, settings) as appender:
        for clip in clips:
            appender.append(clip)
    assert appender.num_frames == 52
    together, times, keyframes = decode(str(path))
    alone = [frame for clip in clips for frame in decode(io.BytesIO(clip))[0]]
    np.testing.assert_array_equal(np.stack(together), np.stack(alone))
    np.testing.assert_allclose(times, np.arange(52) / 80, atol=1e-9)
    assert {0, 31, 32} <= set(keyframes)
