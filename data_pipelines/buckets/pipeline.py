"""The pipeline of a run in buckets: one stream of global batches, each of one bucket.

Owns the order of buckets and what the sizes of a run have in common. Each bucket is a pipeline of its own, of one
dataset or a mixture, whose samples come in an order that does not depend on the other buckets. Which bucket batch g is,
and how many of its batches come before, is a pure function of g (``mixtures.order``); so the position of the stream is
one integer, the same for any number of hosts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import logging

from data_pipelines.buckets.assign import Assignment, RowRuns
from data_pipelines.index import WindowTable
from data_pipelines.latents.pipeline import open_latents
from data_pipelines.mixtures.order import MixtureOrder
from data_pipelines.mixtures.pipeline import SOURCES_FOLDER, MixturePipeline, Part, open_data, seed_of
from data_pipelines.mixtures.settings import source_config
from data_pipelines.pipeline import Pipeline, build_pipeline, resolve_prompts
from data_pipelines.stream import ONLY_SOURCE, ReadAhead, augmented, rows_of_shard, stack_samples
from wamjax.batch import VideoStatistics, WamBatch
from wamjax.config.blocks import reads_pixels
from wamjax.config.pixel_windows import pixel_windows
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError, DataError
from wamjax.layout.buckets import at_bucket, shortest_windows, split_buckets

BUCKETS_FOLDER = "buckets"
_MAX_NAMED = 3  # episodes that fit no bucket, named in a message
OneSize = Part | MixturePipeline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unfit:
    """Windows of a dataset that are in no bucket.

    Attributes:
      windows: How many fit none, of both splits.
      episodes: Reason by episode.
      idle_windows: How many fit one that would show too much idle time (``config.data.filters.max_idle``).
    """

    windows: int
    episodes: dict[int, str]
    idle_windows: int


def open_training_data(config: RunConfig, *, workdir: Path | None) -> OneSize | BucketPipeline:
    """Returns what ``config`` trains on: as ``open_data``, or in buckets.

    Raises:
      ConfigError: As ``open_data`` and ``split_buckets``.
      DataError: As ``open_data``, or no window fits any bucket.
    """
    configs = split_buckets(config)
    if not configs:
        return open_data(config, workdir=workdir)
    sources = config.data.mixture.sources
    own = {source.name: source_config(config, source) for source in sources} or {ONLY_SOURCE: config}
    by_source: dict[str, dict[str, Part]] = {}
    unfit: dict[str, Unfit] = {}
    for name, source in own.items():
        folder = workdir / SOURCES_FOLDER / name if workdir and sources else workdir
        if not reads_pixels(config):
            by_source[name] = _open_latents(source, folder)
        else:
            whole = build_pipeline(shortest_windows(source), workdir=folder)
            found, unfit[name] = _assign(whole, source, _sizes(source))
            by_source[name] = {
                bucket: whole.in_bucket(own, {split: of_split.rows[bucket] for split, of_split in found.items()})
                for bucket, own in _sizes(source).items()
            }
    prompts = tuple(dict.fromkeys(p for parts in by_source.values() for part in parts.values() for p in part.prompts))
    if sources:
        prompts = resolve_prompts(prompts, config, workdir)
    return BucketPipeline(by_source, prompts, config, configs, unfit)


def find_bucket(config: RunConfig, name: str) -> RunConfig:
    """Returns the run on one dataset in the bucket ``name``.

    Raises:
      ConfigError: There is no such bucket.
    """
    sizes = _sizes(config)
    if name not in sizes:
        raise ConfigError(f"config.data.buckets has no bucket {name!r}; expected one of {', '.join(sizes)}")
    return sizes[name]


def open_bucket_windows(config: RunConfig, name: str) -> Pipeline:
    """Returns the windows in pixels that a backbone's latents of one bucket are made of.

    Args:
      config: The run on one dataset.
      name: The bucket.

    Raises:
      DataError: As ``build_pipeline``, or no window fits any bucket.
    """
    pixels = {bucket: pixel_windows(own) for bucket, own in _sizes(config).items()}
    whole = build_pipeline(pixel_windows(shortest_windows(config)), workdir=None)
    found, _ = _assign(whole, config, pixels)
    chosen = {split: _choose(getattr(whole.index, split), of_split.rows[name]) for split, of_split in found.items()}
    return whole.of_windows(pixels[name], dataclasses.replace(whole.index, **chosen))


def _sizes(config: RunConfig) -> dict[str, RunConfig]:
    """Returns the run on one dataset in each bucket."""
    return {bucket.name: at_bucket(config, bucket) for bucket in config.data.buckets.sets}


def _choose(windows: WindowTable, rows: RowRuns) -> WindowTable:
    chosen = rows.locate(np.arange(len(rows)))
    return WindowTable(episodes=np.asarray(windows.episodes[chosen]), starts=np.asarray(windows.starts[chosen]))


def _assign(whole: Pipeline, config: RunConfig, pixels: Mapping[str, RunConfig]) -> tuple[dict[str, Assignment], Unfit]:
    """Returns where the windows of each split of a dataset go, and what goes nowhere.

    Args:
      whole: The dataset with the windows of ``shortest_windows(config)``.
      config: The run on it.
      pixels: The run in each bucket, on pixels.

    Raises:
      DataError: No training window fits.
    """
    whole_clips = config.layout.formulation == "video"  # whose records have no mask of frames
    found = whole.assign(pixels, upsample=config.data.buckets.upsample, whole_clips=whole_clips)
    return found, _report_unfit(found, config.data.path)


class BucketPipeline:
    """Streams of one run in buckets; the counterpart of ``pipeline.Pipeline``.

    Attributes:
      parts: The pipeline of each bucket that has training windows, by name.
      configs: The run in each of them.
      prompts: Task strings.
      fingerprint: Hash of the datasets and the buckets.
      order: Which bucket each global batch is of.
    """

    def __init__(
        self,
        by_source: Mapping[str, Mapping[str, Part]],
        prompts: tuple[str, ...],
        config: RunConfig,
        configs: Mapping[str, RunConfig],
        unfit: Mapping[str, Unfit],
    ) -> None:
        """See ``open_training_data``; ``by_source`` has the pipelines of each dataset by bucket."""
        counts = {name: {b: len(part.training_windows()) for b, part in own.items()} for name, own in by_source.items()}
        silent = {source.name for source in config.data.mixture.sources if not source.weight}
        read = [of_source for name, of_source in counts.items() if name not in silent]
        self.configs = {b: own for b, own in configs.items() if any(of_source[b] for of_source in read)}
        for name in configs:
            if name not in self.configs:
                logging.warning("bucket %s of config.data.buckets has no training window: it is not trained on", name)
        self.prompts, self._config, self._unfit = prompts, config, unfit
        self.parts: dict[str, OneSize] = {}
        weights = []
        for name, own in self.configs.items():
            if config.data.mixture.sources:
                factors = {s: of_source[name] / max(1, sum(of_source.values())) for s, of_source in counts.items()}
                parts = {source: by_source[source][name] for source in by_source}
                self.parts[name] = mixed = MixturePipeline(parts, prompts, own, factors=factors, bucket=name)
                samples = mixed.weight
            else:
                self.parts[name], samples = by_source[ONLY_SOURCE][name], float(counts[ONLY_SOURCE][name])
            weights.append(samples / own.train.global_batch_size)
        self.order = MixtureOrder(
            [(0, weights)],
            names=[f"bucket {name!r} of config.data.buckets" for name in self.parts],
            seed=seed_of(config.data.shuffle_seed, "order of the buckets"),
        )
        fingerprints = [
            f"{name}\0{own.data.canvas}\0{own.layout}\0{own.clip.num_frames}\0{self.parts[name].fingerprint}"
            for name, own in self.configs.items()
        ]
        self.fingerprint = hashlib.sha256("\0".join(fingerprints).encode()).hexdigest()[:16]

    def train_stream(self, shard_index: int, shard_count: int, position: int = 0) -> BucketStream:
        """As ``Pipeline.train_stream``; ``position`` counts global batches."""
        return BucketStream(self, shard_index=shard_index, shard_count=shard_count, position=position)

    def validation_windows(self) -> dict[str, Any]:
        """Returns random access to the held-out windows of each bucket that has some."""
        windows = {name: part.validation_windows() for name, part in self.parts.items()}
        return {name: own for name, own in windows.items() if len(own)}

    def video_statistics(self) -> VideoStatistics | None:
        """Returns those of the first bucket: where any are asked for, all buckets have one canvas."""
        return next(iter(self.parts.values())).video_statistics()

    @property
    def shares(self) -> dict[str, float]:
        """Share of the samples by bucket."""
        steps = self.order.shares[0]
        samples = [int(n) * own.train.global_batch_size for n, own in zip(steps, self.configs.values(), strict=True)]
        return {name: number / sum(samples) for name, number in zip(self.configs, samples, strict=True)}

    @property
    def num_windows(self) -> dict[str, int]:
        """Training windows of each dataset: the samples of one epoch of it."""
        sums: dict[str, int] = {}
        for part in self.parts.values():
            for source, count in part.num_windows.items():
                sums[source] = sums.get(source, 0) + count
        return sums

    def count_samples(self, position: int) -> dict[str, int]:
        """Returns how many samples of the first ``position`` batches of the stream come from each dataset."""
        sums = dict.fromkeys(self.num_windows, 0)
        for (name, part), steps in zip(self.parts.items(), self.order.count_before(position), strict=True):
            for source, count in part.count_samples(steps * self.configs[name].train.global_batch_size).items():
                sums[source] += count
        return sums

    @property
    def summary(self) -> dict[str, Any]:
        """What was read and what was left out, for run.json (JSON types only)."""
        parts = {name: part.summary for name, part in self.parts.items()}
        first = next(iter(parts.values()))
        windows = {s: {"windows": sum(part[s]["windows"] for part in parts.values())} for s in ("train", "validation")}
        buckets = {
            name: {
                "canvas": list(own.data.canvas),
                "batch": own.train.global_batch_size,
                "share_of_samples": self.shares[name],
                "train_windows": parts[name]["train"]["windows"],
                "validation_windows": parts[name]["validation"]["windows"],
            }
            for name, own in self.configs.items()
        }
        unfit = {
            name: {"windows": found.windows, "episodes": {str(i): reason for i, reason in found.episodes.items()}}
            for name, found in self._unfit.items()
            if found.windows
        }
        idle = sum(found.idle_windows for found in self._unfit.values())
        own = {"fingerprint": self.fingerprint, "buckets": buckets, "unfit": unfit, "idle_windows": idle}
        found = {**first, **windows, **own}
        return {**found, "shares": self._shares_of_sources(parts)} if "shares" in first else found

    def _shares_of_sources(self, summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, float]]:
        """Returns the share of each source of a mixture over all buckets, as ``MixturePipeline.summary`` has it."""
        sums = dict.fromkeys(self.num_windows, 0.0)
        for bucket, share in self.shares.items():
            (stage,) = summaries[bucket]["shares"]
            for source in sums:
                sums[source] += share * stage[source]
        return [{"step": 0, **sums}]


class BucketStream(ReadAhead):
    """Rows of the global batches that one shard reads, each batch of one bucket.

    Attributes:
      position: Global batches consumed so far.
    """

    def __init__(self, pipeline: BucketPipeline, *, shard_index: int, shard_count: int, position: int) -> None:
        """Begins at batch ``position``; see ``Pipeline.train_stream``."""
        configs = list(pipeline.configs.values())
        rows = [rows_of_shard(own.train.global_batch_size, shard_index, shard_count) for own in configs]
        samples = [augmented(part.samples(), own) for part, own in zip(pipeline.parts.values(), configs, strict=True)]
        batches = _Batches(samples, pipeline.order, [own.train.global_batch_size for own in configs], rows)
        data, most = configs[0].data, max(map(len, rows))
        options = grain.ReadOptions(
            num_threads=data.num_threads, prefetch_buffer_size=max(data.num_threads, data.prefetch // most)
        )
        iterator = iter(batches.to_iter_dataset(options))
        iterator.set_state({"next_index": position})
        super().__init__(iterator, state_key="next_index", position=position)


class _Batches(grain.MapDataset):
    """The endless sequence of one shard's rows of global batches."""

    def __init__(
        self, samples: Sequence[grain.MapDataset], order: MixtureOrder, sizes: Sequence[int], rows: Sequence[range]
    ) -> None:
        super().__init__(samples)
        self._order, self._sizes, self._rows = order, sizes, rows

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        bucket, number = self._order.locate(index)
        first = number * self._sizes[bucket]
        found: list[Any] = [self._parents[bucket][first + row] for row in self._rows[bucket]]
        batch: WamBatch = stack_samples(found)
        return batch


