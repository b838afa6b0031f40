"""Folder trees of videos and WebDataset shards of the same videos."""

import io
import json
import re
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_pipelines.sources.clips import CAMERA
from data_pipelines.sources.formats import open_source
from wamjax.errors import DataError

SIZE = 32
CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9", ".mkv": "libx264"}


def encode(
    suffix: str,
    *,
    frames: int,
    level: int,
    fps: int = 12,
    pts: list[int] | None = None,
    size: tuple[int, int] = (SIZE, SIZE),
) -> bytes:
    """A video whose frame n is grey of ``level + 5 n``; ``pts`` in frames."""
    buffer = io.BytesIO()
    container_format = {".mp4": "mp4", ".webm": "webm", ".mkv": "matroska"}[suffix]
    with av.open(buffer, "w", format=container_format) as container:
        stream: Any = container.add_stream(CODECS[suffix], rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), level + 5 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = (pts[number] if pts else number), Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def videos() -> dict[str, bytes]:
    return {
        "a/one.mp4": encode(".mp4", frames=9, level=10),
        "a/two.webm": encode(".webm", frames=6, level=60),
        "three.mkv": encode(".mkv", frames=12, level=110),
    }


CAPTIONS = {"a/one.txt": b"a hand opens  a drawer\n", "a/two.json": b'{"caption": "a hand pours tea"}'}


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_shard(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["video folder", "WebDataset"])
def test_videos_and_captions_read_as_they_were_written(tmp_path: Path, videos: dict[str, bytes], kind: str) -> None:
    files = dict(sorted((videos | CAPTIONS).items()))
    if kind == "WebDataset":
        parts = list(files.items())
        write_shard(tmp_path / "train/000000.tar", dict(parts[:4]))
        write_shard(tmp_path / "train/000001.tar", dict(parts[4:]))
    else:
        write_folder(tmp_path, files)
    source = open_source(tmp_path)
    assert (source.format, source.fps, source.cameras, source.columns) == (kind, 12.0, (CAMERA,), ())
    assert source.find_broken() == {}
    assert [(e.index, e.length, e.task) for e in source.episodes] == [
        (0, 9, "a hand opens a drawer"),
        (1, 6, "a hand pours tea"),
        (2, 12, ""),
    ]
    for episode, (length, level) in enumerate([(9, 10), (6, 60), (12, 110)]):
        steps = np.arange(length)[::-1][::4][::-1]
        means = source.frames(CAMERA, episode, steps).mean((1, 2, 3))
        np.testing.assert_allclose(means, level + 5 * steps, atol=2.4)


def test_fingerprint_changes_with_a_caption(tmp_path: Path, videos: dict[str, bytes]) -> None:
    write_folder(tmp_path, videos | CAPTIONS)
    before = open_source(tmp_path).fingerprint()
    assert open_source(tmp_path).fingerprint() == before
    (tmp_path / "a/one.txt").write_text("a hand closes a drawer")
    assert open_source(tmp_path).fingerprint() != before


def test_captions_of_a_table_are_found_by_path_name_or_stem(tmp_path: Path, videos: dict[str, bytes]) -> None:
    table = b"video,caption\na/one.mp4,first\ntwo.webm,second\nthree,third\n"
    source = open_source(write_folder(tmp_path, videos | {"captions.csv": table}))
    assert source.tasks == ("first", "second", "third")


def test_videos_that_cannot_be_used_are_quarantined_by_name(tmp_path: Path, videos: dict[str, bytes]) -> None:
    sound = videos["a/one.mp4"]
    files = videos | {
        "b_cut.mp4": sound[:-100],
        "c_rate.mp4": encode(".mp4", frames=5, level=9, fps=30),
        "d_uneven.mkv": encode(".mkv", frames=6, level=9, pts=[0, 1, 2, 5, 6, 9]),
        "e_caption.mp4": sound,
        "e_caption.json": b'{"words": 3}',
    }
    source = open_source(write_folder(tmp_path, files))
    assert source.fps == 12
    broken = source.find_broken()
    assert {source.episodes[index].length for index in broken} == {0, 5}
    names = ["b_cut.mp4", "c_rate.mp4 runs at 30 frames per second, most of the dataset at 12"]
    names += [r"d_uneven.mkv: frame \d lies at", r"its caption e_caption.json cannot be read: holds no caption under"]
    assert len(broken) == len(names)
    for reason, name in zip(broken.values(), names, strict=True):
        assert re.match(name, reason), (reason, name)
        assert "\n" not in reason


