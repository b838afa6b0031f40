"""What is written reads back, by PyAV and pyarrow, as the LeRobot v3.0 layout promises; nothing half-written stays."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.recording.lerobot_format import DatasetSpec
from data_pipelines.recording.lerobot_writer import Episode, LeRobotWriter
from wamjax.errors import DataError

FPS = 20


def write(out: Path, spec: DatasetSpec, episodes: list[Episode]) -> None:
    with LeRobotWriter(out, spec) as writer:
        for episode in episodes:
            writer.add_episode(episode)


def frame_columns(root: Path) -> dict[str, npt.NDArray]:
    table = pa.concat_tables([pq.read_table(path) for path in sorted(root.glob("data/*/*.parquet"))])
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def episode_rows(root: Path) -> list[dict]:
    return pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()


def decode(path: Path) -> list[npt.NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]


def decode_episode(root: Path, row: dict, camera: str) -> list[npt.NDArray[np.uint8]]:
    """Frames of an episode found the way LeRobot finds them: by file and timestamp."""
    key = f"videos/observation.images.{camera}"
    chunk, file = row[f"{key}/chunk_index"], row[f"{key}/file_index"]
    frames = decode(root / f"{key}/chunk-{chunk:03d}/file-{file:03d}.mp4")
    first, last = (row[f"{key}/{end}_timestamp"] * FPS for end in ("from", "to"))
    assert first == pytest.approx(round(first))
    assert round(last) - round(first) == row["length"]
    return frames[round(first) : round(last)]


def test_frames_and_columns_round_trip(
    tmp_path: Path, spec_of: Callable, code_of: Callable, episodes: list[Episode]
) -> None:
    write(tmp_path / "set", spec_of(), episodes)
    table, rows = frame_columns(tmp_path / "set"), episode_rows(tmp_path / "set")
    assert [row["length"] for row in rows] == [37, 16, 15, 1]
    np.testing.assert_array_equal(table["index"], np.arange(69))
    tasks = pd.read_parquet(tmp_path / "set/meta/tasks.parquet")
    for index, (row, episode) in enumerate(zip(rows, episodes, strict=True)):
        frames = {name: v[row["dataset_from_index"] : row["dataset_to_index"]] for name, v in table.items()}
        assert (frames["episode_index"] == index).all()
        np.testing.assert_array_equal(frames["frame_index"], np.arange(row["length"]))
        np.testing.assert_array_equal(frames["observation.state"], episode.state)
        np.testing.assert_array_equal(frames["action"], episode.actions)
        np.testing.assert_array_equal(frames["next.success"], episode.success)
        np.testing.assert_array_equal(
            frames["timestamp"].astype(np.float32), np.arange(row["length"], dtype=np.float32) / FPS
        )
        assert frames["next.done"].tolist() == [False] * (row["length"] - 1) + [True]
        assert row["tasks"] == [episode.prompt]
        assert set(frames["task_index"]) == {tasks["task_index"].to_dict()[episode.prompt]}
        for camera in ("left", "top"):
            decoded = decode_episode(tmp_path / "set", row, camera)
            assert [code_of(image) for image in decoded] == [256 * index + n for n in range(row["length"])]
            shade = 90 if camera == "left" else 160
            assert np.abs(decoded[0][-16:].astype(int) - shade).max() <= 4  # the cameras are not swapped


def test_info_counts_and_declares_what_the_files_hold(
    tmp_path: Path, spec_of: Callable, episodes: list[Episode]
) -> None:
    write(tmp_path / "set", spec_of(), episodes)
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (4, 69, 2)
    assert info["splits"] == {"train": "0:4"}
    schema = pq.read_schema(tmp_path / "set" / info["data_path"].format(chunk_index=0, file_index=0))
    videos = {name for name, feature in info["features"].items() if feature["dtype"] == "video"}
    assert set(schema.names) == set(info["features"]) - videos
    assert str(schema.field("action").type) == "fixed_size_list<element: float>[2]"
    for name in videos:
        path = tmp_path / "set" / info["video_path"].format(video_key=name, chunk_index=0, file_index=0)
        assert list(decode(path)[0].shape) == info["features"][name]["shape"]


def test_statistics_of_the_set_are_those_of_all_frames(
    tmp_path: Path, spec_of: Callable, episodes: list[Episode]
) -> None:
    write(tmp_path / "set", spec_of(), episodes)
    statistics = json.loads((tmp_path / "set/meta/stats.json").read_text())
    actions = np.concatenate([episode.actions for episode in episodes]).astype(np.float64)
    np.testing.assert_allclose(statistics["action"]["mean"], actions.mean(0))
    np.testing.assert_allclose(statistics["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    pixels = np.concatenate([episode.images["top"] for episode in episodes]) / 255
    np.testing.assert_allclose(np.ravel(statistics["observation.images.top"]["std"]), pixels.std((0, 1, 2)), rtol=1e-6)
    row = episode_rows(tmp_path / "set")[1]
    np.testing.assert_allclose(row["stats/observation.state/max"], episodes[1].state.max(0))
    assert row["stats/observation.images.left/count"] == [16]


def test_file_limits_open_new_files_that_stay_below_them(
    tmp_path: Path, spec_of: Callable, episode_of: Callable, code_of: Callable
) -> None:
    limits = {"data_file_bytes": 2_500, "video_file_bytes": 9_000}
    write(tmp_path / "set", spec_of(**limits), [episode_of(index, 20) for index in range(6)])
    videos = sorted((tmp_path / "set/videos/observation.images.left").glob("*/*.mp4"))
    assert len(videos) > 1
    assert all(path.stat().st_size <= limits["video_file_bytes"] for path in videos)
    assert len(list((tmp_path / "set/data").glob("*/*.parquet"))) > 1
    np.testing.assert_array_equal(frame_columns(tmp_path / "set")["index"], np.arange(120))
    for index, row in enumerate(episode_rows(tmp_path / "set")):
        assert code_of(decode_episode(tmp_path / "set", row, "left")[7]) == 256 * index + 7
        path = f"set/data/chunk-{row['data/chunk_index']:03d}/file-{row['data/file_index']:03d}.parquet"
        assert index in pq.read_table(tmp_path / path)["episode_index"].to_pylist()


def test_existing_folder_is_refused_and_untouched(tmp_path: Path, spec_of: Callable) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/precious").touch()
    with pytest.raises(DataError, match=r"already exists.*--out"):
        LeRobotWriter(tmp_path / "set", spec_of())
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "precious"]


def test_failure_while_recording_leaves_nothing(tmp_path: Path, spec_of: Callable, episodes: list[Episode]) -> None:
    def record_and_fail() -> None:
        with LeRobotWriter(tmp_path / "set", spec_of()) as writer:
            writer.add_episode(episodes[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_recording_without_episodes_leaves_nothing(tmp_path: Path, spec_of: Callable) -> None:
    with pytest.raises(DataError, match="no episode"):
        write(tmp_path / "set", spec_of(), [])
    assert list(tmp_path.iterdir()) == []


def test_kill_while_recording_leaves_no_dataset_and_the_next_recording_names_the_rest(
    tmp_path: Path, spec_of: Callable, episodes: list[Episode], caplog: pytest.LogCaptureFixture
) -> None:
    script = f"""
        import os, signal, numpy as np
        from data_pipelines.recording.lerobot_format import DatasetSpec
        from data_pipelines.recording.lerobot_writer import Episode, LeRobotWriter
        from data_pipelines.recording.video_encoder import VideoSettings
        spec = DatasetSpec(cameras=("a",), height=32, width=32, state_names=("x",), action_names=("u",),
                           video=VideoSettings(fps=10), robot_type="r")
        episode = Episode(images={{"a": np.zeros((5, 32, 32, 3), np.uint8)}}, state=np.zeros((5, 1), np.float32),
                          actions=np.zeros((5, 1), np.float32), success=np.zeros(5, bool), prompt="p")
        with LeRobotWriter({str(tmp_path / "set")!r}, spec) as writer:
            writer.add_episode(episode)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=root, capture_output=True, check=False)
    assert result.returncode == -9, result.stderr.decode()
    assert not (tmp_path / "set").exists()
    (leftover,) = tmp_path.iterdir()
    write(tmp_path / "set", spec_of(), episodes)
    assert str(leftover) in caplog.text
    assert (tmp_path / "set/meta/info.json").exists()


def test_disagreeing_episode_is_refused_by_name(tmp_path: Path, spec_of: Callable, episodes: list[Episode]) -> None:
    good = episodes[1]
    actions = good.actions.copy()
    actions[3, 0] = np.nan
    cases = {
        r"success is bool\[16\], expected bool\[15\]": replace(good, actions=good.actions[1:], state=good.state[1:]),
        r"state is float64": replace(good, state=good.state.astype(np.float64)),
        r"cameras \['left'\]: expected \['left', 'top'\]": replace(good, images={"left": good.images["left"]}),
        r"not finite": replace(good, actions=actions),
        r"no frames": replace(good, actions=good.actions[:0]),
    }

    def add_all() -> None:
        with LeRobotWriter(tmp_path / "set", spec_of()) as writer:
            for message, episode in cases.items():
                with pytest.raises(DataError, match=message):
                    writer.add_episode(episode)
            assert writer.add_episode(good) == 0

    add_all()
    assert len(episode_rows(tmp_path / "set")) == 1
