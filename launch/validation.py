"""The validation losses of a run: on which held-out windows, and their mean."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from absl import logging

from data_pipelines.buckets.pipeline import BucketPipeline, OneSize
from wamjax.config.schema import RunConfig
from wamjax.flops.ledger import Ledger
from wamjax.parallel.mesh import data_shard, make_global_batch
from wamjax.training.hooks import VALIDATION_GROUP
from wamjax.training.program import TrainProgram

Data = OneSize | BucketPipeline


def held_out(config: RunConfig, pipeline: Data) -> dict[str, tuple[Any, int]]:
    """Returns the held-out windows and the batch of each bucket that has some; under ``""`` without buckets."""
    if isinstance(pipeline, BucketPipeline):
        windows = pipeline.validation_windows()
        return {name: (own, pipeline.configs[name].train.global_batch_size) for name, own in windows.items()}
    return {"": (pipeline.validation_windows(), config.train.global_batch_size)}


class Validation:
    """Mean validation losses over held-out windows spread evenly; the same windows and noise every time.

    In a run in buckets the mean is over as many batches of each.
    """

    def __init__(self, program: TrainProgram, pipeline: Data, ledger: Ledger) -> None:
        self._program, self._ledger = program, ledger
        self._held_out = held_out(program.config, pipeline)
        self._num_batches = program.config.evaluate.num_batches
        if isinstance(pipeline, BucketPipeline):
            for name in pipeline.parts.keys() - self._held_out.keys():
                logging.warning("bucket %s of config.data.buckets has no held-out window: it is not validated on", name)

    def __call__(self, state: Any) -> dict[str, float]:
        """Returns the mean losses of a state, and accounts for them in the ledger."""
        params = self._program.evaluation_params(state)
        shard, num_shards = data_shard(self._program.mesh)
        sums: dict[str, float] = {}
        for bucket, (windows, batch_size) in self._held_out.items():
            chosen = np.linspace(0, len(windows), self._num_batches * batch_size, endpoint=False).astype(int)
            for index, rows in enumerate(chosen.reshape(self._num_batches, num_shards, -1)):
                batch = make_global_batch(windows.batch(rows[shard].tolist()), self._program.mesh)
                for name, value in jax.device_get(dict(self._program.evaluate(params, batch, index))).items():
                    key = f"{VALIDATION_GROUP}/{name.rpartition('/')[2]}"
                    sums[key] = sums.get(key, 0.0) + float(value)
            self._ledger.record_evaluation(self._num_batches * batch_size, bucket=bucket)
        return {name: total / (self._num_batches * len(self._held_out)) for name, total in sums.items()}
