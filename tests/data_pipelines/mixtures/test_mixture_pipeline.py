import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines.mixtures.order import BLOCK
from data_pipelines.mixtures.pipeline import MixturePipeline, open_data
from data_pipelines.mixtures.settings import resolve_mixture
from tests.data_pipelines.conftest import write_episodes
from tests.data_pipelines.sources.test_clips import encode, write_folder
from tests.data_pipelines.test_pipeline import assert_equal, order, read
from wamjax.batch import batch_spec
from wamjax.config.schema import RunConfig
from wamjax.config.sources import MixtureConfig, MixtureSource, MixtureStage
from wamjax.errors import ConfigError

MakeConfig = Callable[..., RunConfig]
BATCH = 8
LEFT, RIGHT = ("observation.images.left", 0, 0, 32, 32), ("observation.images.right", 0, 32, 32, 32)
WIDE_RIGHT = ("observation.images.right", 0, 0, 32, 64)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("mixture")
    return write_episodes(folder / "small", lengths=(14, 20, 17, 16)), write_episodes(
        folder / "large", lengths=(40, 31, 52, 28, 44, 36)
    )


@pytest.fixture
def mixed(paths: tuple[Path, Path], make_config: MakeConfig) -> Callable[..., RunConfig]:
    def build(weights: tuple[float, ...] = (1.0, 3.0), **fields: Any) -> RunConfig:
        sources = (
            MixtureSource(name="small", path=str(paths[0]), weight=weights[0]),
            MixtureSource(name="large", path=str(paths[1]), weight=weights[1], views=(WIDE_RIGHT,), frame_stride=4),
        )
        mixture = MixtureConfig(sources=sources, **fields)
        return resolve_mixture(make_config(Path("unused"), mixture=mixture))

    return build


def open_mixture(config: RunConfig, workdir: Path | None = None) -> MixturePipeline:
    pipeline = open_data(config, workdir=workdir)
    assert isinstance(pipeline, MixturePipeline)
    return pipeline


def test_batches_have_the_declared_shapes_and_say_where_they_are_from(mixed: Callable[..., RunConfig]) -> None:
    config = mixed()
    assert config.data.views == (LEFT, RIGHT, WIDE_RIGHT)
    pipeline = open_mixture(config)
    batch = read(pipeline, 1, 0, 1)[0]
    for found in (batch, pipeline.validation_windows().batch(range(BATCH))):
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found)
        assert shapes == batch_spec(config, BATCH)
    datasets = batch.provenance[:, 0]
    assert set(datasets.tolist()) == {0, 1}
    expected = np.where(datasets[:, None] == 0, [True, True, False], [False, False, True])
    np.testing.assert_array_equal(batch.view_mask, expected)
    np.testing.assert_array_equal(batch.embodiment_id, datasets)


def test_samples_are_those_of_the_source_alone(mixed: Callable[..., RunConfig], paths: tuple[Path, Path]) -> None:
    pipeline = open_mixture(mixed())
    windows: dict[str, Any] = {name: part.training_windows() for name, part in pipeline.parts.items()}
    for batch in read(pipeline, 1, 0, 3):
        for row in range(BATCH):
            dataset, episode, start = batch.provenance[row].tolist()
            source = windows[("small", "large")[dataset]]
            (place,) = np.flatnonzero((source.windows.episodes == episode) & (source.windows.starts == start))
            alone = source[int(place)]
            np.testing.assert_array_equal(alone.video, batch.video[row])
            np.testing.assert_array_equal(alone.actions, batch.actions[row])
            prompt = pipeline.parts[("small", "large")[dataset]].prompts[int(alone.prompt_id)]
            assert pipeline.prompts[int(batch.prompt_id[row])] == prompt


def test_no_held_out_window_is_trained_on_over_an_epoch_of_every_source(mixed: Callable[..., RunConfig]) -> None:
    pipeline = open_mixture(mixed(weights=(1.0, 1.0)))
    samples: Any = pipeline.samples()
    windows = pipeline.num_windows
    # Twice the larger source is more than an epoch of both, whatever the order.
    seen = [pipeline.order.locate(i) for i in range(3 * max(windows.values()))]
    counts = [sum(source == k for source, _ in seen) for k in range(2)]
    assert all(count >= size for count, size in zip(counts, windows.values(), strict=True))
    found = {tuple(samples[i].provenance.tolist()) for i in range(len(seen))}
    assert len(found) == sum(windows.values()), "an epoch reads every training window"
    parts: list[Any] = list(pipeline.parts.values())
    held_out = {(k, int(e)) for k, part in enumerate(parts) for e in part.index.validation_episodes}
    assert len(held_out) == 4
    assert held_out.isdisjoint((dataset, episode) for dataset, episode, _ in found)
    validation = pipeline.validation_windows()
    rows = validation.batch(range(len(validation))).provenance
    assert {(d, e) for d, e, _ in rows.tolist()} == held_out


