from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.sources.frame_reader import FrameReader
from data_pipelines.sources.video import VideoDecoder, VideoTable, scan_video


@pytest.fixture
def table(dataset_path: Path) -> VideoTable:
    return scan_video(dataset_path / "videos/observation.images.left/chunk-000/file-000.mp4", 30)


def test_frames_kept_in_memory_equal_frames_decoded_each_time(table: VideoTable) -> None:
    kept, decoder = FrameReader([table], keep_bytes=2**30), VideoDecoder()
    assert kept.keeps_frames
    rng = np.random.default_rng(0)
    wanted = [np.sort(rng.choice(table.num_frames, size=6, replace=False)) for _ in range(60)]
    with ThreadPoolExecutor(4) as pool:
        for numbers, frames in zip(wanted, pool.map(lambda n: kept.read(table, n), wanted), strict=True):
            np.testing.assert_array_equal(frames, decoder.decode(table, numbers))


def test_frames_are_kept_only_where_all_of_them_fit(table: VideoTable) -> None:
    size = table.num_frames * 32 * 32 * 3
    assert FrameReader([table, table], keep_bytes=2 * size).keeps_frames
    assert not FrameReader([table, table], keep_bytes=2 * size - 1).keeps_frames
    assert not FrameReader([table], keep_bytes=0).keeps_frames


def test_kept_frames_are_read_again_without_the_file(table: VideoTable, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(table.path.read_bytes())
    copied = scan_video(copy, 30)
    reader = FrameReader([copied], keep_bytes=2**30)
    first = reader.read(copied, np.array([7, 12]))
    copy.unlink()
    np.testing.assert_array_equal(reader.read(copied, np.array([7, 12])), first)
