import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines.buckets.assign import Chosen
from data_pipelines.buckets.pipeline import BucketPipeline, open_training_data
from data_pipelines.indexing.job import make_index
from data_pipelines.mixtures.order import BLOCK
from data_pipelines.mixtures.settings import resolve_mixture
from data_pipelines.pipeline import Pipeline, build_pipeline
from data_pipelines.sources.formats import open_source
from data_pipelines.windows import WindowReader
from tests.data_pipelines.conftest import LENGTHS
from tests.data_pipelines.sources.test_clips import encode, write_folder
from wamjax.batch import WamBatch, batch_spec
from wamjax.config.buckets import BucketConfig, BucketsConfig
from wamjax.config.schema import RunConfig
from wamjax.config.sources import FilterConfig, MixtureConfig, MixtureSource, MixtureStage
from wamjax.config.validation import check_values
from wamjax.errors import ConfigError, DataError
from wamjax.layout.buckets import count_tokens, shortest_windows, split_buckets

MakeConfig = Callable[..., RunConfig]
LONG, SHORT, HUGE = (
    BucketConfig(name="long", canvas=(32, 64), num_frames=9),
    BucketConfig(name="short", canvas=(32, 64), num_frames=5),
    BucketConfig(name="huge", canvas=(64, 128), num_frames=5),
)
STRIDE = 2


def open_buckets(config: RunConfig, workdir: Path | None = None) -> BucketPipeline:
    pipeline = open_training_data(config, workdir=workdir)
    assert isinstance(pipeline, BucketPipeline)
    return pipeline


def read(pipeline: BucketPipeline, hosts: int, begin: int, count: int) -> list[WamBatch]:
    """Global batches ``begin`` .. ``begin + count - 1``, hosts side by side."""
    streams = [pipeline.train_stream(host, hosts, begin) for host in range(hosts)]
    batches = []
    for _ in range(count):
        parts = [next(stream) for stream in streams]
        batches.append(jax.tree.map(lambda *rows: np.concatenate(rows), *parts))
    assert {stream.position for stream in streams} == {begin + count}
    for stream in streams:
        stream.close()
    return batches


def assert_same(found: list[WamBatch], expected: list[WamBatch]) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def windows_of(pipeline: BucketPipeline, name: str) -> WindowReader | Chosen:
    """Returns the training windows of a bucket of one dataset."""
    part = pipeline.parts[name]
    assert isinstance(part, Pipeline)
    return part.training_windows()


@pytest.fixture
def bucketed(dataset_path: Path, make_config: MakeConfig) -> Callable[..., RunConfig]:
    def build(*buckets: BucketConfig, path: Path = dataset_path, data: dict[str, Any] | None = None, **own: Any) -> Any:
        chosen = BucketsConfig(sets=buckets or (LONG, SHORT), **own)
        config = make_config(path, buckets=chosen, video_statistics="none", **(data or {}))
        check_values(config)
        return config

    return build


