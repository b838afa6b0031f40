"""The job that fills a folder with cached latents: shard by shard, by any number of workers, over any number of starts.

Owns who makes which shard, what is already there, reading ahead, and the making of records from windows and encodings.
Does not know the encoders: they are a function from a batch of windows to arrays.

A worker takes every ``num_workers``-th shard. Workers need not know of each other: they share the folder, and a file
with the name of a shard is whole.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import logging
from tqdm import tqdm

from data_pipelines.latents.manifest import TRAIN, VALIDATION, Manifest
from data_pipelines.latents.records import count_records, pack, remove_halves, write_shard
from data_pipelines.stream import stack_samples
from data_pipelines.windows import WindowReader
from wamjax.batch import WamBatch

Encode = Callable[[WamBatch], Mapping[str, npt.NDArray[Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worker:
    """One of the processes that fill a folder.

    Attributes:
      index: Which, from 0.
      count: How many there are.
    """

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardDone:
    """A shard that was just written.

    Attributes:
      windows: How many it has.
      seconds: What it took.
    """

    windows: int
    seconds: float


class LatentJob:
    """What is to be made in a folder.

    Args:
      folder: The folder.
      manifest: Its manifest.
      readers: Windows in pixels of each split.
      frames_per_latent: Frames that one latent frame after the first stands for.
      batch_size: Windows that are encoded together; the last batch of a shard is filled up with copies.
      num_threads: Windows that are read at a time.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        readers: Mapping[str, WindowReader],
        *,
        frames_per_latent: int,
        batch_size: int,
        num_threads: int,
    ) -> None:
        self._folder, self._manifest, self._readers = folder, manifest, readers
        self._frames_per_latent, self._batch_size, self._num_threads = frames_per_latent, batch_size, num_threads

    def find_missing(self, worker: Worker) -> list[tuple[str, str, range]]:
        """Returns split, file name and windows of each shard of ``worker`` that is still to be made.

        A shard that is cut short is removed and made again.
        """
        shards = [(split, *shard) for split in (TRAIN, VALIDATION) for shard in self._manifest.shards(split)]
        missing = []
        for split, name, windows in shards[worker.index :: worker.count]:
            path = self._folder / name
            found = count_records(path) if path.exists() else 0
            if path.exists() and found != len(windows):
                logging.warning("shard %s has %d records, expected %d: making it again", path, found, len(windows))
                path.unlink()
            if found != len(windows):
                missing.append((split, name, windows))
        return missing

    def run(self, worker: Worker, encode: Encode) -> Iterator[ShardDone]:
        """Makes the missing shards of ``worker`` and yields after each.

        Args:
          worker: Which shards.
          encode: A batch of windows with video -> the fields of their samples that windows do not have, or have
            otherwise, batch-first: ``latents``, ``condition``, ``image``, and those of ``samples.SampleFields``.

        Raises:
          DataError: A window cannot be read, or a shard not be written.
        """
        missing, owner = self.find_missing(worker), str(worker.index)
        remove_halves(self._folder, owner)
        with tqdm(total=sum(len(windows) for *_, windows in missing), unit="window", disable=None) as bar:
            for split, name, windows in missing:
                started = time.perf_counter()
                write_shard(self._folder / name, self._records(split, windows, encode, bar), owner=owner)
                yield ShardDone(windows=len(windows), seconds=time.perf_counter() - started)

    def _records(self, split: str, windows: range, encode: Encode, bar: Any) -> Iterator[bytes]:
        for samples in self._read_ahead(self._readers[split], windows):
            filled = [*samples, *[samples[-1]] * (self._batch_size - len(samples))]
            pixels = stack_samples(filled)
            encoded = encode(pixels)
            for row, sample in enumerate(samples):
                yield pack(
                    self._arrays(sample, {key: value[row] for key, value in encoded.items()}), self._manifest.fields
                )
                bar.update()

    def _arrays(self, sample: WamBatch, encoded: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Returns the arrays of a record: of a window what its fields name, frames being latent ones."""
        arrays = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
        # A latent frame is real where the last of its frames is.
        arrays["frame_mask"] = sample.frame_mask[:: self._frames_per_latent]
        arrays |= dict(encoded)
        return {field.name: np.asarray(arrays[field.name], np.dtype(field.dtype)) for field in self._manifest.fields}

    def _read_ahead(self, reader: WindowReader, windows: range) -> Iterator[list[WamBatch]]:
        """Yields batches of windows; the next one is read while a batch is encoded."""
        starts = range(windows.start, windows.stop, self._batch_size)
        pending: collections.deque[list[Future[list[WamBatch]]]] = collections.deque()
        with ThreadPoolExecutor(self._num_threads) as pool:
            for start in starts:
                batch = np.arange(start, min(start + self._batch_size, windows.stop))
                # Windows next to each other overlap: those of one thread are decoded in one pass.
                parts = np.array_split(batch, min(self._num_threads, len(batch)))
                pending.append([pool.submit(reader.read, part.tolist()) for part in parts])
                if len(pending) > 1:
                    yield [sample for future in pending.popleft() for sample in future.result()]
            while pending:
                yield [sample for future in pending.popleft() for sample in future.result()]
