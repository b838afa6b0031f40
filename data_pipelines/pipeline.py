"""The pipeline of a run: dataset, index, normalisation and prompts put together, and the streams read from them.

Owns the order of samples and its one-integer position, and the two files a run keeps (normalisation.json,
prompts.json). Does not place anything on devices.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import numpy.typing as npt
from absl import logging
from grain.experimental import ElasticIterator

from data_pipelines.embodiments.apply import check_dataset, optional_cameras, prompt_writer
from data_pipelines.embodiments.spec import load_embodiment
from data_pipelines.index import EpisodeIndex, WindowTable, build_index
from data_pipelines.normalisation import Normalisation, write_json
from data_pipelines.sources.formats import open_source
from data_pipelines.sources.source import Source
from data_pipelines.vector_statistics import compute_normalisation
from data_pipelines.vectors import VectorCodec, VectorLayout, build_layout, vector_keys
from data_pipelines.video_statistics import compute_video_statistics
from data_pipelines.windows import WindowReader
from wamjax.batch import VideoStatistics, WamBatch
from wamjax.config.schema import DataConfig, RunConfig
from wamjax.errors import ConfigError, DataError

NORMALISATION_FILE = "normalisation.json"
PROMPTS_FILE = "prompts.json"


def open_dataset(config: DataConfig) -> Source:
    """Opens the dataset of ``config`` with its views, state and actions.

    Raises:
      ConfigError: ``config.views`` is empty.
      DataError: As ``open_source``.
    """
    path = Path(config.path)
    if not config.views:
        raise ConfigError(
            f"config.data.views is empty: place at least one camera of {path} on the canvas; it has "
            f"{', '.join(open_source(path, cameras=(), columns=()).cameras) or 'none'}"
        )
    optional = optional_cameras(config)
    return open_source(
        path,
        cameras=tuple(dict.fromkeys(key for key, *_ in config.views if key not in optional)),
        optional_cameras=optional,
        columns=vector_keys(config),
        keep_bytes=config.decoded_frames_mib * 2**20,
        num_threads=config.num_threads,
    )


def build_pipeline(config: RunConfig, *, workdir: Path | None) -> Pipeline:
    """Opens and indexes the dataset, and computes or loads normalisation and prompts.

    Args:
      config: The run.
      workdir: Work directory of the run: normalisation.json and prompts.json are read from it where they exist and
        written there where they do not. None keeps them in memory only.

    Raises:
      ConfigError: No views, or dims or prompts that do not fit the model.
      DataError: The dataset is missing or damaged beyond the budget, is not the one the work directory began with, or
        is not what its embodiment describes.
    """
    source = open_dataset(config.data)
    if config.data.embodiment:
        check_dataset(load_embodiment(config.data.embodiment), source)
    index = build_index(source, config)
    layout = build_layout(config.data, lambda key: source.column(key, index.train_episodes[0]).shape[1])
    fingerprint = source.fingerprint()
    path = workdir / NORMALISATION_FILE if workdir else None
    if path and path.exists():
        normalisation = Normalisation.load(path)
        if normalisation.fingerprint != fingerprint:
            raise DataError(
                f"dataset {source.path} has fingerprint {fingerprint}, but {path} was made from "
                f"{normalisation.fingerprint}: it changed since the run began; restore it or use another --workdir"
            )
        if normalisation.vectors != layout.fingerprint:
            raise DataError(
                f"{path} was computed for other states and actions than this run makes of {source.path}: "
                "config.data.embodiment changed since the run began; restore it or use another --workdir"
            )
    else:
        normalisation = compute_normalisation(source, index.train_episodes, layout, config, fingerprint=fingerprint)
        if path:
            normalisation.save(path)
    _check_dims(normalisation, config.data)
    prompts = _resolve_prompts(tuple(map(prompt_writer(config.data), source.tasks)), config, workdir)
    return Pipeline(source, index, layout=layout, normalisation=normalisation, prompts=prompts, config=config)


class Pipeline:
    """Streams of one run.

    Attributes:
      index: Episodes and windows.
      normalisation: Scales of actions and state.
      codec: Makes vectors of the dataset's features, and the robot's actions of predicted vectors.
      prompts: Task strings; a sample's ``prompt_id`` is a position here.
      fingerprint: Hash of the dataset.
    """

    def __init__(
        self,
        source: Source,
        index: EpisodeIndex,
        *,
        layout: VectorLayout,
        normalisation: Normalisation,
        prompts: tuple[str, ...],
        config: RunConfig,
    ) -> None:
        """Puts the parts together; see ``build_pipeline``."""
        self.index = index
        self.normalisation = normalisation
        self.codec = VectorCodec(
            layout=layout,
            normalisation=normalisation,
            state_dim=config.data.state_dim,
            action_dim=config.data.action_dim,
        )
        self.prompts = prompts
        self.fingerprint = normalisation.fingerprint
        self._source = source
        self._config = config
        self._prompt_of = prompt_writer(config.data)

    def train_stream(self, shard_index: int, shard_count: int, position: int = 0) -> TrainStream:
        """Returns the endless stream of this shard's rows of the global training batches.

        Args:
          shard_index: Which shard of the data axis this process reads.
          shard_count: How many there are.
          position: Global samples consumed before; ``TrainStream.position`` of an earlier stream.

        Raises:
          ConfigError: ``train.global_batch_size`` does not divide by ``shard_count``.
        """
        return TrainStream(
            self.reader(self.index.train),
            self._config,
            shard_index=shard_index,
            shard_count=shard_count,
            position=position,
        )

    def validation_windows(self) -> ValidationWindows:
        """Returns random access to the held-out windows, ordered by episode and start."""
        return ValidationWindows(self.reader(self.index.validation))

    def video_statistics(self) -> VideoStatistics | None:
        """Returns the statistics of the training frames that ``data.video_statistics`` asks for, or None."""
        if self._config.data.video_statistics == "none":
            return None
        return compute_video_statistics(self.reader(self.index.train))

    @property
    def summary(self) -> dict[str, Any]:
        """What was read and what was left out, for run.json (JSON types only)."""
        index, tasks = self.index, {}
        for task in self.prompts:
            of_task = {i for i, record in index.records.items() if self._prompt_of(record.task) == task}
            tasks[task] = {
                "train_episodes": len(of_task & set(index.train_episodes)),
                "validation_episodes": len(of_task & set(index.validation_episodes)),
            }
        return {
            "path": str(self._source.path),
            "fingerprint": self.fingerprint,
            "fps": self._source.fps,
            "episodes": len(self._source.episodes),
            "steps": sum(record.length for record in index.records.values()),
            "train": {"episodes": list(index.train_episodes), "windows": len(index.train)},
            "validation": {"episodes": list(index.validation_episodes), "windows": len(index.validation)},
            "tasks": tasks,
            "quarantined": {str(i): reason for i, reason in index.quarantined.items()},
            "too_short": {str(i): length for i, length in index.too_short.items()},
            "missing_views": [key for key, *_ in self._config.data.views if key not in self._source.cameras],
            "has_actions": self.codec.layout.actions != (),
            "normalisation": self.normalisation.digest,
            "action_outliers": sum(self.normalisation.actions.outliers),
            "state_outliers": sum(self.normalisation.state.outliers),
            "keeps_decoded_frames": self._source.keeps_frames,
        }

    def reader(self, windows: WindowTable) -> WindowReader:
        """Returns random access to the samples of ``windows``."""
        return WindowReader(
            self._source,
            windows,
            records=self.index.records,
            prompt_ids={task: self.prompts.index(self._prompt_of(task)) for task in self._source.tasks},
            codec=self.codec,
            config=self._config,
        )


class TrainStream(Iterator[WamBatch]):
    """Rows of the global training batches that one shard reads, as host arrays.

    Every epoch is another seeded permutation of the training windows; batches run on across epochs. Global batch g
    holds samples ``position`` .. ``position + B - 1`` of that sequence in this order, and shard i of n reads rows
    ``i B/n`` .. ``(i+1) B/n - 1`` of it, so that shards side by side are the same global batch for every n.

    Attributes:
      position: Global samples consumed so far, equal on all shards: the whole state of the stream.
    """

    def __init__(
        self,
        reader: grain.sources.RandomAccessDataSource[WamBatch],
        config: RunConfig,
        *,
        shard_index: int,
        shard_count: int,
        position: int,
    ) -> None:
        """See ``Pipeline.train_stream``."""
        batch, data = config.train.global_batch_size, config.data
        if batch % shard_count:
            raise ConfigError(
                f"config.train.global_batch_size={batch} does not divide by the {shard_count} shards that read data "
                "(config.parallel.data x config.parallel.fsdp over processes)"
            )
        assert 0 <= shard_index < shard_count, (shard_index, shard_count)
        dataset = grain.MapDataset.source(reader).shuffle(seed=data.shuffle_seed).repeat()
        rows = batch // shard_count
        self._iterator = iter(
            ElasticIterator(
                _ShardRows(dataset, origin=position, batch=batch, shard_count=shard_count),
                batch,
                grain.sharding.ShardOptions(shard_index=shard_index, shard_count=shard_count),
                # Grain counts prefetched elements after batching.
                read_options=grain.ReadOptions(
                    num_threads=data.num_threads, prefetch_buffer_size=max(data.num_threads, data.prefetch // rows)
                ),
            )
        )
        self._iterator.set_state({"global_next_index": position})
        self._error: Exception | None = None
        self.position = position

    def __next__(self) -> WamBatch:
        """Returns the next ``global_batch_size / shard_count`` rows.

        Raises:
          DataError: A file can no longer be read. The stream then stays broken: another call raises it again instead
            of going on with the sample behind it.
        """
        if self._error is not None:
            raise self._error
        try:
            batch = next(self._iterator)
        except Exception as error:
            self._error = error
            raise
        self.position = int(self._iterator.get_state()["global_next_index"])
        return batch

    def close(self) -> None:
        """Stops reading ahead."""
        self._iterator.close()


class _ShardRows(grain.MapDataset):
    """Reorders samples within each global batch so that Grain's strided shards read contiguous rows.

    Shard i of n takes elements i, i + n, i + 2n, ... of a batch; element ``i + n r`` is here row ``i B/n + r``. Without
    it the same position would give other rows next to each other for another number of shards, and with them other
    noise.
    """

    def __init__(self, parent: grain.MapDataset, *, origin: int, batch: int, shard_count: int) -> None:
        super().__init__(parent)
        self._origin = origin
        self._batch = batch
        self._shard_count = shard_count

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        block, element = divmod(index - self._origin, self._batch)
        row, shard = divmod(element, self._shard_count)
        return self._parent[self._origin + block * self._batch + shard * (self._batch // self._shard_count) + row]


class ValidationWindows:
    """Random access to held-out windows.

    Attributes:
      episodes: int32 ``[windows]``: episode index of each.
      starts: int32 ``[windows]``: first dataset step of each.
    """

    def __init__(self, reader: WindowReader) -> None:
        """Wraps a reader of the validation split."""
        self._reader = reader
        self.episodes: npt.NDArray[np.int32] = reader.windows.episodes
        self.starts: npt.NDArray[np.int32] = reader.windows.starts

    def __len__(self) -> int:
        return len(self._reader)

    def batch(self, indices: Sequence[int]) -> WamBatch:
        """Returns the windows at ``indices`` as one host batch, in that order."""
        return stack_samples(self._reader.read(indices))


def stack_samples(samples: Sequence[WamBatch]) -> WamBatch:
    """Returns samples without batch dim as one batch; streams that a run does not have stay absent."""
    columns = {
        field.name: [getattr(sample, field.name) for sample in samples] for field in dataclasses.fields(WamBatch)
    }
    return WamBatch(**{name: None if column[0] is None else np.stack(column) for name, column in columns.items()})


def _check_dims(normalisation: Normalisation, config: DataConfig) -> None:
    for key, name, scale, dims in (
        (config.action_key, "action_dim", normalisation.actions, config.action_dim),
        (config.state_key, "state_dim", normalisation.state, config.state_dim),
    ):
        if scale.num_dims > dims:
            raise ConfigError(
                f"feature {key!r} has {scale.num_dims} dims, config.data.{name}={dims} has no room for them"
            )


def _resolve_prompts(tasks: tuple[str, ...], config: RunConfig, workdir: Path | None) -> tuple[str, ...]:
    """Returns the prompt table: the work directory's, which is written from the dataset's tasks where missing."""
    if len(tasks) > config.model.max_prompts:
        raise ConfigError(
            f"dataset {config.data.path} has {len(tasks)} tasks, config.model.max_prompts={config.model.max_prompts}"
        )
    if workdir is None:
        return tasks
    path = workdir / PROMPTS_FILE
    if not path.exists():
        write_json(path, list(tasks))
        logging.info("wrote %s and %s", workdir / NORMALISATION_FILE, path)
        return tasks
    try:
        prompts = tuple(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"prompts {path} cannot be read: {error}") from error
    unknown = [task for task in tasks if task not in prompts]
    if unknown:
        raise DataError(f"dataset {config.data.path} has task {unknown[0]!r}, which {path} does not list")
    return prompts
