"""Datasets written by the real ``lerobot`` package (see golden/write_lerobot.py), read by our reader."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.sources.formats import open_source
from data_pipelines.sources.lerobot import LeRobotDataset
from tests.data_pipelines.sources.test_clips import encode
from wamjax.errors import DataError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
V21, V30 = GOLDEN / "lerobot_v2.1", GOLDEN / "lerobot_v3.0"
LENGTHS = (7, 5, 9)
CAMERAS = ("observation.images.front", "observation.images.wrist", "observation.images.top")
DATA = "data/chunk-000/episode_{:06d}.parquet"
VIDEO = "videos/chunk-000/observation.images.front/episode_{:06d}.mp4"


def colour(camera: int, episode: int, step: int) -> list[int]:
    return [20 * step + 10, 60 * episode + 30, 80 * camera + 20]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A copy of the v2.1 dataset for the test to damage."""
    return Path(shutil.copytree(V21, tmp_path / "damaged"))


@pytest.fixture
def v20(damaged: Path) -> Path:
    """The same dataset as v2.0, which differs in where the statistics lie."""
    info = json.loads((damaged / "meta/info.json").read_text())
    (damaged / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.0"}))
    (damaged / "meta/episodes_stats.jsonl").unlink()
    (damaged / "meta/stats.json").write_text("{}")
    return damaged


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_golden_dataset_reads_as_it_was_written(version: str, request: pytest.FixtureRequest) -> None:
    path = {"v2.1": V21, "v3.0": V30}.get(version) or request.getfixturevalue("v20")
    source = open_source(path)
    assert (source.format, source.fps, source.cameras) == (f"LeRobot {version}", 10.0, CAMERAS)
    assert source.tasks == ("lift the cube", "open the box")
    assert source.find_broken() == {}
    assert [(e.index, e.length, e.task) for e in source.episodes] == [
        (0, 7, "lift the cube"),
        (1, 5, "open the box"),
        (2, 9, "lift the cube"),
    ]
    for episode, length in enumerate(LENGTHS):
        steps = np.arange(length)
        state = np.stack([steps, np.full(length, 10 * episode), np.full(length, 0.5)], -1)
        np.testing.assert_array_equal(source.column("observation.state", episode), state.astype(np.float32))
        np.testing.assert_array_equal(source.column("action", episode)[:, 0], episode + steps.astype(np.float32) / 8)
        for number, camera in enumerate(CAMERAS):
            chosen = steps[::3]
            frames = source.frames(camera, episode, chosen)
            expected = np.array([colour(number, episode, step) for step in chosen])
            # Lossless for the PNG camera; AV1 at crf 30 in 4:2:0 keeps flat colours within a few levels.
            np.testing.assert_allclose(frames.mean((1, 2)), expected, atol=0 if number == 2 else 5)
            assert frames.shape[1:] == (64, 64, 3)


def test_v21_video_frames_equal_a_sequential_decode() -> None:
    source = open_source(V21)
    for episode, length in enumerate(LENGTHS):
        with av.open(str(V21 / VIDEO.format(episode))) as container:
            every = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        for step in range(length):
            np.testing.assert_array_equal(source.frames(CAMERAS[0], episode, np.array([step]))[0], every[step])


def rewrite(path: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    schema = pq.read_schema(path)
    columns = pq.read_table(path).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=pa.schema([f for f in schema if f.name in columns])), path)


def shift_clock(columns: dict[str, list[Any]]) -> None:
    columns["timestamp"] = [value + 0.1 for value in columns["timestamp"]]


def name_unknown_task(columns: dict[str, list[Any]]) -> None:
    columns["task_index"][2] = 7


def drop_action(columns: dict[str, list[Any]]) -> None:
    del columns["action"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shift_clock, "has frame 0 at 0.1000 s, not at 0/10 s (5 such frames)"),
        (name_unknown_task, "has task_index 7, which the task table does not list"),
        (drop_action, "cannot be read: it has no column 'action'"),
    ],
)
def test_damaged_rows_quarantine_their_episode_only(
    damaged: Path, change: Callable[[dict[str, list[Any]]], None], reason: str
) -> None:
    rewrite(damaged / DATA.format(1), change)
    assert open_source(damaged).find_broken() == {1: f"{DATA.format(1)} {reason}"}


