"""A recording is decided by its config alone, keeps what the simulator executed and refuses what cannot be recorded."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from data_pipelines.recording.record import RecordConfig, record_dataset
from wamjax.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"out": ""}, "out is empty.*--out"),
        ({"tasks": ()}, "tasks.*at least one"),
        ({"tasks": ("reach-v2",)}, "unknown task 'reach-v2'.*nearest: reach-v3"),
        ({"episodes": (3, 4)}, r"episodes \(3, 4\).*each of the 1 tasks.*--episodes"),
        ({"episodes": (0,)}, "one positive number"),
        ({"seed": 9_995, "episodes": (6,)}, r"seeds 9995\.\.10000.*held out.*--seed"),
        ({"seed": -1}, r"seeds -1\.\."),
        ({"noise": 1.5}, "noise 1.5.*--noise"),
        ({"size": 97}, "size 97: expected even"),
        ({"max_steps": 501}, "max_steps 501.*--max_steps"),
        ({"max_steps": 490}, r"within 1\.\.488"),
        ({"hold_steps": -1}, "hold_steps -1"),
        ({"action_repeat": 3}, "action_repeat 3.*divisor of 80"),
        ({"crf": 60}, "crf 60"),
    ],
)
def test_config_that_cannot_be_recorded_is_refused_with_its_flag(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        RecordConfig(**{"out": "set", **values})
    assert "\n" not in str(caught.value)


def test_episodes_for_gives_one_number_to_all_or_one_to_each() -> None:
    tasks = ("reach-v3", "push-v3")
    assert [RecordConfig(out="x", tasks=tasks, episodes=(5,)).episodes_for(task) for task in tasks] == [5, 5]
    assert [RecordConfig(out="x", tasks=tasks, episodes=(5, 2)).episodes_for(task) for task in tasks] == [5, 2]


def frames(root: Path) -> dict[str, npt.NDArray]:
    table = pq.read_table(root / "data/chunk-000/file-000.parquet")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


@pytest.mark.sim
def test_same_config_gives_the_same_dataset_and_seeds_do_not_depend_on_their_neighbours(
    simulator_of: Callable, tmp_path: Path
) -> None:
    for name, seed, episodes in (("a", 0, 2), ("b", 0, 2), ("c", 1, 1)):
        summary = record_dataset(RecordConfig(out=str(tmp_path / name), episodes=(episodes,), seed=seed, size=32))
        assert summary.num_episodes == {"reach-v3": episodes}
        assert summary.failed_seeds == {"reach-v3": ()}
        assert summary.num_bytes == sum(path.stat().st_size for path in (tmp_path / name).rglob("*") if path.is_file())
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 7  # info, stats, tasks, episodes, data and one video for each camera
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    both, alone = frames(tmp_path / "a"), frames(tmp_path / "c")
    np.testing.assert_array_equal(both["action"][both["episode_index"] == 1], alone["action"])


@pytest.mark.sim
def test_recorded_actions_replayed_in_the_simulator_visit_the_recorded_states(
    simulator_of: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    record_dataset(RecordConfig(out=str(out), seed=4, episodes=(1,), size=32, max_start_steps=0, noise=0.2))
    table = frames(out)
    with simulator_of(size=16) as sim:
        np.testing.assert_array_equal(sim.reset(4).state, table["observation.state"][0])
        for row in range(len(table["action"]) - 1):
            state, solved = sim.step(table["action"][row])
            np.testing.assert_array_equal(state, table["observation.state"][row + 1])
            assert solved == table["next.success"][row]
    first_success = int(np.argmax(table["next.success"]))
    assert len(table["action"]) == first_success + 1 + 8  # hold_steps after the first success


@pytest.mark.sim
def test_action_repeat_divides_the_frame_rate_and_the_length(simulator_of: Callable, tmp_path: Path) -> None:
    for repeat in (1, 4):
        out = str(tmp_path / str(repeat))
        record_dataset(RecordConfig(out=out, episodes=(1,), size=32, action_repeat=repeat, hold_steps=0, noise=0.0))
    info = json.loads((tmp_path / "4/meta/info.json").read_text())
    assert info["fps"] == 20
    lengths = {repeat: len(frames(tmp_path / str(repeat))["action"]) for repeat in (1, 4)}
    assert lengths[4] == pytest.approx(lengths[1] / 4, abs=4)


@pytest.mark.sim
def test_unsolved_task_is_refused_and_leaves_nothing(simulator_of: Callable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no episode of reach-v3 was solved within 3 steps.*--max_steps"):
        record_dataset(RecordConfig(out=str(tmp_path / "set"), max_steps=3, size=32, episodes=(2,)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sim
def test_failed_seeds_are_left_out_and_named(simulator_of: Callable, tmp_path: Path) -> None:
    # Near goals are reached within this many steps, far ones are not.
    config = RecordConfig(out=str(tmp_path / "set"), episodes=(6,), max_steps=36, size=32, hold_steps=0)
    summary = record_dataset(config)
    failed = summary.failed_seeds["reach-v3"]
    assert 0 < len(failed) < 6
    assert summary.num_episodes["reach-v3"] == 6 - len(failed)
    assert f"{len(failed)} failed (seeds {', '.join(map(str, failed))}, not written)" in str(summary)
    assert len(set(frames(tmp_path / "set")["episode_index"])) == 6 - len(failed)