@pytest.mark.parametrize("shards", [2, 4])
def test_global_batches_are_the_same_for_any_number_of_shards_and_resumed(
    mixed: Callable[..., RunConfig], shards: int
) -> None:
    config = mixed(stages=(MixtureStage(step=2, weights=(1.0, 0.0)),))
    whole = read(open_mixture(config), 1, 0, 5)
    assert_equal(read(open_mixture(config), shards, 0, 5), whole)
    assert_equal(read(open_mixture(config), shards, 3 * BATCH, 2), whole[3:])
    datasets = np.array([row[0] for row in order(whole)])
    assert datasets[: 2 * BATCH].any()
    assert not datasets[2 * BATCH :].any()


def test_order_within_a_source_does_not_depend_on_the_others(mixed: Callable[..., RunConfig]) -> None:
    def of_small(weights: tuple[float, float]) -> list[tuple[int, ...]]:
        rows = order(read(open_mixture(mixed(weights)), 1, 0, 12))
        return [row for row in rows if row[0] == 0]

    few, many = of_small((1.0, 3.0)), of_small((3.0, 1.0))
    assert many[: len(few)] == few
    assert len(few) > 8


@pytest.mark.parametrize(
    ("weighting", "temperature", "power"), [("fixed", 1.0, 0.0), ("hours", 1.0, 1.0), ("hours", 2.0, 0.5)]
)
def test_shares_follow_weights_hours_and_temperature(
    mixed: Callable[..., RunConfig], weighting: str, temperature: float, power: float
) -> None:
    pipeline = open_mixture(mixed((1.0, 2.0), weighting=weighting, temperature=temperature))
    steps = np.array([14 + 20 + 17 + 16, 40 + 31 + 52 + 28 + 44 + 36])
    expected = np.array([1.0, 2.0]) * steps**power
    np.testing.assert_allclose(pipeline.order.shares[0] / BLOCK, expected / expected.sum(), atol=1 / BLOCK)
    (shares,) = pipeline.summary["shares"]
    assert shares["step"] == 0
    assert shares["small"] + shares["large"] == 1.0


def test_counts_by_source_are_those_of_the_stream(mixed: Callable[..., RunConfig]) -> None:
    pipeline = open_mixture(mixed())
    rows = order(read(pipeline, 1, 0, 6))
    for position in (0, 1, 13, 6 * BATCH):
        of_large = sum(dataset for dataset, *_ in rows[:position])
        assert pipeline.count_samples(position) == {"small": position - of_large, "large": of_large}


def test_each_source_keeps_its_own_normalisation_and_all_share_prompts(
    mixed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    pipeline = open_mixture(mixed(), tmp_path)
    assert json.loads((tmp_path / "prompts.json").read_text()) == list(pipeline.prompts)
    kept = [json.loads((tmp_path / "sources" / name / "normalisation.json").read_text()) for name in pipeline.parts]
    assert kept[0]["actions"] != kept[1]["actions"]
    again = open_mixture(mixed(), tmp_path)
    assert_equal(read(again, 1, 0, 2), read(pipeline, 1, 0, 2))
    assert json.loads(json.dumps(pipeline.summary)) == pipeline.summary


def test_video_statistics_are_those_of_the_mixed_stream(mixed: Callable[..., RunConfig]) -> None:
    statistics = open_mixture(mixed()).video_statistics()
    assert statistics is not None
    small_only = open_mixture(mixed((1.0, 0.0))).video_statistics()
    assert small_only is not None
    assert np.abs(statistics.mean - small_only.mean).mean() > 1.0


def test_canvas_of_another_size_is_refused(mixed: Callable[..., RunConfig]) -> None:
    config = mixed()
    spec = dataclasses.replace(config.data.mixture.sources[0], embodiment="metaworld_sawyer", views=None)
    mixture = MixtureConfig(sources=(spec,))
    with pytest.raises(ConfigError, match=r"^source 'small' of config\.data\.mixture"):
        resolve_mixture(dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=mixture)))


def test_video_without_actions_joins_a_robot_and_says_so(
    paths: tuple[Path, Path], make_config: MakeConfig, tmp_path: Path
) -> None:
    files = {f"{i}.mp4": encode(".mp4", frames=30, level=20 + 40 * i) for i in range(3)}
    people = MixtureSource(
        name="people",
        path=str(write_folder(tmp_path / "people", files)),
        views=(("video", 0, 0, 32, 64),),
        state_key="",
        action_key="",
    )
    robot = MixtureSource(name="robot", path=str(paths[0]))
    config = resolve_mixture(make_config(Path("unused"), mixture=MixtureConfig(sources=(robot, people))))
    batch = read(open_mixture(config), 1, 0, 1)[0]
    is_robot = batch.provenance[:, 0] == 0
    assert 0 < is_robot.sum() < BATCH
    np.testing.assert_array_equal(batch.has_action, is_robot)
    assert not batch.actions[~is_robot].any()
    assert not batch.state_mask[~is_robot].any()
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
    assert shapes == batch_spec(config, BATCH)
