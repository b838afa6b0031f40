"""Samples per second of the input pipeline alone, against two references measured in the same run.

    python benchmarks/input_pipeline.py [--config=experiments/quickstart.py] [--seconds=5] [--config.data.x=v ...]

References: the training step of the same configuration on a batch that never changes (what the pipeline must feed), and
one thread of bare PyAV that seeks to each window's first keyframe, decodes forward and converts the wanted frames (what
decoding costs by itself). Measured: the pipeline decoding each window when it is read, and cutting windows from decoded
frames kept in memory, where the dataset fits into ``data.decoded_frames_mib``.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import jax
import numpy as np
from absl import app, flags

from data_pipelines.index import EpisodeIndex, build_index
from data_pipelines.pipeline import build_pipeline, open_dataset
from data_pipelines.sources.lerobot import LeRobotDataset
from data_pipelines.windows import window_offsets
from launch.distributed import start_devices
from launch.experiment import config_from_flags, define_config_flag, rewrite_overrides
from wamjax.batch import fake_batch
from wamjax.config.schema import RunConfig
from wamjax.parallel.mesh import build_mesh, make_global_batch
from wamjax.training.program import build_program


def decode_windows(dataset: LeRobotDataset, index: EpisodeIndex, config: RunConfig) -> Iterator[int]:
    """Decodes the frames of training windows in random order with PyAV alone; yields samples done."""
    frame_offsets, _, _ = window_offsets(config)
    containers: dict[Path, Any] = {}
    rng = np.random.default_rng(0)
    while True:
        window = rng.integers(len(index.train))
        episode, start = int(index.train.episodes[window]), int(index.train.starts[window])
        steps = np.unique(np.minimum(start + frame_offsets, index.records[episode].length - 1))
        for camera, *_ in config.data.views:
            path, first = dataset.locate(camera, episode)
            if path not in containers:
                containers[path] = av.open(str(path))
            stream = containers[path].streams.video[0]
            wanted = set((first + steps).tolist())
            containers[path].seek(round((first + int(steps[0])) / dataset.fps / stream.time_base), stream=stream)
            for frame in containers[path].decode(stream):
                number = round(frame.pts * stream.time_base * dataset.fps)
                if number in wanted:
                    frame.to_ndarray(format="rgb24")
                    wanted.remove(number)
                if not wanted:
                    break
        yield 1


def read_batches(config: RunConfig, *, decoded_frames_mib: int) -> Iterator[int]:
    """Reads training batches; where frames are kept, from the second epoch on. Yields samples done."""
    data = dataclasses.replace(config.data, decoded_frames_mib=decoded_frames_mib)
    pipeline = build_pipeline(dataclasses.replace(config, data=data), workdir=None)
    stream = pipeline.train_stream(0, 1)
    if decoded_frames_mib:
        for _ in range(len(pipeline.index.train) // config.train.global_batch_size):
            next(stream)
    try:
        for batch in stream:
            yield len(batch.prompt_id)
    finally:
        stream.close()


def train_steps(config: RunConfig) -> Iterator[int]:
    """Takes training steps on one batch; yields samples done."""
    mesh = build_mesh(config.parallel, batch_size=config.train.part_size)
    program = build_program(config, mesh)
    state, batch = program.init(), make_global_batch(fake_batch(config, config.train.global_batch_size), mesh)
    while True:
        state, metrics = program.step(state, batch)
        jax.block_until_ready((state, metrics))
        yield config.train.global_batch_size


def measure(samples: Iterator[int], seconds: float) -> float:
    """Returns samples per second over at least ``seconds`` after the first two items (compilation, caches)."""
    for _ in range(2):
        next(samples)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += next(samples)
    return count / elapsed


def main(argv: list[str]) -> None:
    """Measures and prints the table."""
    del argv
    start_devices(flags.FLAGS.cpu_devices)
    config, seconds = config_from_flags(), flags.FLAGS.seconds
    frames = len(window_offsets(config)[0]) * len(config.data.views)
    dataset = open_dataset(config.data)
    if not isinstance(dataset, LeRobotDataset):
        raise app.UsageError(f"{dataset.path} is {dataset.format}: bare decoding is written for LeRobot's files")
    step = measure(train_steps(config), seconds)
    bare = measure(decode_windows(dataset, build_index(dataset, config), config), seconds)
    rates = {"training step": step, "bare PyAV, one thread": bare}
    rates["pipeline, decoding"] = measure(read_batches(config, decoded_frames_mib=0), seconds)
    if dataset.keeps_frames:
        kept = read_batches(config, decoded_frames_mib=config.data.decoded_frames_mib)
        rates["pipeline, frames kept"] = measure(kept, seconds)
    device = jax.devices()[0].device_kind
    print(
        f"{config.name}: batch {config.train.global_batch_size}, {frames} frames per sample, canvas "
        f"{config.data.canvas[0]}x{config.data.canvas[1]}, {config.data.num_threads} reader threads, "
        f"{jax.device_count()} {device} devices, jax {jax.__version__}, PyAV {av.__version__}, {platform.machine()}"
    )
    print(f"{'':24s}{'samples/s':>12s}{'frames/s':>12s}{'x training step':>18s}{'x bare PyAV':>14s}")
    for name, rate in rates.items():
        print(f"{name:24s}{rate:12.1f}{rate * frames:12.0f}{rate / step:18.2f}{rate / bare:14.2f}")


if __name__ == "__main__":
    define_config_flag(required=False)
    flags.FLAGS.set_default("config", "experiments/quickstart.py")
    flags.DEFINE_float("seconds", 5.0, "Seconds measured per row.", lower_bound=0.1)
    flags.DEFINE_integer("cpu_devices", 8, "Simulated CPU devices of the training step.", lower_bound=1)
    app.run(main, argv=[sys.argv[0], *rewrite_overrides(sys.argv[1:])])
