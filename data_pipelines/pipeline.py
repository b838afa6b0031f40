"""The pipeline of a run: dataset, index, normalisation and prompts put together, and the streams read from them.

Owns the two files a run keeps (normalisation.json, prompts.json). The order of samples is ``stream``'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
from absl import logging

from data_pipelines.buckets.assign import Assignment, Chosen, RowRuns, assign_windows
from data_pipelines.embodiments.apply import check_dataset, optional_cameras, prompt_writer
from data_pipelines.embodiments.spec import load_embodiment
from data_pipelines.filters import data_columns
from data_pipelines.index import EpisodeIndex, WindowTable, build_index
from data_pipelines.indexing.manifest import camera_features, normalisation_file
from data_pipelines.indexing.stored import open_index
from data_pipelines.normalisation import Normalisation, write_json
from data_pipelines.sources.formats import open_source
from data_pipelines.sources.remote import dataset_path
from data_pipelines.sources.source import Source
from data_pipelines.stream import ONLY_SOURCE, TrainStream, ValidationWindows, endless
from data_pipelines.vector_statistics import compute_normalisation
from data_pipelines.vectors import VectorCodec, VectorLayout, build_layout
from data_pipelines.video_statistics import compute_video_statistics
from data_pipelines.windows import WindowReader
from wamjax.batch import VideoStatistics
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
    path = dataset_path(config.path)
    if not config.views:
        raise ConfigError(
            f"config.data.views is empty: place at least one camera of {path} on the canvas; it has "
            f"{', '.join(open_source(path, cameras=(), columns=()).cameras) or 'none'}"
        )
    optional = optional_cameras(config)
    return open_source(
        path,
        cameras=tuple(key for key in camera_features(config) if key not in optional),
        optional_cameras=optional,
        columns=data_columns(config),
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
    if config.data.index:
        source, index = open_index(config)
    else:
        source = open_dataset(config.data)
        index = build_index(source, config)
    if config.data.embodiment:
        check_dataset(load_embodiment(config.data.embodiment), source)
    layout = _build_layout(source, index, config)
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
        normalisation = _normalise(source, index, layout, config)
        if path:
            normalisation.save(path)
    _check_dims(normalisation, config.data)
    prompts = resolve_prompts(tuple(map(prompt_writer(config.data), source.tasks)), config, workdir)
    return Pipeline(source, index, layout=layout, normalisation=normalisation, prompts=prompts, config=config)


def prepare_normalisation(config: RunConfig) -> Path:
    """Computes the normalisation of ``config`` into the index ``config.data.index``, and returns its file.

    Raises:
      DataError: As ``open_index``.
    """
    source, index = open_index(config)
    layout = _build_layout(source, index, config)
    path = Path(config.data.index) / normalisation_file(config, layout.fingerprint)
    _normalise(source, index, layout, config).save(path)
    return path


def _build_layout(source: Source, index: EpisodeIndex, config: RunConfig) -> VectorLayout:
    return build_layout(config.data, lambda key: source.column(key, int(index.train_episodes[0])).shape[1])


def _normalise(source: Source, index: EpisodeIndex, layout: VectorLayout, config: RunConfig) -> Normalisation:
    """Returns the scales of the training episodes: the index's where it has them, else computed."""
    if config.data.index:
        kept = Path(config.data.index) / normalisation_file(config, layout.fingerprint)
        if kept.exists():
            return Normalisation.load(kept)
    return compute_normalisation(source, index.train_episodes, layout, config, fingerprint=source.fingerprint())


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
        bucket: Mapping[str, RowRuns] | None = None,
    ) -> None:
        """Puts the parts together; see ``build_pipeline``, and ``in_bucket`` for ``bucket``."""
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
        self._bucket = bucket
        self._layout = layout

    def in_bucket(self, config: RunConfig, rows: Mapping[str, RowRuns]) -> Pipeline:
        """Returns the pipeline of some of the windows, in another size.

        Args:
          config: The run at that size.
          rows: Of ``index.train`` and ``index.validation``, by these names.
        """
        return Pipeline(
            self._source,
            self.index,
            layout=self._layout,
            normalisation=self.normalisation,
            prompts=self.prompts,
            config=config,
            bucket=rows,
        )

    def of_windows(self, config: RunConfig, index: EpisodeIndex) -> Pipeline:
        """Returns the pipeline of another choice of the same dataset's windows, in another size."""
        return Pipeline(
            self._source,
            index,
            layout=self._layout,
            normalisation=self.normalisation,
            prompts=self.prompts,
            config=config,
        )

    def assign(
        self, configs: Mapping[str, RunConfig], *, upsample: bool, whole_clips: bool = False
    ) -> dict[str, Assignment]:
        """Returns where the windows of each split go (``buckets.assign``)."""
        index = self.index
        splits = {
            "train": (index.train, index.train_episodes),
            "validation": (index.validation, index.validation_episodes),
        }
        return {
            split: assign_windows(
                self._source,
                [index.records[int(i)] for i in episodes],
                windows,
                configs,
                upsample=upsample,
                whole_clips=whole_clips,
            )
            for split, (windows, episodes) in splits.items()
        }

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
            self.samples(), self._config, shard_index=shard_index, shard_count=shard_count, position=position
        )

    def samples(self) -> grain.MapDataset:
        """Returns the endless sequence of training samples."""
        return endless(self.training_windows(), self._config.data.shuffle_seed)

    def training_windows(self) -> WindowReader | Chosen:
        """Returns random access to the training windows, ordered by episode and start."""
        reader = self.reader(self.index.train)
        return Chosen(reader, self._bucket["train"]) if self._bucket else reader

    def validation_windows(self) -> ValidationWindows:
        """Returns random access to the held-out windows, ordered by episode and start."""
        return ValidationWindows(
            self.reader(self.index.validation), self._bucket["validation"] if self._bucket else None
        )

    def video_statistics(self) -> VideoStatistics | None:
        """Returns the statistics of the training frames that ``data.video_statistics`` asks for, or None."""
        if self._config.data.video_statistics == "none":
            return None
        return compute_video_statistics(self.training_windows())

    @property
    def num_windows(self) -> dict[str, int]:
        """Training windows: the samples of one epoch."""
        return {ONLY_SOURCE: len(self.training_windows())}

    def count_samples(self, position: int) -> dict[str, int]:
        """Returns how many of the first ``position`` samples of the stream come from each dataset: all from this."""
        return {ONLY_SOURCE: position}

    @property
    def hours(self) -> float | None:
        """Duration of the episodes that are read; None where the frame rate is not known."""
        return self.index.steps / self._source.fps / 3600 if self._source.fps else None

    @property
    def summary(self) -> dict[str, Any]:
        """What was read and what was left out, for run.json (JSON types only)."""
        index = self.index
        tasks = {prompt: {"train_episodes": 0, "validation_episodes": 0} for prompt in self.prompts}
        for task, counts in index.task_episodes.items():
            for name, count in counts.items():
                tasks[self._prompt_of(task)][name] += count
        return {
            "path": str(self._source.path),
            "fingerprint": self.fingerprint,
            "fps": self._source.fps,
            "episodes": len(index.records) + len(index.quarantined) + len(index.unwanted),
            "steps": index.steps,
            "index": self._config.data.index,
            "train": {"episodes": _list_or_count(index.train_episodes), "windows": len(self.training_windows())},
            "validation": {
                "episodes": _list_or_count(index.validation_episodes),
                "windows": len(self.validation_windows()),
            },
            "tasks": tasks,
            "quarantined": {str(i): reason for i, reason in index.quarantined.items()},
            "unwanted": {str(i): reason for i, reason in index.unwanted.items()},
            "too_short": {str(i): length for i, length in index.too_short.items()},
            "idle_windows": index.idle_windows,
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


def _list_or_count(episodes: Sequence[int]) -> list[int] | int:
    """Returns the episode indices, or how many there are where an index on disk lists them."""
    return list(episodes) if isinstance(episodes, tuple) else len(episodes)


def _check_dims(normalisation: Normalisation, config: DataConfig) -> None:
    for key, name, scale, dims in (
        (config.action_key, "action_dim", normalisation.actions, config.action_dim),
        (config.state_key, "state_dim", normalisation.state, config.state_dim),
    ):
        if scale.num_dims > dims:
            raise ConfigError(
                f"feature {key!r} has {scale.num_dims} dims, config.data.{name}={dims} has no room for them"
            )


def resolve_prompts(tasks: tuple[str, ...], config: RunConfig, workdir: Path | None) -> tuple[str, ...]:
    """Returns the prompt table: the work directory's, which is written from the dataset's tasks where missing."""
    if len(tasks) > config.model.max_prompts:
        raise ConfigError(
            f"{_name_data(config)} has {len(tasks)} tasks, config.model.max_prompts={config.model.max_prompts}"
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
        raise DataError(f"{_name_data(config)} has task {unknown[0]!r}, which {path} does not list")
    return prompts


def _name_data(config: RunConfig) -> str:
    return "config.data.mixture" if config.data.mixture.sources else f"dataset {config.data.path}"