def test_truncated_video_quarantines_its_episode_only(damaged: Path) -> None:
    file = damaged / VIDEO.format(2)
    file.write_bytes(file.read_bytes()[:-300])
    broken = open_source(damaged).find_broken()
    assert list(broken) == [2]
    assert broken[2].startswith(VIDEO.format(2))
    assert "\n" not in broken[2]


def test_video_of_another_length_quarantines_its_episode(damaged: Path) -> None:
    shutil.copy(damaged / VIDEO.format(0), damaged / VIDEO.format(1))
    assert open_source(damaged).find_broken() == {1: f"{VIDEO.format(1)} holds 7 frames, its episode has 5"}


def test_wrong_fps_breaks_every_video_and_names_the_frame(damaged: Path) -> None:
    info = json.loads((damaged / "meta/info.json").read_text())
    (damaged / "meta/info.json").write_text(json.dumps(info | {"fps": 15}))
    broken = LeRobotDataset(damaged, columns=()).find_broken()
    assert list(broken) == [0, 1, 2]
    assert "not at" in broken[0]


def test_variable_frame_rate_quarantines_its_episode_and_names_the_frame(damaged: Path) -> None:
    uneven = encode(".mp4", frames=5, level=9, fps=10, pts=[0, 1, 2, 4, 5])
    (damaged / VIDEO.format(1)).write_bytes(uneven)
    broken = open_source(damaged).find_broken()
    assert broken == {1: f"{VIDEO.format(1)}: frame 3 lies at 0.4000 s, not at 3/10 s"}


def rewrite_lines(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    change(entries)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_duplicate_episode_is_quarantined(damaged: Path) -> None:
    rewrite_lines(damaged / "meta/episodes.jsonl", lambda entries: entries[2].update(episode_index=0, length=7))
    source = open_source(damaged)
    assert source.find_broken() == {0: "meta/episodes.jsonl declares it twice"}
    assert [episode.index for episode in source.episodes] == [0, 1]


def test_episode_of_an_unlisted_task_is_quarantined(damaged: Path) -> None:
    rewrite_lines(damaged / "meta/episodes.jsonl", lambda entries: entries[1].update(tasks=["fold the towel"]))
    assert open_source(damaged).find_broken() == {1: "its task 'fold the towel' is not in meta/tasks.jsonl"}


def test_broken_image_is_refused_naming_episode_camera_and_row(damaged: Path) -> None:
    def spoil(columns: dict[str, list[Any]]) -> None:
        columns[CAMERAS[2]][3]["bytes"] = b"no picture"

    rewrite(damaged / DATA.format(0), spoil)
    source = open_source(damaged)
    with pytest.raises(DataError, match=rf"episode 0: .*{CAMERAS[2]}, row 3: no image: UnidentifiedImageError$"):
        source.frames(CAMERAS[2], 0, np.array([2, 3]))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("meta/episodes.jsonl", "", "is empty: meta/episodes.jsonl declares no episode"),
        ("meta/episodes.jsonl", "{]\n", "line 1 of meta/episodes.jsonl is not JSON"),
        ("meta/tasks.jsonl", '{"task": "x"}\n', "line 1 of meta/tasks.jsonl has no 'task_index' of type int"),
        ("meta/info.json", "[]", "meta/info.json holds a list: expected an object"),
    ],
)
def test_unusable_metadata_is_refused_in_one_line(damaged: Path, file: str, content: str, message: str) -> None:
    (damaged / file).write_text(content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        open_source(damaged)
    assert "\n" not in str(caught.value)


def test_missing_table_is_refused(damaged: Path) -> None:
    (damaged / "meta/tasks.jsonl").unlink()
    with pytest.raises(DataError, match=r"meta/tasks\.jsonl cannot be read: No such file or directory"):
        open_source(damaged)
