import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.mixtures.pipeline import MixturePipeline
from data_pipelines.pipeline import PROMPTS_FILE, Pipeline, build_pipeline
from data_pipelines.recording.lerobot_format import DATA_PATH
from data_pipelines.sources.lerobot import LeRobotDataset
from tests.data_pipelines.conftest import LENGTHS, TASKS
from wamjax.batch import WamBatch, batch_spec
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError, DataError

MakeConfig = Callable[..., RunConfig]
BATCH = 8
DATA_FILE = DATA_PATH.format(chunk_index=0, file_index=0)


def read(
    pipeline: Pipeline | MixturePipeline, shards: int, position: int, count: int, batch: int = BATCH
) -> list[WamBatch]:
    """The next ``count`` global batches, put together from ``shards`` streams side by side."""
    streams = [pipeline.train_stream(shard, shards, position) for shard in range(shards)]
    batches = []
    for number in range(count):
        rows = [next(stream) for stream in streams]
        batches.append(jax.tree.map(lambda *parts: np.concatenate(parts), *rows))
        assert {stream.position for stream in streams} == {position + (number + 1) * batch}
    for stream in streams:
        stream.close()
    return batches


def assert_equal(left: list[WamBatch], right: list[WamBatch]) -> None:
    assert len(left) == len(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def order(batches: list[WamBatch]) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch.provenance.tolist()]


def test_batches_have_the_declared_shapes(dataset_path: Path, make_config: MakeConfig) -> None:
    config = make_config(dataset_path)
    pipeline = build_pipeline(config, workdir=None)
    for batch in (*read(pipeline, 1, 0, 1), pipeline.validation_windows().batch(range(BATCH))):
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
        assert shapes == batch_spec(config, BATCH)


@pytest.mark.parametrize("shards", [2, 4])
def test_global_batches_are_the_same_for_any_number_of_shards(
    dataset_path: Path, make_config: MakeConfig, shards: int
) -> None:
    pipeline = build_pipeline(make_config(dataset_path), workdir=None)
    assert_equal(read(pipeline, shards, 0, 30), read(pipeline, 1, 0, 30))


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (4, 64)])
def test_global_batches_are_the_same_for_any_number_of_threads(
    dataset_path: Path, make_config: MakeConfig, threads: int, prefetch: int
) -> None:
    usual = build_pipeline(make_config(dataset_path), workdir=None)
    other = build_pipeline(make_config(dataset_path, num_threads=threads, prefetch=prefetch), workdir=None)
    assert_equal(read(other, 1, 0, 10), read(usual, 1, 0, 10))


@pytest.mark.parametrize(("step", "shards_before", "shards_after"), [(1, 1, 1), (7, 4, 1), (16, 1, 2), (33, 2, 4)])
def test_stream_resumed_anywhere_goes_on_as_the_uninterrupted_one(
    dataset_path: Path, make_config: MakeConfig, step: int, shards_before: int, shards_after: int
) -> None:
    config = make_config(dataset_path)
    pipeline = build_pipeline(config, workdir=None)
    whole = read(pipeline, 1, 0, step + 3)
    first = pipeline.train_stream(0, shards_before)
    for _ in range(step):
        next(first)
    position = first.position
    first.close()
    resumed = read(build_pipeline(config, workdir=None), shards_after, position, 3)
    assert_equal(resumed, whole[step:])


@pytest.mark.parametrize("shards", [1, 2])
def test_stream_resumed_with_another_batch_size_goes_on_with_the_next_sample(
    dataset_path: Path, make_config: MakeConfig, shards: int
) -> None:
    pipeline = build_pipeline(make_config(dataset_path), workdir=None)
    sequence = order(read(pipeline, 1, 0, 10))
    halved = build_pipeline(make_config(dataset_path, batch=4), workdir=None)
    streams = [halved.train_stream(shard, shards, 3 * BATCH + 2) for shard in range(shards)]
    found = [tuple(row) for _ in range(5) for stream in streams for row in next(stream).provenance.tolist()]
    for stream in streams:
        stream.close()
    assert found == sequence[3 * BATCH + 2 :][: len(found)]


