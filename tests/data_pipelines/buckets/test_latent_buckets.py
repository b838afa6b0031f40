"""Latents of a run in buckets: a folder for each, made of the windows that go there, read as one stream."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.buckets.pipeline import BucketPipeline, find_bucket, open_bucket_windows, open_training_data
from data_pipelines.latents.job import LatentJob, Worker
from data_pipelines.latents.manifest import TRAIN, VALIDATION, describe
from data_pipelines.latents.pipeline import LatentPipeline, open_text_cache
from data_pipelines.pipeline import NORMALISATION_FILE
from wamjax.batch import WamBatch, batch_spec
from wamjax.config.backbone import ActionsConfig, BlockConfig, ClipConfig, VideoTransformerConfig
from wamjax.config.buckets import BucketConfig, BucketsConfig
from wamjax.config.schema import DataConfig, LayoutConfig, RunConfig, TrainConfig
from wamjax.errors import ConfigError

BUCKETS = (
    BucketConfig(name="short", canvas=(32, 64), num_frames=5),
    BucketConfig(name="long", canvas=(32, 64), num_frames=9),
)


def make_run(path: Path, folder: Path, buckets: BucketsConfig) -> RunConfig:
    return RunConfig(
        backbone=VideoTransformerConfig(
            block=BlockConfig(width=16, num_heads=2, ffn_width=24),
            num_layers=2,
            in_channels=2,
            out_channels=2,
            time_width=8,
            text_width=8,
        ),
        actions=ActionsConfig(modules="category"),
        clip=ClipConfig(num_frames=9, height=32, width=64, stride=(4, 8, 8), text_tokens=6),
        layout=LayoutConfig(num_blocks=2, frames_per_block=1, actions_per_block=4),
        data=DataConfig(
            path=str(path),
            latents=str(folder),
            canvas=(32, 64),
            views=(("observation.images.left", 0, 0, 32, 32), ("observation.images.right", 0, 32, 32, 32)),
            state_dim=4,
            action_dim=3,
            frame_stride=2,
            window_stride=2,
            validation_fraction=0.25,
            num_threads=2,
            buckets=buckets,
        ),
        train=TrainConfig(global_batch_size=2),
    )


def fill(config: RunConfig, name: str, folder: Path) -> int:
    """Makes the latents of a bucket, the mean of a window's pixels in each of them; returns its training windows."""
    own, pipeline = find_bucket(config, name), open_bucket_windows(config, name)
    manifest = describe(
        own,
        pipeline.index,
        dataset={"path": config.data.path, "fingerprint": pipeline.fingerprint, "fps": 30, "steps": 1},
        encoders={"vae": "v", "text": "t"},
        shard_windows=64,
        prompts=pipeline.prompts,
    )
    folder.mkdir(parents=True)
    manifest.save(folder)
    pipeline.normalisation.save(folder / NORMALISATION_FILE)
    open_text_cache(folder, "t").embed(manifest.prompts, lambda prompts: [np.ones((2, 8), np.float32) for _ in prompts])
    readers = {TRAIN: pipeline.reader(pipeline.index.train), VALIDATION: pipeline.reader(pipeline.index.validation)}
    job = LatentJob(folder, manifest, readers, frames_per_latent=4, batch_size=4, num_threads=2)
    shape = batch_spec(own, 4).latents.shape

    def encode(batch: WamBatch) -> dict[str, np.ndarray]:
        return {"latents": np.broadcast_to(batch.video.mean((1, 2, 3, 4)).reshape(-1, 1, 1, 1, 1), shape)}

    list(job.run(Worker(), encode))
    return len(pipeline.index.train)


def test_latents_of_each_bucket_make_one_stream_of_global_batches(dataset_path: Path, tmp_path: Path) -> None:
    config = make_run(dataset_path, tmp_path, BucketsConfig(sets=BUCKETS, batch_multiple=2))
    windows = {bucket.name: fill(config, bucket.name, tmp_path / bucket.name) for bucket in BUCKETS}
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
        open_training_data(make_run(dataset_path, tmp_path, other), workdir=None)
