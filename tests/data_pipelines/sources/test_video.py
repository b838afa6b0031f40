from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_pipelines.sources.video import VideoDecoder, VideoError, frame_numbers, scan_video

NUM_FRAMES = 53


def encode(path: Path, *, codec: str, rate: Fraction, options: dict[str, str], container: dict[str, str]) -> Path:
    """Frames of moving noise, so that a wrong frame or a frame decoded without its references is another picture."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w", format="mp4", options=container) as out:
        stream: Any = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.options = options
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.roll(base, 3 * number, axis=1), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


ENCODINGS = {
    "h264-no-reordering": ("libx264", Fraction(30), {"g": "15", "bf": "0"}),
    "h264-reordered": ("libx264", Fraction(30), {"g": "12", "bf": "3"}),
    "h264-open-gop": ("libx264", Fraction(30), {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "h264-one-keyframe": ("libx264", Fraction(10), {"g": "250"}),
    "h264-ntsc": ("libx264", Fraction(30_000, 1001), {"g": "15", "bf": "2"}),
    "av1-keyframe-every-2": ("libsvtav1", Fraction(30), {"g": "2", "preset": "12"}),
}


@pytest.fixture(scope="module", params=sorted(ENCODINGS))
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    codec, rate, options = ENCODINGS[request.param]
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    return encode(path, codec=codec, rate=rate, options=options, container={}), float(rate)


def decode_sequentially(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_single_frames_decoded_alone_equal_sequential_decoding(video: tuple[Path, float]) -> None:
    path, fps = video
    expected, table, decoder = decode_sequentially(path), scan_video(path, fps), VideoDecoder()
    assert table.num_frames == len(expected) == NUM_FRAMES
    for number in np.random.default_rng(1).permutation(NUM_FRAMES):
        np.testing.assert_array_equal(decoder.decode(table, np.array([number]))[0], expected[number])


def test_random_subsets_in_one_pass_equal_sequential_decoding(video: tuple[Path, float]) -> None:
    path, fps = video
    expected, table, decoder = decode_sequentially(path), scan_video(path, fps), VideoDecoder()
    rng = np.random.default_rng(2)
    for _ in range(30):
        numbers = np.sort(rng.choice(NUM_FRAMES, size=rng.integers(1, 12), replace=False))
        np.testing.assert_array_equal(decoder.decode(table, numbers), expected[numbers])


def test_decoding_from_several_threads_equals_sequential_decoding(video: tuple[Path, float]) -> None:
    path, fps = video
    expected, table, decoder = decode_sequentially(path), scan_video(path, fps), VideoDecoder()
    wanted = [np.arange(start, NUM_FRAMES, 7) for start in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for numbers, frames in zip(wanted, pool.map(lambda n: decoder.decode(table, n), wanted), strict=True):
            np.testing.assert_array_equal(frames, expected[numbers])


def test_frame_numbers_of_long_files_are_exact() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        fps = Fraction(int(rng.integers(1, 240_000)), 1001)
        time_base = Fraction(1, int(rng.choice([15_360, 90_000, 12_800])))
        number = int(rng.integers(0, 20_000_000))
        pts = round(number / fps / time_base)  # the nearest tick: what a muxer writes
        assert frame_numbers(np.array([pts]), time_base, fps)[0] == number


# The index lies at the end of the file, or at its front with "faststart": then only the frames themselves are cut.
@pytest.mark.parametrize(
    ("faststart", "share"), [(False, 0.01), (False, 0.8), (False, 0.97), (True, 0.01), (True, 0.8), (True, 0.999)]
)
def test_scan_of_truncated_file_is_refused(tmp_path: Path, faststart: bool, share: float) -> None:
    container = {"movflags": "+faststart"} if faststart else {}
    path = encode(tmp_path / "v.mp4", codec="libx264", rate=Fraction(30), options={"g": "15"}, container=container)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(VideoError, match=r"v\.mp4") as caught:
        scan_video(path, 30)
    assert "\n" not in str(caught.value)


def test_scan_of_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"not a video" * 100)
    with pytest.raises(VideoError, match=r"v\.mp4 cannot be read: Invalid data"):
        scan_video(path, 30)


def test_scan_at_another_frame_rate_is_refused_naming_the_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", codec="libx264", rate=Fraction(30), options={"g": "15"}, container={})
    with pytest.raises(VideoError, match=r"frame 2 lies at 0\.0667 s, not at 2/15 s"):
        scan_video(path, 15)


def test_decoding_a_file_damaged_after_the_scan_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", codec="libx264", rate=Fraction(30), options={"g": "15"}, container={})
    table = scan_video(path, 30)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(VideoError, match=r"v\.mp4"):
        VideoDecoder().decode(table, np.array([40]))


def test_decoding_reads_nothing_after_the_last_wanted_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", codec="libx264", rate=Fraction(30), options={"g": "15", "bf": "0"}, container={})
    expected, table = decode_sequentially(path), scan_video(path, 30)
    # Garbage in place of the second half's packets: a decoder that read on would meet it.
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[NUM_FRAMES // 2 :]:
        assert packet.pos is not None
        content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(bytes(content))
    np.testing.assert_array_equal(VideoDecoder().decode(table, np.array([3, 20])), expected[[3, 20]])