def _open_latents(config: RunConfig, workdir: Path | None) -> dict[str, Part]:
    """Opens the latents of each bucket, in the folder of its name within ``config.data.latents``."""
    parts: dict[str, Part] = {}
    for name, own in _sizes(config).items():
        data = dataclasses.replace(own.data, latents=f"{config.data.latents.rstrip('/')}/{name}")
        folder = workdir / BUCKETS_FOLDER / name if workdir else None
        parts[name] = open_latents(dataclasses.replace(own, data=data), workdir=folder)
    return parts


def _report_unfit(found: Mapping[str, Assignment], path: str) -> Unfit:
    """Returns what of a dataset fits no bucket, after telling; refuses a dataset of which nothing fits."""
    episodes = {index: reason for of_split in found.values() for index, reason in sorted(of_split.unfit.items())}
    unfit = Unfit(
        windows=sum(of_split.num_unfit for of_split in found.values()),
        episodes=episodes,
        idle_windows=sum(of_split.num_idle for of_split in found.values()),
    )
    named = "; ".join(f"episode {index}: {reason}" for index, reason in list(episodes.items())[:_MAX_NAMED])
    if not any(len(rows) for rows in found["train"].rows.values()):
        idle = (
            f"{unfit.idle_windows} are too idle (config.data.filters.max_idle)" if unfit.idle_windows else "it has none"
        )
        raise DataError(f"dataset {path}: none of its training windows fits a bucket: {named or idle}")
    if unfit.windows:
        logging.warning(
            "dataset %s: %d windows of %d episodes fit no bucket and are left out: %s",
            *(path, unfit.windows, len(episodes), named),
        )
    return unfit
