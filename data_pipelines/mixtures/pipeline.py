"""The pipeline of a run on several datasets: one endless stream, one set of held-out windows, one prompt table.

Owns how sources become one: shares, provenance, prompts, view masks. Each source is a pipeline of its own, with its own
index, split and normalisation, kept in ``WORKDIR/sources/NAME``; its order does not change when others join.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import numpy.typing as npt

from data_pipelines.latents.pipeline import LatentPipeline, open_latents
from data_pipelines.mixtures.order import BLOCK, MixtureOrder
from data_pipelines.mixtures.settings import number_embodiments, source_config
from data_pipelines.pipeline import Pipeline, build_pipeline, resolve_prompts
from data_pipelines.stream import TrainStream, endless, stack_samples
from data_pipelines.video_statistics import NUM_WINDOWS, compute_video_statistics
from wamjax.batch import VideoStatistics, WamBatch
from wamjax.config.blocks import reads_pixels
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError

SOURCES_FOLDER = "sources"
Part = Pipeline | LatentPipeline


def open_data(config: RunConfig, *, workdir: Path | None) -> Part | MixturePipeline:
    """Returns what ``config`` reads: one dataset or a mixture, pixels or (for a backbone and others) cached latents.

    Args:
      config: The run, resolved (``resolve_mixture``).
      workdir: Work directory of the run, or None to keep nothing.

    Raises:
      ConfigError: As ``build_pipeline``, or the mixture cannot be weighed.
      DataError: As ``build_pipeline``.
    """
    build = build_pipeline if reads_pixels(config) else open_latents
    mixture = config.data.mixture
    if not mixture.sources:
        return build(config, workdir=workdir)
    folder = workdir / SOURCES_FOLDER if workdir else None
    parts = {
        source.name: build(source_config(config, source), workdir=folder / source.name if folder else None)
        for source in mixture.sources
    }
    prompts = tuple(dict.fromkeys(prompt for part in parts.values() for prompt in part.prompts))
    return MixturePipeline(parts, resolve_prompts(prompts, config, workdir), config)


class MixturePipeline:
    """Streams of one run on several datasets; the counterpart of ``pipeline.Pipeline``.

    Attributes:
      parts: The pipeline of each source by name.
      prompts: Task strings of all sources.
      fingerprint: Hash of the sources' fingerprints and names.
      order: Which sample of which source is which.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        prompts: tuple[str, ...],
        config: RunConfig,
        *,
        factors: Mapping[str, float] | None = None,
        bucket: str = "",
    ) -> None:
        """See ``open_data``; ``factors`` multiply the weights of the sources: what of each is in ``bucket``."""
        self.parts, self.prompts = dict(parts), prompts
        self._factors = factors or {}
        self._config = config
        content = "".join(f"{name}\0{part.fingerprint}\0" for name, part in parts.items())
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        self._windows = {name: part.training_windows() for name, part in parts.items()}
        self.order = MixtureOrder(
            self._stages(),
            names=[
                f"source {name!r} of config.data.mixture{f' in bucket {bucket!r}' * bool(bucket)}" for name in parts
            ],
            seed=seed_of(config.data.shuffle_seed, "order of the mixture"),
        )

    def train_stream(self, shard_index: int, shard_count: int, position: int = 0) -> TrainStream:
        """As ``Pipeline.train_stream``."""
        return TrainStream(
            self.samples(), self._config, shard_index=shard_index, shard_count=shard_count, position=position
        )

    def validation_windows(self) -> MixtureWindows:
        """Returns random access to the held-out windows of all sources, one source after the other."""
        return MixtureWindows([part.validation_windows() for part in self.parts.values()], self._adapters())

    def held_out_of(self, name: str) -> SourceWindows:
        """Returns random access to the held-out windows of one source, numbered as the mixture numbers them."""
        adapter = dict(zip(self.parts, self._adapters(), strict=True))[name]
        return SourceWindows(self.parts[name].validation_windows(), adapter)

    def video_statistics(self) -> VideoStatistics | None:
        """Returns the statistics of the frames of the stream's first samples, or None where none are asked for."""
        if self._config.data.video_statistics == "none" or not reads_pixels(self._config):
            return None
        first: Any = self.samples().slice(slice(0, NUM_WINDOWS))  # Grain's elements may be None; samples are not
        return compute_video_statistics(first)

    def count_samples(self, position: int) -> dict[str, int]:
        """Returns how many of the first ``position`` samples of the stream come from each source."""
        return dict(zip(self.parts, self.order.count_before(position), strict=True))

    @property
    def num_windows(self) -> dict[str, int]:
        """Training windows of each source: the samples of one epoch of it."""
        return {name: len(windows) for name, windows in self._windows.items()}

    @property
    def summary(self) -> dict[str, Any]:
        """What was read and what was left out, for run.json (JSON types only)."""
        sources = {name: part.summary for name, part in self.parts.items()}
        starts = [0, *(stage.step for stage in self._config.data.mixture.stages)]
        return {
            "path": ", ".join(self.parts),
            "fingerprint": self.fingerprint,
            "train": {"windows": sum(self.num_windows.values())},
            "validation": {"windows": len(self.validation_windows())},
            "quarantined": {
                f"{name}/{index}": reason
                for name, summary in sources.items()
                for index, reason in summary["quarantined"].items()
            },
            "prompts": len(self.prompts),
            "shares": [
                {"step": start, **{name: int(n) / BLOCK for name, n in zip(self.parts, shares, strict=True)}}
                for start, shares in zip(starts, self.order.shares, strict=True)
            ],
            "sources": sources,
        }

    @property
    def weight(self) -> float:
        """Sum of the sources' weights, at the first stage."""
        return sum(self._stages()[0][1])

    def samples(self) -> grain.MapDataset:
        """Returns the endless sequence of training samples."""
        seed = self._config.data.shuffle_seed
        # A source without windows (in this bucket) has the weight 0: nothing is ever asked of its stream.
        streams = [
            endless(windows, seed_of(seed, name)) if len(windows) else grain.MapDataset.range(0)
            for name, windows in self._windows.items()
        ]
        return _Mixed(streams, self.order, self._adapters())

    def _stages(self) -> list[tuple[int, tuple[float, ...]]]:
        """Returns the global sample at which each stage begins, and the weights of the sources there."""
        mixture, batch = self._config.data.mixture, self._config.train.global_batch_size
        factors = [1.0] * len(self.parts)
        if mixture.weighting == "hours":
            factors = [_hours(name, part) ** (1 / mixture.temperature) for name, part in self.parts.items()]
        factors = [factor * self._factors.get(name, 1.0) for name, factor in zip(self.parts, factors, strict=True)]
        weights = [(0, tuple(source.weight for source in mixture.sources))]
        weights += [(stage.step * batch, stage.weights) for stage in mixture.stages]
        return [(start, tuple(w * f for w, f in zip(of_stage, factors, strict=True))) for start, of_stage in weights]

    def _adapters(self) -> list[_Adapter]:
        """Returns what makes a sample of each source one of the mixture."""
        sources, views = self._config.data.mixture.sources, list(self._config.data.views)
        rows = {prompt: row for row, prompt in enumerate(self.prompts)}
        return [
            _Adapter(
                source=number,
                embodiment=embodiment,
                prompt_rows=np.array([rows[prompt] for prompt in self.parts[source.name].prompts], np.int32),
                view_places=np.array([views.index(view) for view in source.views or views], np.int64),
                num_views=max(1, len(views)),
            )
            for number, (source, embodiment) in enumerate(zip(sources, number_embodiments(sources), strict=True))
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Adapter:
    """Makes a sample of one source a sample of the mixture.

    Attributes:
      source: Position of the source: the dataset in ``provenance``.
      embodiment: Its ``embodiment_id``.
      prompt_rows: Row of the mixture's prompt table, by row of the source's.
      view_places: Place of each of the source's views among the mixture's.
      num_views: Views of the mixture.
    """

    source: int
    embodiment: int
    prompt_rows: npt.NDArray[np.int32]
    view_places: npt.NDArray[np.int64]
    num_views: int

    def __call__(self, sample: WamBatch) -> WamBatch:
        """Returns ``sample`` (without batch dim) with the mixture's numbers."""
        changes: dict[str, Any] = {"provenance": np.array([self.source, *sample.provenance[1:]], np.int32)}
        if sample.prompt_id is not None:
            changes["prompt_id"] = self.prompt_rows[sample.prompt_id]
        if sample.embodiment_id is not None:
            changes["embodiment_id"] = np.int32(self.embodiment)
        if sample.view_mask is not None:
            view_mask = np.zeros(self.num_views, np.bool_)
            view_mask[self.view_places] = sample.view_mask
            changes["view_mask"] = view_mask
        return dataclasses.replace(sample, **changes)


class _Mixed(grain.MapDataset):
    """The endless sequence of a mixture's samples."""

    def __init__(
        self,
        parents: Sequence[grain.MapDataset],
        order: MixtureOrder,
        adapters: Sequence[Callable[[WamBatch], WamBatch]],
    ) -> None:
        super().__init__(parents)
        self._order, self._adapters = order, adapters

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        source, number = self._order.locate(index)
        sample = self._parents[source][number]
        assert sample is not None, (source, number)
        return self._adapters[source](sample)


class SourceWindows:
    """Random access to the held-out windows of one source of a mixture.

    Attributes:
      episodes: int32 ``[windows]``: episode index of each.
      starts: int32 ``[windows]``: first dataset step of each.
    """

    def __init__(self, windows: Any, adapter: _Adapter) -> None:
        """Wraps a source's ``ValidationWindows``."""
        self._windows, self._adapter = windows, adapter
        self.episodes: npt.NDArray[np.int32] = windows.episodes
        self.starts: npt.NDArray[np.int32] = windows.starts

    def __len__(self) -> int:
        return len(self._windows)

    def sample(self, index: int) -> WamBatch:
        """Returns one window without the batch dim."""
        return self._adapter(self._windows.sample(index))

    def batch(self, indices: Sequence[int]) -> WamBatch:
        """Returns the windows at ``indices`` as one host batch, in that order."""
        return stack_samples([self.sample(int(index)) for index in indices])


class MixtureWindows:
    """Random access to the held-out windows of all sources, one source after the other."""

    def __init__(self, parts: Sequence[Any], adapters: Sequence[_Adapter]) -> None:
        """Wraps the held-out windows of each source."""
        self._parts, self._adapters = parts, adapters
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: Sequence[int]) -> WamBatch:
        """Returns the windows at ``indices`` as one host batch, in that order."""
        samples = []
        for index in indices:
            source = int(np.searchsorted(self._ends, index, side="right"))
            number = int(index) - (int(self._ends[source - 1]) if source else 0)
            samples.append(self._adapters[source](self._parts[source].sample(number)))
        return stack_samples(samples)


def _hours(name: str, part: Part) -> float:
    if part.hours is None:
        raise ConfigError(
            f"config.data.mixture.weighting=hours, and the frame rate of source {name!r} is not known: use fixed"
        )
    return part.hours


def seed_of(seed: int, name: str) -> int:
    """Returns a 31-bit seed of its own for ``name``: a source's order does not depend on the others."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:4], "little") >> 1