def test_every_epoch_reads_every_training_window_once_and_no_held_out_episode(
    dataset_path: Path, make_config: MakeConfig
) -> None:
    pipeline = build_pipeline(make_config(dataset_path), workdir=None)
    windows = {
        (0, int(episode), int(start))
        for episode, start in zip(pipeline.index.train.episodes, pipeline.index.train.starts, strict=True)
    }
    sequence = order(read(pipeline, 1, 0, -(-2 * len(windows) // BATCH)))
    epochs = sequence[: len(windows)], sequence[len(windows) : 2 * len(windows)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch))
        assert set(epoch) == windows
    assert epochs[0] != epochs[1]
    held_out = set(pipeline.index.validation_episodes)
    assert len(held_out) == 2
    assert held_out.isdisjoint(episode for _, episode, _ in sequence)


def test_shuffle_seed_changes_the_order_and_not_the_split(dataset_path: Path, make_config: MakeConfig) -> None:
    one, other = (build_pipeline(make_config(dataset_path, shuffle_seed=seed), workdir=None) for seed in (0, 1))
    assert order(read(one, 1, 0, 3)) != order(read(other, 1, 0, 3))
    assert one.index.validation_episodes == other.index.validation_episodes


def test_normalisation_is_computed_from_training_episodes_only(dataset_path: Path, make_config: MakeConfig) -> None:
    pipeline = build_pipeline(make_config(dataset_path), workdir=None)
    assert pipeline.normalisation.episodes == len(pipeline.index.train_episodes) == 6
    assert pipeline.normalisation.steps == sum(LENGTHS[i] for i in pipeline.index.train_episodes)


def test_run_keeps_its_normalisation_and_prompts(dataset_path: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(dataset_path)
    first = build_pipeline(config, workdir=tmp_path)
    assert first.prompts == TASKS
    assert json.loads((tmp_path / PROMPTS_FILE).read_text()) == list(TASKS)
    # What is saved is what is used: with the table turned round, prompt ids follow it.
    (tmp_path / PROMPTS_FILE).write_text(json.dumps(TASKS[::-1]))
    again = build_pipeline(config, workdir=tmp_path)
    assert again.prompts == TASKS[::-1]
    assert again.normalisation == first.normalisation
    before, after = first.validation_windows().batch([0, 40]), again.validation_windows().batch([0, 40])
    np.testing.assert_array_equal(before.prompt_id, 1 - after.prompt_id)


def test_dataset_that_changed_since_the_run_began_is_refused(
    dataset_path: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(dataset_path, tmp_path / "set"))
    build_pipeline(make_config(path), workdir=tmp_path)
    table = pq.read_table(path / DATA_FILE)
    halved = pa.array([[0.5 * value for value in row] for row in table["action"].to_pylist()], pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", halved), path / DATA_FILE)
    with pytest.raises(DataError, match=r"fingerprint .* it changed since the run began"):
        build_pipeline(make_config(path), workdir=tmp_path)


def test_batch_size_that_does_not_divide_by_the_shards_is_refused(dataset_path: Path, make_config: MakeConfig) -> None:
    pipeline = build_pipeline(make_config(dataset_path), workdir=None)
    with pytest.raises(ConfigError, match=r"config\.train\.global_batch_size=8 does not divide by the 3 shards"):
        pipeline.train_stream(0, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": ()}, "config.data.views is empty: place at least one camera of "),
        ({"views": ()}, "it has observation.images.left, observation.images.right"),
        ({"action_dim": 1}, "feature 'action' has 2 dims, config.data.action_dim=1 has no room for them"),
        ({"state_dim": 2}, "feature 'observation.state' has 3 dims, config.data.state_dim=2 has no room for them"),
    ],
)
def test_config_that_does_not_fit_the_dataset_is_refused(
    dataset_path: Path, make_config: MakeConfig, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        build_pipeline(make_config(dataset_path, **fields), workdir=None)
    assert "\n" not in str(caught.value)


def test_nan_in_actions_is_refused_naming_episode_and_step(
    dataset_path: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(dataset_path, tmp_path / "set"))
    table = pq.read_table(path / DATA_FILE)
    actions = table["action"].to_pylist()
    actions[LENGTHS[0] + 2][1] = float("nan")
    column = pa.array(actions, pa.list_(pa.float32(), 2))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path / DATA_FILE)
    with pytest.raises(
        DataError, match=r"1 of 8 .*: episode 1: action is not finite at step 2, dim 1 \(1 such values\)$"
    ):
        build_pipeline(make_config(path), workdir=None)


@pytest.mark.parametrize("decoded_frames_mib", [0, 64])
def test_file_that_breaks_after_indexing_ends_the_stream_for_good(
    write_dataset: Callable[..., Path], make_config: MakeConfig, tmp_path: Path, decoded_frames_mib: int
) -> None:
    path = write_dataset(tmp_path / "set", video_file_bytes=6000)
    config = make_config(path, batch=1, decoded_frames_mib=decoded_frames_mib)
    _, broken, _ = order(read(build_pipeline(config, workdir=None), 1, 0, 1, batch=1))[0]
    pipeline = build_pipeline(config, workdir=None)
    file, _ = LeRobotDataset(path).locate("observation.images.right", broken)
    file.write_bytes(file.read_bytes()[:300])
    stream = pipeline.train_stream(0, 1)
    for _ in range(20):  # however often it is asked, no other sample in its place, though most could be read
        with pytest.raises(DataError, match=rf"dataset {path}: episode {broken}: .*{file.name} cannot be decoded: \w+"):
            next(stream)
    assert stream.position == 0
    stream.close()


def test_summary_is_json_and_adds_up(dataset_path: Path, make_config: MakeConfig) -> None:
    pipeline = build_pipeline(make_config(dataset_path), workdir=None)
    summary = json.loads(json.dumps(pipeline.summary))
    assert summary == pipeline.summary
    assert summary["episodes"] == 8
    assert summary["steps"] == sum(LENGTHS)
    assert summary["train"]["windows"] == len({tuple(row) for row in order(read(pipeline, 1, 0, 40))})
    assert summary["tasks"] == {task: {"train_episodes": 3, "validation_episodes": 1} for task in TASKS}
