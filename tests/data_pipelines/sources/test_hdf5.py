"""LIBERO-style HDF5, written here by h5py in the layout of LIBERO's scripts/create_dataset.py."""

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_pipelines.sources.formats import open_source
from wamjax.errors import DataError

AGENT, HAND = "obs/agentview_rgb", "obs/eye_in_hand_rgb"
SIZE = 16


def write_file(path: Path, *, task: str, lengths: list[int], rate: Any = 20, convention: str = "opengl") -> Path:
    """Row r of agentview is r + 20 at step 0, one brighter each step, top row first before the convention's turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"problem_name": "x", "language_instruction": task})
        data.attrs["env_args"] = json.dumps({"type": 1, "env_kwargs": {"control_freq": rate}})
        data.attrs["macros_image_convention"] = convention
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            steps = np.arange(length)
            demo["actions"] = np.stack([steps + 100.0 * number, -steps], -1)
            demo["dones"] = np.zeros(length, np.uint8)
            demo["obs/ee_states"] = np.stack([steps / 8, steps * 0, steps * 0 + 1], -1)
            rows = np.arange(SIZE)[None, :, None, None] + 20 + steps[:, None, None, None]
            image = np.broadcast_to(rows, (length, SIZE, SIZE, 3)).astype(np.uint8)
            demo["obs/agentview_rgb"] = image[:, ::-1] if convention == "opengl" else image
            demo["obs/eye_in_hand_rgb"] = np.full((length, SIZE, SIZE, 3), 100 + number, np.uint8)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_file(tmp_path / "suite/open_demo.hdf5", task="open the drawer", lengths=[5] * 11)
    write_file(tmp_path / "suite/pour_demo.hdf5", task="pour the tea", lengths=[8, 4], convention="opencv")
    return tmp_path


def test_demonstrations_read_as_they_were_written(dataset: Path) -> None:
    source = open_source(dataset)
    assert (source.format, source.fps, source.cameras) == ("LIBERO HDF5", 20.0, (AGENT, HAND))
    assert source.columns == ("actions", "obs/ee_states")
    assert source.tasks == ("open the drawer", "pour the tea")
    assert [episode.length for episode in source.episodes] == [5] * 11 + [8, 4]
    assert source.find_broken() == {}
    for episode, number in ((2, 2), (10, 10), (12, 1)):  # demo_10 comes after demo_9, not after demo_1
        steps = np.arange(source.episodes[episode].length)
        np.testing.assert_array_equal(source.column("actions", episode)[:, 0], steps + 100.0 * number)
        np.testing.assert_array_equal(source.frames(HAND, episode, steps[1:3]), 100 + number)
        assert source.column("obs/ee_states", episode).dtype == np.float32


def test_frames_of_both_image_conventions_have_the_top_row_first(dataset: Path) -> None:
    source = open_source(dataset)
    for episode in (0, 11):
        frames = source.frames(AGENT, episode, np.array([0, 3]))
        np.testing.assert_array_equal(frames[:, :, 0, 0], np.arange(SIZE) + 20 + np.array([[0], [3]]))


def test_demonstrations_with_missing_or_short_arrays_are_quarantined(dataset: Path) -> None:
    with h5py.File(dataset / "suite/pour_demo.hdf5", "a") as file:
        del file["data/demo_0/obs/ee_states"]
        del file["data/demo_1/obs/agentview_rgb"]
        file["data/demo_1/obs/agentview_rgb"] = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    assert open_source(dataset).find_broken() == {
        11: "suite/pour_demo.hdf5:data/demo_0 has no array 'obs/ee_states'",
        12: "suite/pour_demo.hdf5:data/demo_1 has 3 steps of obs/agentview_rgb and 4 of actions",
    }


def test_truncated_file_is_one_quarantined_episode(dataset: Path) -> None:
    file = dataset / "suite/open_demo.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    source = open_source(dataset)
    assert [episode.length for episode in source.episodes] == [0, 8, 4]
    broken = source.find_broken()
    assert list(broken) == [0]
    assert broken[0].startswith("suite/open_demo.hdf5 cannot be read: ")
    assert "\n" not in broken[0]


def test_file_without_instruction_is_quarantined(dataset: Path) -> None:
    write_file(dataset / "suite/pour_demo.hdf5", task="", lengths=[8])
    assert "demo_0 has no language_instruction" in open_source(dataset).find_broken()[11]


def test_files_of_two_rates_are_refused(dataset: Path) -> None:
    write_file(dataset / "suite/slow_demo.hdf5", task="push", lengths=[3], rate=10)
    with pytest.raises(DataError, match=re.escape("20 in suite/open_demo.hdf5, 10 in suite/slow_demo.hdf5")):
        open_source(dataset)


def test_set_without_a_rate_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "x.hdf5", task="push", lengths=[3], rate=None)
    with pytest.raises(DataError, match=r"has no episode: x\.hdf5 cannot be read: env_args declares control_freq None"):
        open_source(tmp_path)


def test_file_that_breaks_after_opening_is_refused(dataset: Path) -> None:
    source = open_source(dataset)
    (dataset / "suite/open_demo.hdf5").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"episode 3: suite/open_demo\.hdf5: "):
        source.frames(AGENT, 3, np.array([0]))
