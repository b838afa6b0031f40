"""Prompts that are dropped in training: by their place in the stream, and nothing else of a sample changes."""

from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.buckets.pipeline import find_bucket, open_bucket_windows
from data_pipelines.latents.pipeline import LatentPipeline, open_latents, open_text_cache
from tests.data_pipelines.latent_folders import fill_latents, latent_run
from tests.flops.steps import vary
from wamjax.batch import WamBatch
from wamjax.config.buckets import BucketConfig, BucketsConfig
from wamjax.errors import DataError

SHORT = BucketConfig(name="short", canvas=(32, 64), num_frames=5)


def test_prompts_are_dropped_by_their_place_in_the_stream(dataset_path: Path, tmp_path: Path) -> None:
    in_buckets = latent_run(dataset_path, tmp_path, BucketsConfig(sets=(SHORT,), batch_multiple=2))
    whole = vary(find_bucket(in_buckets, "short"), data={"latents": str(tmp_path)})
    fill_latents(whole, open_bucket_windows(in_buckets, "short"), tmp_path / "latents")
    whole = vary(whole, data={"latents": str(tmp_path / "latents")})
    config = vary(whole, objective={"prompt_dropout": 0.3})
    with pytest.raises(DataError, match=r"the embeddings of 1 of .* are missing, first that of ''"):
        open_latents(config, workdir=None)
    kept = open_latents(whole, workdir=None)
    texts = open_text_cache(tmp_path / "latents", kept.manifest.encoders["text"])
    nothing = np.full((1, 8), 7.0, np.float32)
    texts.embed([""], lambda prompts: [nothing for _ in prompts])
    pipeline = open_latents(config, workdir=None)

    def read(hosts: int, pipeline: LatentPipeline, first: int = 0) -> list[WamBatch]:
        size = config.train.global_batch_size
        streams = [pipeline.train_stream(host, hosts, first * size) for host in range(hosts)]
        parts = [[next(stream) for stream in streams] for _ in range(40 - first)]
        for stream in streams:
            stream.close()
        return [jax.tree.map(lambda *rows: np.concatenate(rows), *rows) for rows in parts]

    batches = read(1, pipeline)
    jax.tree.map(np.testing.assert_array_equal, read(2, pipeline), batches)
    jax.tree.map(np.testing.assert_array_equal, read(1, pipeline, first=25), batches[25:])
    text = np.concatenate([batch.text for batch in batches]).astype(np.float32)
    is_dropped = (text[:, 0] == 7.0).all(-1)
    assert (text[is_dropped, 1:] == 0).all()
    assert abs(is_dropped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(text))
    others = read(1, kept)
    for batch, other in zip(batches, others, strict=True):  # nothing else differs
        jax.tree.map(np.testing.assert_array_equal, vary(batch, text=None), vary(other, text=None))
    kept_text = np.concatenate([batch.text for batch in others]).astype(np.float32)
    np.testing.assert_array_equal(text[~is_dropped], kept_text[~is_dropped])
    # Another epoch, another draw: no sample is without a prompt for ever.
    rows = np.concatenate([batch.provenance for batch in batches])
    fates = {tuple(row): set(is_dropped[(rows == row).all(1)]) for row in rows}
    assert any(len(fate) == 2 for fate in fates.values())
    held_out = pipeline.validation_windows().batch(range(2)).text.astype(np.float32)
    assert (held_out[:, 0] != 7.0).all()
