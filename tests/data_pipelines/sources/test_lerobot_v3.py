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

from data_pipelines.sources.lerobot import LeRobotDataset
from tests.data_pipelines.conftest import LENGTHS, TASKS, make_episode
from wamjax.errors import DataError

LEFT, RIGHT = "observation.images.left", "observation.images.right"
DATA_FILE = "data/chunk-000/file-000.parquet"
VIDEO_FILE = f"videos/{LEFT}/chunk-000/file-000.mp4"


def open_dataset(path: Path, **overrides: Any) -> LeRobotDataset:
    arguments: dict[str, Any] = {"cameras": (LEFT, RIGHT), "columns": ("action", "observation.state")}
    return LeRobotDataset(path, **(arguments | overrides))


@pytest.fixture
def damaged(dataset_path: Path, tmp_path: Path) -> Path:
    """A copy of the sound dataset for the test to damage."""
    return Path(shutil.copytree(dataset_path, tmp_path / "damaged"))


def rewrite_data(path: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    table = pq.read_table(path / DATA_FILE)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), path / DATA_FILE)


def test_episodes_equal_what_was_written(dataset_path: Path) -> None:
    dataset = open_dataset(dataset_path)
    assert [(e.index, e.length, e.task) for e in dataset.episodes] == [
        (number, length, TASKS[number % 2]) for number, length in enumerate(LENGTHS)
    ]
    assert dataset.find_broken() == {}
    for number, length in enumerate(LENGTHS):
        episode = make_episode(number, length)
        np.testing.assert_array_equal(dataset.column("action", number), episode.actions)
        np.testing.assert_array_equal(dataset.column("observation.state", number), episode.state)


@pytest.mark.parametrize("limits", [{}, {"video_file_bytes": 6000, "data_file_bytes": 4000}])
@pytest.mark.parametrize("keep_bytes", [0, 2**30])
def test_frames_equal_a_sequential_decode_by_global_number(
    write_dataset: Callable[..., Path], tmp_path: Path, limits: dict[str, int], keep_bytes: int
) -> None:
    path = write_dataset(tmp_path / "set", **limits)
    dataset = open_dataset(path, keep_bytes=keep_bytes)
    rng = np.random.default_rng(0)
    for camera in (LEFT, RIGHT):
        files = sorted((path / "videos" / camera).rglob("*.mp4"))
        assert (len(files) > 2) == bool(limits)
        every = []  # the frames of all files one after the other are the frames of all episodes one after the other
        for file in files:
            with av.open(str(file)) as container:
                every += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        first = 0
        for number, length in enumerate(LENGTHS):
            steps = np.sort(rng.choice(length, size=5, replace=False))
            expected = np.stack([every[first + step] for step in steps])
            np.testing.assert_array_equal(dataset.frames(camera, number, steps), expected)
            first += length


@pytest.mark.parametrize("drift", [-0.3, 0.3])
def test_from_timestamp_off_by_part_of_a_frame_reads_the_same_frames(damaged: Path, drift: float) -> None:
    steps = np.array([0, 8])
    expected = open_dataset(damaged).frames(LEFT, 5, steps)
    file = damaged / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    name = f"videos/{LEFT}/from_timestamp"
    drifted = [value + drift / 30 for value in table[name].to_pylist()]
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(drifted)), file)
    dataset = open_dataset(damaged)
    assert dataset.find_broken() == {}
    np.testing.assert_array_equal(dataset.frames(LEFT, 5, steps), expected)


def test_task_table_with_unnamed_pandas_index_is_read(damaged: Path) -> None:
    table = pq.read_table(damaged / "meta/tasks.parquet").rename_columns(["task_index", "__index_level_0__"])
    pq.write_table(table, damaged / "meta/tasks.parquet")
    assert open_dataset(damaged).tasks == TASKS


