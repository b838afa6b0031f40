import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from data_pipelines.index import build_index, list_windows, split_episodes
from data_pipelines.sources.source import EpisodeRecord, Feature
from wamjax.config.schema import DataConfig, RunConfig
from wamjax.errors import DataError

MakeConfig = Callable[..., RunConfig]


@dataclasses.dataclass
class MemorySource:
    """A ``Source`` of columns in memory; the index must not ask for frames."""

    episodes: list[EpisodeRecord]
    values: dict[int, npt.NDArray[np.float32]]
    broken: Mapping[int, str] = dataclasses.field(default_factory=dict)
    path: Path = Path("memory")
    format: str = "memory"
    fps: float = 30.0
    cameras: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("observation.state", "action")
    features: Mapping[str, Feature] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ("a", "b")
    keeps_frames: bool = False

    def find_broken(self) -> dict[int, str]:
        return dict(self.broken)

    def column(self, key: str, episode: int) -> npt.NDArray[np.float32]:
        return self.values[episode]

    def frames(self, camera: str, episode: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        raise AssertionError("the index decodes nothing")

    def fingerprint(self) -> str:
        return "0"


def make_source(lengths: list[int], tasks: list[str] | None = None, **fields: object) -> MemorySource:
    tasks = tasks or ["a"] * len(lengths)
    records = [EpisodeRecord(index=i, length=n, task=t) for i, (n, t) in enumerate(zip(lengths, tasks, strict=True))]
    values = {i: np.zeros((n, 2), np.float32) for i, n in enumerate(lengths)}
    return MemorySource(records, values, **fields)  # pyright: ignore[reportArgumentType] - the test's own overrides


def test_windows_are_all_starts_with_one_whole_block(make_config: MakeConfig) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        stride, frame_stride = int(rng.integers(1, 5)), int(rng.choice([2, 4]))
        config = make_config(Path("x"), window_stride=stride, frame_stride=frame_stride)
        lengths = rng.integers(1, 40, size=5)
        windows = list_windows([EpisodeRecord(index=i, length=int(n), task="a") for i, n in enumerate(lengths)], config)
        expected = []
        for episode, length in enumerate(lengths):
            for start in range(0, int(length), stride):
                last_frame_of_first_block = start + 2 * frame_stride  # two frames per block
                if last_frame_of_first_block < length:
                    expected.append((episode, start))
        assert list(zip(windows.episodes.tolist(), windows.starts.tolist(), strict=True)) == expected


def test_split_holds_out_the_share_of_every_task() -> None:
    records = [EpisodeRecord(index=i, length=9, task="ab"[i < 40]) for i in range(60)]
    train, validation = split_episodes(records, DataConfig(validation_fraction=0.1))
    assert sorted((*train, *validation)) == list(range(60))
    assert sum(i < 40 for i in validation) == 4
    assert sum(i >= 40 for i in validation) == 2


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.01, 1), (0.999, 9), (1.0, 9)])
def test_split_holds_out_at_least_one_and_never_all(fraction: float, expected: int) -> None:
    records = [EpisodeRecord(index=i, length=9, task="a") for i in range(10)]
    assert len(split_episodes(records, DataConfig(validation_fraction=fraction))[1]) == expected


def test_split_of_a_single_episode_keeps_it_for_training() -> None:
    assert split_episodes([EpisodeRecord(index=3, length=9, task="a")], DataConfig()) == ((3,), ())


def test_split_changes_with_the_seed_and_not_with_order_or_other_tasks() -> None:
    records = [EpisodeRecord(index=i, length=9, task="a") for i in range(50)]
    others = [EpisodeRecord(index=i, length=9, task="b") for i in range(50, 90)]
    held_out = [set(split_episodes(records, DataConfig(split_seed=seed))[1]) for seed in range(20)]
    assert len({frozenset(episodes) for episodes in held_out}) > 15
    together = split_episodes([*others, *reversed(records)], DataConfig(split_seed=0))[1]
    assert {i for i in together if i < 50} == held_out[0]


def test_losing_an_episode_moves_at_most_one_other_across_the_split() -> None:
    records = [EpisodeRecord(index=i, length=9, task="a") for i in range(40)]
    before = set(split_episodes(records, DataConfig())[1])
    for lost in range(40):
        after = set(split_episodes([r for r in records if r.index != lost], DataConfig())[1])
        assert len((before - {lost}) ^ after) <= 1


def test_nan_within_the_budget_is_quarantined_with_its_place(make_config: MakeConfig) -> None:
    source = make_source([20] * 20)
    source.values[7][3, 1] = np.nan
    source.values[7][5, 0] = np.inf
    index = build_index(source, make_config(Path("x"), broken_budget=0.05))
    assert index.quarantined == {7: "observation.state is not finite at step 3, dim 1 (2 such values)"}
    assert 7 not in (*index.train_episodes, *index.validation_episodes)
    assert 7 not in np.concatenate([index.train.episodes, index.validation.episodes])


def test_more_broken_than_the_budget_is_refused_naming_the_first(make_config: MakeConfig) -> None:
    broken = {i: f"reason {i}" for i in (2, 5, 9, 11)} | {7: "reason 2", 8: "reason 2"}
    message = (
        "dataset memory: 6 of 20 episodes are broken, more than config.data.broken_budget=0.05 allows: "
        "episode 2 and 2 more: reason 2; episode 5: reason 5; episode 9: reason 9; and 1 more reasons"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        build_index(make_source([20] * 20, broken=broken), make_config(Path("x"), broken_budget=0.05))


def test_episodes_without_room_for_a_block_are_counted_not_lost(make_config: MakeConfig) -> None:
    index = build_index(make_source([20, 4, 20, 20]), make_config(Path("x")))
    assert index.too_short == {1: 4}


def test_dataset_of_short_episodes_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(
        DataError, match=r"no training window: 3 usable episodes, 3 of them not longer than the 4 steps"
    ):
        build_index(make_source([4, 4, 3]), make_config(Path("x")))
