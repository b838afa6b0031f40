"""Folders of latents without encoders: every latent of a window is the mean of its pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.latents.job import LatentJob, Worker
from data_pipelines.latents.manifest import TRAIN, VALIDATION, describe
from data_pipelines.latents.pipeline import open_text_cache
from data_pipelines.pipeline import NORMALISATION_FILE, Pipeline
from wamjax.batch import WamBatch, batch_spec
from wamjax.config.backbone import ActionsConfig, BlockConfig, ClipConfig, VideoTransformerConfig
from wamjax.config.buckets import BucketsConfig
from wamjax.config.schema import DataConfig, LayoutConfig, RunConfig, TrainConfig


def latent_run(path: Path, folder: Path | str, buckets: BucketsConfig | None = None) -> RunConfig:
    """A run of a small backbone on the latents in ``folder``, of a dataset as ``conftest`` writes them."""
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
            buckets=buckets or BucketsConfig(),
        ),
        train=TrainConfig(global_batch_size=2),
    )


def fill_latents(config: RunConfig, pipeline: Pipeline, folder: Path) -> Path:
    """Makes the latents of ``config`` from the windows in pixels of ``pipeline``."""
    keys = ("path", "fingerprint", "fps", "quarantined", "too_short", "episodes", "steps")
    manifest = describe(
        config,
        pipeline.index,
        dataset={key: pipeline.summary[key] for key in keys},
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
    shape = batch_spec(config, 4).latents.shape

    def encode(batch: WamBatch) -> dict[str, np.ndarray]:
        return {"latents": np.broadcast_to(batch.video.mean((1, 2, 3, 4)).reshape(-1, 1, 1, 1, 1), shape)}

    list(job.run(Worker(), encode))
    return folder