def test_fingerprint_changes_with_content_and_only_then(dataset_path: Path, damaged: Path) -> None:
    sound = open_dataset(dataset_path).fingerprint()
    assert open_dataset(damaged).fingerprint() == sound

    def nudge(columns: dict[str, list[Any]]) -> None:
        columns["action"][3] = [columns["action"][3][0] + 1e-3, columns["action"][3][1]]

    rewrite_data(damaged, nudge)
    assert open_dataset(damaged).fingerprint() != sound


def test_video_shorter_than_its_episodes_breaks_all_of_them(damaged: Path) -> None:
    with av.open(str(damaged / VIDEO_FILE)) as source, av.open(str(damaged / "short.mp4"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[:-11]:  # ten packets and the flush
            packet.stream = stream
            out.mux(packet)
    (damaged / "short.mp4").replace(damaged / VIDEO_FILE)
    broken = open_dataset(damaged).find_broken()
    assert set(broken) == set(range(len(LENGTHS)))
    assert broken[0] == f"{VIDEO_FILE} holds {sum(LENGTHS) - 10} frames, its 8 episodes have {sum(LENGTHS)}"


def test_truncated_video_breaks_its_episodes_only(write_dataset: Callable[..., Path], tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", video_file_bytes=6000)
    files = sorted((path / "videos" / LEFT).rglob("*.mp4"))
    files[1].write_bytes(files[1].read_bytes()[:-500])
    table = pq.read_table(path / "meta/episodes/chunk-000/file-000.parquet")
    of_file = [i for i, n in enumerate(table[f"videos/{LEFT}/file_index"].to_pylist()) if n == 1]
    broken = open_dataset(path).find_broken()
    assert sorted(broken) == of_file
    assert len(of_file) < len(LENGTHS)
    assert "file-001.mp4" in broken[of_file[0]]
    assert "\n" not in broken[of_file[0]]


def test_missing_video_breaks_its_episodes(damaged: Path) -> None:
    (damaged / VIDEO_FILE).unlink()
    assert open_dataset(damaged).find_broken()[0] == f"{VIDEO_FILE} cannot be read: No such file or directory"


def test_truncated_data_file_breaks_its_episodes(damaged: Path) -> None:
    file = damaged / DATA_FILE
    file.write_bytes(file.read_bytes()[:-200])
    broken = open_dataset(damaged).find_broken()
    assert set(broken) == set(range(len(LENGTHS)))
    assert broken[0].startswith(f"{DATA_FILE} cannot be read: ")
    assert "\n" not in broken[0]


def test_missing_row_breaks_its_episode_only(damaged: Path) -> None:
    def drop(columns: dict[str, list[Any]]) -> None:
        for values in columns.values():
            del values[LENGTHS[0] + 4]

    rewrite_data(damaged, drop)
    assert open_dataset(damaged).find_broken() == {
        1: f"{DATA_FILE} holds 30 rows of it, not frames 0 to 30 once and in order"
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"cameras": ("top",)}, "has no camera 'top' (config.data.views); it has observation.images.left, observat"),
        ({"columns": ("effort",)}, "has no numeric feature 'effort' (config.data.state_key, "),
        ({"columns": (LEFT,)}, f"has no numeric feature '{LEFT}'"),
    ],
)
def test_missing_feature_is_refused_naming_those_there_are(
    dataset_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        open_dataset(dataset_path, **overrides)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist \(config\.data\.path\)"):
        open_dataset(tmp_path / "nowhere")


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no meta/info\.json: not a LeRobot dataset"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version v1.6: expected v2.0, v2.1 or v3.x"),
        ({"fps": 0}, "fps 0: expected a positive number"),
        ({"total_episodes": 9}, "declares 9 episodes, the episode table meta/episodes has 8"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(damaged: Path, change: dict[str, Any], message: str) -> None:
    file = damaged / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=re.escape(message)):
        open_dataset(damaged)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_truncated_metadata_is_refused_naming_the_file(damaged: Path, name: str) -> None:
    file = damaged / name
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=re.escape(name)) as caught:
        open_dataset(damaged)
    assert "\n" not in str(caught.value)