def test_windows_go_to_the_longest_bucket_they_fill_and_all_go_somewhere(bucketed: Callable[..., RunConfig]) -> None:
    config = bucketed()
    pipeline = open_buckets(config)
    long, short = (windows_of(pipeline, name) for name in ("long", "short"))
    whole = open_training_data(shortest_windows(config), workdir=None)
    assert isinstance(whole, Pipeline)
    assert len(long) + len(short) == len(whole.training_windows())
    seen = set()
    for windows, frames in ((long, 9), (short, 5)):
        for sample in windows.read(range(len(windows))):
            assert sample.frame_mask.shape == (frames,)
            _, episode, start = sample.provenance.tolist()
            assert (start + 8 * STRIDE < LENGTHS[episode]) == (frames == 9)
            assert sample.frame_mask.sum() == min(frames, -(-(LENGTHS[episode] - start) // STRIDE))
            seen.add((episode, start))
    assert len(seen) == len(long) + len(short)
    told = {name: part["train_windows"] for name, part in pipeline.summary["buckets"].items()}
    assert told == {"long": len(long), "short": len(short)}
    assert pipeline.summary["train"]["windows"] == len(seen)


def test_whole_clips_never_go_beyond_the_end_and_what_is_too_short_is_counted(
    bucketed: Callable[..., RunConfig],
) -> None:
    config = bucketed(LONG)
    whole = build_pipeline(shortest_windows(config), workdir=None)
    found = whole.assign(split_buckets(config), upsample=False, whole_clips=True)["train"]
    windows, rows = whole.index.train, found.rows["long"]
    ends = {int(e): LENGTHS[int(e)] - 1 - 8 * STRIDE for e in np.unique(windows.episodes)}
    fitting = [i for i, (e, start) in enumerate(zip(windows.episodes, windows.starts, strict=True)) if start <= ends[e]]
    np.testing.assert_array_equal(rows.locate(np.arange(len(rows))), fitting)
    assert found.num_unfit == len(windows) - len(rows) > 0
    assert set(found.unfit.values()) == {"too few frames for long, the shortest bucket of its canvas"}


def test_idle_steps_are_judged_on_the_length_of_each_bucket_with_and_without_an_index(
    bucketed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """The second state is noise: with ``idle_motion`` 1, steps are idle where it moved by less."""
    filters = FilterConfig(max_idle=0.5, idle_motion=1.0)
    config = bucketed(data={"filters": filters})
    make_index(shortest_windows(config), tmp_path / "index", num_workers=1, part_episodes=100)
    indexed = dataclasses.replace(config, data=dataclasses.replace(config.data, index=str(tmp_path / "index")))
    source = open_source(config.data.path)

    def windows(run: RunConfig, split: str) -> dict[str, set[tuple[int, int]]]:
        found = {}
        for name, part in open_buckets(run).parts.items():
            assert isinstance(part, Pipeline)
            assert part._bucket is not None
            rows, table = part._bucket[split], getattr(part.index, split)
            chosen = rows.locate(np.arange(len(rows)))
            found[name] = set(zip(table.episodes[chosen].tolist(), table.starts[chosen].tolist(), strict=True))
        return found

    def is_moving(episode: int, start: int, span: int) -> bool:
        noise = source.column("observation.state", episode)[:, 1]
        steps = range(start, min(start + span + 1, LENGTHS[episode]))
        return sum(t > 0 and abs(noise[t] - noise[t - 1]) <= 1.0 for t in steps) <= 0.5 * len(steps)

    lost = 0
    for split in ("train", "validation"):
        every = windows(bucketed(), split)
        kept = {
            name: {window for window in own if is_moving(*window, span=STRIDE * (8 if name == "long" else 4))}
            for name, own in every.items()
        }
        assert windows(config, split) == windows(indexed, split) == kept
        assert all(0 < len(kept[name]) < len(own) for name, own in every.items() if split == "train")
        lost += sum(len(own) - len(kept[name]) for name, own in every.items())
    assert open_buckets(config).summary["idle_windows"] == lost
    assert open_training_data(shortest_windows(config), workdir=None).summary["idle_windows"] == 0
    nothing = bucketed(data={"filters": dataclasses.replace(filters, max_idle=0.0, idle_motion=99.0)})
    with pytest.raises(
        DataError, match=r"none of its training windows fits a bucket: \d+ are too idle \(config\.data\.f"
    ):
        open_buckets(nothing)


def test_source_without_room_in_a_bucket_is_refused_naming_source_and_bucket(
    bucketed: Callable[..., RunConfig], dataset_path: Path
) -> None:
    sources = tuple(MixtureSource(name=n, path=str(dataset_path), weight=w) for n, w in (("a", 1.0), ("b", 1e-6)))
    config = resolve_mixture(bucketed(data={"mixture": MixtureConfig(sources=sources)}))
    with pytest.raises(
        ConfigError, match=r"^source 'b' of config\.data\.mixture in bucket 'long' has a share of 1e-06"
    ):
        open_buckets(config)


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_global_batches_are_the_same_for_any_number_of_hosts_and_resumed(
    bucketed: Callable[..., RunConfig], hosts: int
) -> None:
    config = bucketed(batch_multiple=8)
    pipeline = open_buckets(config)
    whole = read(pipeline, 1, 0, 7)
    assert_same(read(pipeline, hosts, 0, 3), whole[:3])
    assert_same(read(open_buckets(config), hosts, 4, 3), whole[4:])
    for batch in whole:
        own = pipeline.configs["long" if batch.frame_mask.shape[1] == 9 else "short"]
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
        assert shapes == batch_spec(own, own.train.global_batch_size)
    assert {batch.frame_mask.shape[1] for batch in whole} == {5, 9}


def test_batches_hold_about_as_many_tokens_and_shares_follow_the_windows(bucketed: Callable[..., RunConfig]) -> None:
    configs = split_buckets(bucketed(batch_multiple=2))
    tokens = {name: count_tokens(own) * own.train.global_batch_size for name, own in configs.items()}
    assert configs["long"].train.global_batch_size == 8
    assert configs["short"].train.global_batch_size % 2 == 0
    assert tokens["long"] * 0.8 < tokens["short"] <= tokens["long"]
    equal = split_buckets(bucketed(batch="samples"))
    assert {own.train.global_batch_size for own in equal.values()} == {8}
    pipeline = open_buckets(bucketed())
    windows = {name: len(windows_of(pipeline, name)) for name in pipeline.parts}
    for name, share in pipeline.shares.items():
        assert abs(share - windows[name] / sum(windows.values())) < 3e-4
    assert pipeline.order.shares[0].sum() == BLOCK


def test_an_epoch_of_a_bucket_reads_each_of_its_windows_and_no_held_out_episode(
    bucketed: Callable[..., RunConfig],
) -> None:
    pipeline = open_buckets(bucketed(batch="samples"))
    found: dict[int, list[tuple[int, ...]]] = {9: [], 5: []}
    for batch in read(pipeline, 1, 0, 24):
        found[batch.frame_mask.shape[1]] += [tuple(row) for row in batch.provenance.tolist()]
    for name, frames in (("long", 9), ("short", 5)):
        count = len(windows_of(pipeline, name))
        assert len(found[frames]) > count
        assert len(set(found[frames][:count])) == count
    held_out = {
        int(row[1]) for own in pipeline.validation_windows().values() for row in own.batch(range(len(own))).provenance
    }
    assert held_out
    assert held_out.isdisjoint(row[1] for rows in found.values() for row in rows)


def test_bucket_that_no_window_fits_is_named_and_left_out(
    bucketed: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pipeline = open_buckets(bucketed(HUGE, SHORT))
    assert list(pipeline.parts) == ["short"]
    assert "bucket huge of config.data.buckets has no training window" in caplog.text
    with pytest.raises(DataError, match=r"none of its training windows fits a bucket: episode 0: every bucket is larg"):
        open_buckets(bucketed(HUGE))
    assert list(open_buckets(bucketed(HUGE, upsample=True)).parts) == ["huge"]


def test_videos_of_several_sizes_are_sorted_by_aspect_and_small_ones_counted(
    bucketed: Callable[..., RunConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = [(32, 64), (48, 48), (64, 64), (16, 16), (40, 72), (48, 48)]
    files = {f"{i}.mp4": encode(".mp4", frames=14, level=20 * i, size=size) for i, size in enumerate(sizes)}
    wide = BucketConfig(name="wide", canvas=(32, 64), num_frames=5)
    square = BucketConfig(name="square", canvas=(48, 48), num_frames=5)
    data = {"views": (("video", 0, 0, 32, 64),), "state_key": "", "action_key": "", "validation_fraction": 0.2}
    config = bucketed(wide, square, path=write_folder(tmp_path / "people", files), data=data)
    with caplog.at_level(logging.WARNING):
        pipeline = open_buckets(config)
    assert "fit no bucket and are left out: episode 3: every bucket is larger than its cameras" in caplog.text
    episodes = {
        name: {int(sample.provenance[1]) for sample in windows_of(pipeline, name).read(range(9))}
        for name in pipeline.parts
    }
    assert episodes["wide"] <= {0, 4}
    assert episodes["square"] <= {1, 2, 5}
    summary = json.loads(json.dumps(pipeline.summary))
    assert summary["unfit"]["dataset"]["windows"] == 10
    assert set(summary["buckets"]) == {"wide", "square"}


def test_mixture_in_buckets_keeps_the_weights_of_its_sources(
    bucketed: Callable[..., RunConfig], dataset_path: Path
) -> None:
    sources = tuple(MixtureSource(name=name, path=str(dataset_path), weight=w) for name, w in (("a", 1.0), ("b", 3.0)))
    config = resolve_mixture(bucketed(batch="samples", data={"mixture": MixtureConfig(sources=sources)}))
    pipeline = open_buckets(config)
    read_of = np.zeros(2)
    batches = read(pipeline, 1, 0, 60)
    for batch in batches:
        read_of += np.bincount(batch.provenance[:, 0], minlength=2)
    assert abs(read_of[1] / read_of.sum() - 0.75) < 0.08
    (shares,) = pipeline.summary["shares"]
    assert shares == pytest.approx({"step": 0, "a": 0.25, "b": 0.75}, abs=1e-3)
    long = [batch for batch in batches if batch.frame_mask.shape[1] == 9]
    of_b = sum(int(batch.provenance[:, 0].sum()) for batch in long)
    assert pipeline.parts["long"].count_samples(8 * len(long)) == {"a": 8 * len(long) - of_b, "b": of_b}


def test_index_of_a_run_in_buckets_gives_the_same_batches(bucketed: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = bucketed()
    make_index(shortest_windows(config), tmp_path / "index", num_workers=1, part_episodes=100)
    indexed = dataclasses.replace(config, data=dataclasses.replace(config.data, index=str(tmp_path / "index")))
    assert_same(read(open_buckets(indexed), 1, 0, 3), read(open_buckets(config), 1, 0, 3))


@pytest.mark.parametrize(
    ("buckets", "data", "message"),
    [
        ((BucketConfig(name="odd", canvas=(32, 64), num_frames=6),), {}, r"bucket 'odd' .*num_frames=6; expected 2 n"),
        ((BucketConfig(name="odd", canvas=(32, 63), num_frames=5),), {}, r"view '.*left' .*no whole number of pixels"),
        ((LONG, LONG), {}, r"sets\[1\]\.name = 'long'"),
        ((LONG, dataclasses.replace(LONG, name="b")), {}, r"sets\[1\] \(b\) has the canvas and num_frames of another"),
        ((LONG, HUGE), {"video_statistics": "training_mean"}, r"video_statistics=training_mean is a mean canvas"),
        (
            (LONG,),
            {
                "mixture": MixtureConfig(
                    sources=(MixtureSource(name="a", path="x"),), stages=(MixtureStage(step=2, weights=(1.0,)),)
                )
            },
            r"config\.data\.buckets\.sets and config\.data\.mixture\.stages exclude",
        ),
    ],
)
def test_buckets_that_make_no_sense_are_refused(
    make_config: MakeConfig, buckets: tuple[BucketConfig, ...], data: dict[str, Any], message: str
) -> None:
    config = make_config(Path("x"), **({"buckets": BucketsConfig(sets=buckets), "video_statistics": "none"} | data))
    with pytest.raises(ConfigError, match=message):
        check_values(config)
        split_buckets(config)
