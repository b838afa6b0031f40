import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from data_pipelines.inspection import CLIP_FRAMES, NUM_CLIPS, find_unusable, inspect_source, usable_episodes
from data_pipelines.sources.source import EpisodeRecord, Feature
from wamjax.errors import DataError


@dataclasses.dataclass
class MemorySource:
    """A ``Source`` of one column, with one camera whose frames of some episodes cannot be decoded."""

    path: Path
    values: dict[int, npt.NDArray[np.float32]]
    broken: Mapping[int, str] = dataclasses.field(default_factory=dict)
    undecodable: frozenset[int] = frozenset()
    columns: tuple[str, ...] = ("action",)
    format: str = "memory"
    fps: float = 10.0
    cameras: tuple[str, ...] = ("top",)
    features: Mapping[str, Feature] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ("lift", "open")
    keeps_frames: bool = False
    read: list[int] = dataclasses.field(default_factory=list)

    @property
    def episodes(self) -> list[EpisodeRecord]:
        return [EpisodeRecord(index=i, length=len(v), task="lift") for i, v in self.values.items()]

    def find_broken(self) -> dict[int, str]:
        return dict(self.broken)

    def column(self, key: str, episode: int) -> npt.NDArray[np.float32]:
        assert episode not in self.broken
        return self.values[episode]

    def frames(self, camera: str, episode: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        if episode in self.undecodable:
            raise DataError(f"dataset {self.path}: episode {episode}: {self.path}/x.mp4 cannot be decoded")
        self.read += steps.tolist()
        return np.zeros((len(steps), 4, 4, 3), np.uint8)

    def fingerprint(self) -> str:
        return "0"


def noise(seed: int, length: int = 40) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, (length, 2)).astype(np.float32)


def test_sound_source_has_nothing_to_report(tmp_path: Path) -> None:
    source = MemorySource(tmp_path, {i: noise(i) for i in range(3)})
    found = json.loads(json.dumps(inspect_source(source)))
    assert (found["format"], found["episodes"], found["frames"], found["fps"]) == ("memory", 3, 120, 10)
    assert (found["cameras"], found["quarantined"], found["quarantined_count"]) == (["top"], [], 0)
    assert (found["idle_frames"], found["duplicates"], found["outliers"]) == (0, [], {"action": 0})
    assert found["tasks"]["lift"] == {"episodes": 3, "frames": 120, "shortest": 40, "longest": 40, "quarantined": 0}
    assert found["tasks"]["open"]["episodes"] == 0
    assert found["throughput"]["frames"] == len(source.read) == 3 * CLIP_FRAMES


def test_idle_steps_duplicates_and_outliers_are_counted(tmp_path: Path) -> None:
    values = {i: noise(i) for i in range(5)}
    values[1][10:14] = values[1][10]  # three steps at which nothing moves
    values[3] = values[0].copy()
    values[4][7, 1] = 500.0
    found = inspect_source(MemorySource(tmp_path, values))
    assert found["idle_frames"] == 3
    assert found["duplicates"] == [[0, 3]]
    assert found["outliers"] == {"action": 1}


def test_every_kind_of_unusable_episode_is_listed_with_its_reason(tmp_path: Path) -> None:
    values = {i: noise(i) for i in range(4)}
    values[1][3, 1] = np.nan
    source = MemorySource(tmp_path, values, broken={2: "a file is gone"}, undecodable=frozenset({3}))
    found = inspect_source(source)
    assert found["quarantined_count"] == 3
    assert found["quarantined"] == [
        {"episode": 1, "reason": "action is not finite at step 3, dim 1 (1 such values)"},
        {"episode": 2, "reason": "a file is gone"},
        {"episode": 3, "reason": "x.mp4 cannot be decoded"},
    ]
    assert found["tasks"]["lift"]["quarantined"] == 3


def test_source_without_actions_is_inspected(tmp_path: Path) -> None:
    found = inspect_source(MemorySource(tmp_path, {i: noise(i) for i in range(20)}, columns=()))
    assert (found["values"], found["idle_frames"], found["duplicates"]) == ({}, None, None)
    assert found["throughput"]["frames"] == NUM_CLIPS * CLIP_FRAMES


def test_source_with_nothing_usable_is_inspected_but_has_no_statistics(tmp_path: Path) -> None:
    source = MemorySource(tmp_path, {0: noise(0)}, broken={0: "gone"})
    assert inspect_source(source)["throughput"]["frames_per_s"] is None
    assert find_unusable(source) == {0: "gone"}
    with pytest.raises(DataError, match="has no episode that can be read; see wamjax data inspect"):
        usable_episodes(source)


def test_bytes_count_the_files_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file").write_bytes(b"x" * 123)
    assert inspect_source(MemorySource(tmp_path, {0: noise(0)}))["bytes"] == 123
    shutil.rmtree(tmp_path / "sub")


class RobotSource(MemorySource):
    """States and actions of two dims; the state follows the action of the step before."""

    def __init__(self, path: Path, *, signs: tuple[int, int], commands_change: bool) -> None:
        super().__init__(path, {i: noise(i) for i in range(3)}, columns=("observation.state", "action"))
        self._signs, self._commands_change = np.array(signs, np.float32), commands_change

    def column(self, key: str, episode: int) -> npt.NDArray[np.float32]:
        action = self.values[episode]
        if key == "action":
            return action * self._signs
        followed = np.cumsum(action, axis=0) if self._commands_change else action
        return np.concatenate([np.zeros((1, 2), np.float32), followed[:-1]])


@pytest.mark.parametrize("commands_change", [True, False])
@pytest.mark.parametrize(("signs", "flipped"), [((1, 1), []), ((1, -1), [1]), ((-1, -1), [0, 1])])
def test_actions_against_the_motion_are_named(
    tmp_path: Path, signs: tuple[int, int], flipped: list[int], commands_change: bool
) -> None:
    source = RobotSource(tmp_path, signs=signs, commands_change=commands_change)
    found = inspect_source(source)["flips"]
    assert [entry["action"] for entry in found] == [f"action[{dim}]" for dim in flipped]
    assert [entry["state"] for entry in found] == [f"observation.state[{dim}]" for dim in flipped]
    assert all(entry["correlation"] < -0.5 for entry in found)