@pytest.mark.parametrize(("table", "message"), [("a,b\n", "has columns a, b: expected one of"), ("", "columns none")])
def test_caption_table_without_the_columns_is_refused(
    tmp_path: Path, videos: dict[str, bytes], table: str, message: str
) -> None:
    write_folder(tmp_path, videos | {"captions.csv": table.encode()})
    with pytest.raises(DataError, match=message):
        open_source(tmp_path)


def test_two_captions_for_one_video_are_refused(tmp_path: Path, videos: dict[str, bytes]) -> None:
    write_folder(tmp_path, videos | {"captions.csv": b"file,text\nthree,x\nthree,y\n"})
    with pytest.raises(DataError, match=r"captions\.csv has two captions for 'three'"):
        open_source(tmp_path)


def test_folder_of_unreadable_videos_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    write_folder(tmp_path, {"x.mp4": b"no video", "y.mp4": b"no video"})
    with pytest.raises(DataError, match=r"none of its 2 videos can be read: x\.mp4 cannot be read: Invalid data"):
        open_source(tmp_path)


def test_video_that_is_lost_after_opening_is_refused(tmp_path: Path, videos: dict[str, bytes]) -> None:
    source = open_source(write_folder(tmp_path, videos))
    (tmp_path / "a/one.mp4").unlink()
    with pytest.raises(DataError, match=r"episode 0: .*one\.mp4 cannot be decoded: No such file"):
        source.frames(CAMERA, 0, np.array([0]))


def test_truncated_shard_keeps_what_lies_before_and_names_the_place(tmp_path: Path, videos: dict[str, bytes]) -> None:
    write_shard(tmp_path / "0.tar", videos)
    shard = write_shard(tmp_path / "1.tar", videos | CAPTIONS)
    with tarfile.open(shard) as archive:
        info = archive.getmember("three.mkv")
    shard.write_bytes(shard.read_bytes()[: info.offset_data + info.size // 2])
    source = open_source(tmp_path)
    broken = source.find_broken()
    assert [source.episodes[i].length for i in range(5)] == [9, 6, 12, 9, 6]
    assert "1.tar:three.mkv" in broken[5]
    assert broken[6] == "1.tar cannot be read after 3 members: unexpected end of data"


def test_damaged_header_is_not_taken_for_the_end(tmp_path: Path, videos: dict[str, bytes]) -> None:
    shard = write_shard(tmp_path / "0.tar", videos)
    with tarfile.open(shard) as archive:
        header = archive.getmember("a/two.webm").offset
    content = bytearray(shard.read_bytes())
    content[header : header + 200] = b"x" * 200
    shard.write_bytes(bytes(content))
    source = open_source(tmp_path)
    assert source.find_broken() == {1: "0.tar cannot be read after 1 members: a damaged header"}


def test_sample_with_two_videos_or_a_broken_caption_is_quarantined(tmp_path: Path, videos: dict[str, bytes]) -> None:
    sound = videos["a/one.mp4"]
    files = {"p.mp4": sound, "p.webm": sound, "q.mp4": sound, "q.json": b"{", "r.mp4": sound, "s.mp4": b"no video" * 99}
    write_shard(tmp_path / "0.tar", files)
    broken = open_source(tmp_path).find_broken()
    assert broken[0] == "0.tar:p.mp4: its sample has 2 videos: which one is meant nothing tells"
    assert broken[1].startswith("0.tar:q.json cannot be read: Expecting property name")
    assert broken[3].startswith("0.tar:s.mp4 cannot be read: Invalid data found")
    assert list(broken) == [0, 1, 3]


def test_folder_of_two_formats_is_refused(tmp_path: Path, videos: dict[str, bytes]) -> None:
    write_folder(tmp_path, videos)
    write_shard(tmp_path / "0.tar", videos)
    with pytest.raises(DataError, match=r"more than one format: it holds \*\.tar \(WebDataset\) and \*\.mp4"):
        open_source(tmp_path)


def test_shard_without_videos_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"x.json": json.dumps({}).encode()})
    with pytest.raises(DataError, match=r"is empty: it holds no video \(\.mp4, \.webm, \.mkv\)"):
        open_source(tmp_path)


def test_action_free_source_says_that_it_has_no_actions(tmp_path: Path, videos: dict[str, bytes]) -> None:
    write_folder(tmp_path, videos)
    with pytest.raises(DataError, match=r"has no numeric feature 'action' \(config.*\); it has none"):
        open_source(tmp_path, columns=("action",))
    with pytest.raises(DataError, match=r"is video folder: it has no numeric feature 'action'"):
        open_source(tmp_path).column("action", 0)
