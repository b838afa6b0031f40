"""The order of samples as runs of thousands of steps meet it: kills at any point, other host counts, mixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grain
import numpy as np
import pytest

from data_pipelines.mixtures.order import MixtureOrder
from data_pipelines.mixtures.pipeline import _Adapter, _Mixed
from data_pipelines.stream import TrainStream, endless
from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig

MakeConfig = Callable[..., RunConfig]
BATCH, NUM_BATCHES = 8, 1000
WINDOWS = (1531, 401)  # several epochs of both in 8,000 samples


class NumberedWindows:
    """Windows that hold nothing but where they are from."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> WamBatch:
        return WamBatch(provenance=np.array([0, index // 50, index % 50], np.int32))


def mixture() -> grain.MapDataset:
    stages = [(0, (3.0, 1.0)), (600 * BATCH, (1.0, 3.0))]
    rows, places = np.zeros(1, np.int32), np.zeros(1, np.int64)
    adapters = [_Adapter(source=k, embodiment=k, prompt_rows=rows, view_places=places, num_views=1) for k in range(2)]
    streams = [endless(NumberedWindows(count), seed) for seed, count in enumerate(WINDOWS)]
    return _Mixed(streams, MixtureOrder(stages, names=("a", "b"), seed=7), adapters)


def single() -> grain.MapDataset:
    return endless(NumberedWindows(WINDOWS[0]), 0)


def read(samples: Callable[[], grain.MapDataset], config: RunConfig, hosts: int, begin: int, end: int) -> np.ndarray:
    """Provenance of the global batches ``begin`` .. ``end - 1``, hosts side by side: int32 ``[batches, BATCH, 3]``."""
    streams = [
        TrainStream(samples(), config, shard_index=host, shard_count=hosts, position=begin * BATCH)
        for host in range(hosts)
    ]
    batches = [np.concatenate([next(stream).provenance for stream in streams]) for _ in range(end - begin)]
    assert {stream.position for stream in streams} == {end * BATCH}
    for stream in streams:
        stream.close()
    return np.stack(batches)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [single, mixture])
@pytest.mark.parametrize("hosts", [(1, 8), (8, 2), (4, 1), (2, 4)])
def test_thousand_batches_killed_anywhere_and_resumed_on_other_hosts_are_the_same_samples(
    make_config: MakeConfig, samples: Callable[[], grain.MapDataset], hosts: tuple[int, int]
) -> None:
    config = make_config(Path("x"), batch=BATCH)
    whole = read(samples, config, 1, 0, NUM_BATCHES)
    kill = int(np.random.default_rng([*hosts, samples is mixture]).integers(1, NUM_BATCHES))
    parts = [read(samples, config, hosts[0], 0, kill), read(samples, config, hosts[1], kill, NUM_BATCHES)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_every_epoch_of_a_source_reads_each_of_its_windows_once(make_config: MakeConfig) -> None:
    rows = read(mixture, make_config(Path("x"), batch=BATCH), 1, 0, NUM_BATCHES).reshape(-1, 3)
    for source, count in enumerate(WINDOWS):
        ids = [50 * episode + start for dataset, episode, start in rows.tolist() if dataset == source]
        epochs = [ids[i : i + count] for i in range(0, len(ids) - count + 1, count)]
        assert len(epochs) >= 2
        for epoch in epochs:
            assert sorted(epoch) == list(range(count))
        assert epochs[0] != epochs[1]
