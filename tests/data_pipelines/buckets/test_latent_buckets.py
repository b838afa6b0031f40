"""Latents of a run in buckets: a folder for each, made of the windows that go there, read as one stream."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines.buckets.pipeline import BucketPipeline, find_bucket, open_bucket_windows, open_training_data
from data_pipelines.indexing.job import make_index
from data_pipelines.latents.pipeline import LatentPipeline
from data_pipelines.mixtures.settings import resolve_mixture
from tests.data_pipelines.latent_folders import fill_latents, latent_run
from wamjax.batch import batch_spec
from wamjax.config.buckets import BucketConfig, BucketsConfig
from wamjax.config.pixel_windows import pixel_windows
from wamjax.config.sources import FilterConfig, MixtureConfig, MixtureSource
from wamjax.errors import ConfigError
from wamjax.layout.buckets import shortest_windows

BUCKETS = (
    BucketConfig(name="short", canvas=(32, 64), num_frames=5),
    BucketConfig(name="long", canvas=(32, 64), num_frames=9),
)


@pytest.mark.parametrize("formulation", ["joint", "video"])
def test_clips_of_a_bucket_are_those_of_its_index(dataset_path: Path, tmp_path: Path, formulation: Any) -> None:
    config = latent_run(dataset_path, tmp_path, BucketsConfig(sets=BUCKETS))
    data = dataclasses.replace(config.data, filters=FilterConfig(max_idle=0.5, idle_motion=1.0))
    config = dataclasses.replace(config, data=data, layout=dataclasses.replace(config.layout, formulation=formulation))
    make_index(pixel_windows(shortest_windows(config)), tmp_path / "index", num_workers=1, part_episodes=100)
    indexed = dataclasses.replace(config, data=dataclasses.replace(data, index=str(tmp_path / "index")))
    for name in ("short", "long"):
        found, expected = (open_bucket_windows(own, name).index for own in (indexed, config))
        assert len(expected.train) > 0
        np.testing.assert_array_equal(found.train.starts, expected.train.starts)
        np.testing.assert_array_equal(found.train.episodes, expected.train.episodes)
        np.testing.assert_array_equal(found.validation.starts, expected.validation.starts)


def test_latents_of_each_bucket_make_one_stream_of_global_batches(dataset_path: Path, tmp_path: Path) -> None:
    config = latent_run(dataset_path, tmp_path, BucketsConfig(sets=BUCKETS, batch_multiple=2))
    windows = {}
    for name in (bucket.name for bucket in BUCKETS):
        pixels = open_bucket_windows(config, name)
        windows[name] = len(pixels.index.train)
        fill_latents(find_bucket(config, name), pixels, tmp_path / name)
    pipeline = open_training_data(config, workdir=None)
    assert isinstance(pipeline, BucketPipeline)
    parts = {name: part for name, part in pipeline.parts.items() if isinstance(part, LatentPipeline)}
    assert {name: len(part.training_windows()) for name, part in parts.items()} == windows
    batches = {}
    for hosts in (1, 2):
        streams = [pipeline.train_stream(host, hosts) for host in range(hosts)]
        found = [[next(stream) for stream in streams] for _ in range(6)]
        batches[hosts] = [jax.tree.map(lambda *rows: np.concatenate(rows), *parts) for parts in found]
        for stream in streams:
            stream.close()
    jax.tree.map(np.testing.assert_array_equal, batches[2], batches[1])
    for batch in batches[1]:
        own = pipeline.configs["short" if batch.latents.shape[1] == 2 else "long"]
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
        assert shapes == batch_spec(own, own.train.global_batch_size)
    assert {batch.latents.shape[1] for batch in batches[1]} == {2, 3}
    other = BucketsConfig(sets=(BUCKETS[0], dataclasses.replace(BUCKETS[1], num_frames=13)), batch_multiple=2)
    with pytest.raises(ConfigError, match=r"data\.buckets\.sets"):
        open_training_data(latent_run(dataset_path, tmp_path, other), workdir=None)


def test_mixture_of_latents_in_buckets_counts_each_source(dataset_path: Path, tmp_path: Path) -> None:
    config = latent_run(dataset_path, "", BucketsConfig(sets=BUCKETS, batch="samples"))
    sources = []
    for name, weight, stride in (("a", 1.0, 2), ("b", 3.0, 1)):
        own = dataclasses.replace(config, data=dataclasses.replace(config.data, frame_stride=stride))
        for bucket in BUCKETS:
            folder = tmp_path / name / bucket.name
            fill_latents(find_bucket(own, bucket.name), open_bucket_windows(own, bucket.name), folder)
        latents = str(tmp_path / name)
        source = MixtureSource(name=name, path=str(dataset_path), latents=latents, weight=weight, frame_stride=stride)
        sources.append(source)
    data = dataclasses.replace(config.data, mixture=MixtureConfig(sources=tuple(sources)))
    pipeline = open_training_data(resolve_mixture(dataclasses.replace(config, data=data)), workdir=tmp_path / "run")
    stream, counts = pipeline.train_stream(0, 1), np.zeros(2, int)
    for position in range(1, 31):
        counts += np.bincount(next(stream).provenance[:, 0], minlength=2)
        assert pipeline.count_samples(position) == {"a": counts[0], "b": counts[1]}
    stream.close()
    assert 0 < counts[0] < counts[1]
    again = open_training_data(resolve_mixture(dataclasses.replace(config, data=data)), workdir=tmp_path / "run")
    assert again.fingerprint == pipeline.fingerprint
    assert set(again.summary["sources"]) == {"a", "b"}
