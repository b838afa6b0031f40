"""Reads that fail for a reason that may pass: tried again, then quarantined or refused like any other."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipelines.sources import retry, video
from data_pipelines.sources.lerobot import LeRobotDataset
from data_pipelines.sources.retry import DELAYS_S, retry_read
from wamjax.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden/lerobot_v3.0"
CAMERA = "observation.images.front"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    return waited


def failing(times: int, number: int, answer: Callable[..., Any]) -> Callable[..., Any]:
    """``answer``, after failing ``times`` times."""
    left = [times]

    def call(*args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(number, "the server is gone")
        return answer(*args, **kwargs)

    return call


@pytest.mark.parametrize("times", [0, 1, len(DELAYS_S)])
def test_read_that_comes_back_is_the_read(times: int, waits: list[float]) -> None:
    assert retry_read(failing(times, errno.ETIMEDOUT, lambda: 7), "file") == 7
    assert waits == list(DELAYS_S[:times])


def test_read_that_stays_away_raises_and_a_missing_file_is_not_waited_for(waits: list[float]) -> None:
    with pytest.raises(OSError, match="the server is gone"):
        retry_read(failing(99, errno.ESTALE, lambda: 7), "file")
    assert waits == list(DELAYS_S)
    with pytest.raises(FileNotFoundError):
        retry_read(lambda: Path("/nowhere/at/all").read_bytes(), "file")
    assert waits == list(DELAYS_S)


@pytest.mark.parametrize("what", ["video", "parquet"])
def test_dataset_on_a_server_that_comes_back_is_whole_and_else_quarantined(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = (video, "_open_container") if what == "video" else (pq, "ParquetFile")
    answer = getattr(module, name)

    def read(times: int) -> dict[int, str]:
        monkeypatch.setattr(module, name, failing(times, errno.EIO, answer))
        return LeRobotDataset(GOLDEN, cameras=(CAMERA,), columns=("action",), num_threads=1).find_broken()

    assert read(2) == {}
    broken = read(99)
    assert list(broken) == [0, 1, 2]
    assert all("cannot be read" in reason and "\n" not in reason for reason in broken.values())


def test_decoding_goes_on_when_the_server_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(shutil.copytree(GOLDEN, tmp_path / "set"))
    source = LeRobotDataset(path, cameras=(CAMERA,), columns=("action",))
    steps = np.array([1, 4])
    expected = source.frames(CAMERA, 0, steps)
    decode = video.VideoDecoder._decode_run

    def again(self: Any, *args: Any) -> Any:
        return attempt(self, *args)

    attempt = failing(2, errno.EIO, decode)
    monkeypatch.setattr(video.VideoDecoder, "_decode_run", again)
    np.testing.assert_array_equal(source.frames(CAMERA, 0, steps), expected)
    attempt = failing(99, errno.EIO, decode)
    with pytest.raises(DataError, match="episode 0: .* cannot be decoded: the server is gone"):
        source.frames(CAMERA, 0, steps)
