"""The order of samples: an endless stream of global batches with a one-integer position; held-out windows by number.

Owns shuffling, sharding over hosts and reading ahead. Does not place anything on devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
import numpy.typing as npt
from grain.experimental import ElasticIterator

from data_pipelines.augmentation import Augmentation
from data_pipelines.buckets.assign import Chosen, RowRuns
from data_pipelines.windows import WindowReader
from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError

ONLY_SOURCE = "dataset"  # what a run on one dataset calls it in its ledger: its path may change
Samples = grain.sources.RandomAccessDataSource[WamBatch]


@runtime_checkable
class Varying(Protocol):
    """Samples that are not the same every time they are read for training."""

    def vary(self, sample: WamBatch, rng: np.random.Generator) -> WamBatch:
        """Returns ``sample``, without batch dim, as it is read this time."""
        ...


def endless(reader: Samples, seed: int) -> grain.MapDataset:
    """Returns the samples of ``reader`` without end, every epoch in another seeded permutation.

    What varies of them is drawn by their place: alike for any number of shards, and after any resumption.
    """
    samples = grain.MapDataset.source(reader).shuffle(seed=seed).repeat()
    return samples.random_map(reader.vary, seed=seed) if isinstance(reader, Varying) else samples


class ReadAhead(Iterator[WamBatch]):
    """Batches that are read ahead, and the position after the last one that was given out.

    Attributes:
      position: The whole state of the stream, equal on all shards.
    """

    def __init__(self, iterator: Any, *, state_key: str, position: int) -> None:
        """Begins at ``position``; ``state_key`` is where Grain's iterator keeps it."""
        self._iterator, self._state_key = iterator, state_key
        self._error: Exception | None = None
        self.position = position

    def __next__(self) -> WamBatch:
        """Returns this shard's rows of the next global batch.

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
        self.position = int(self._iterator.get_state()[self._state_key])
        return batch

    def close(self) -> None:
        """Stops reading ahead."""
        self._iterator.close()


class TrainStream(ReadAhead):
    """Rows of the global training batches that one shard reads, as host arrays.

    Batches run on across epochs. Global batch g holds samples ``position`` .. ``position + B - 1`` of the sequence in
    this order, and shard i of n reads rows ``i B/n`` .. ``(i+1) B/n - 1`` of it, so that shards side by side are the
    same global batch for every n.

    Attributes:
      position: Global samples consumed so far.
    """

    def __init__(
        self, samples: grain.MapDataset, config: RunConfig, *, shard_index: int, shard_count: int, position: int
    ) -> None:
        """Begins at ``position`` of an endless sequence of samples; see ``Pipeline.train_stream``."""
        batch, data = config.train.global_batch_size, config.data
        rows = rows_of_shard(batch, shard_index, shard_count)
        samples = augmented(samples, config)
        iterator = iter(
            ElasticIterator(
                _ShardRows(samples, origin=position, batch=batch, shard_count=shard_count),
                batch,
                grain.sharding.ShardOptions(shard_index=shard_index, shard_count=shard_count),
                # Grain counts prefetched elements after batching.
                read_options=grain.ReadOptions(
                    num_threads=data.num_threads, prefetch_buffer_size=max(data.num_threads, data.prefetch // len(rows))
                ),
            )
        )
        iterator.set_state({"global_next_index": position})
        super().__init__(iterator, state_key="global_next_index", position=position)


def rows_of_shard(batch: int, shard_index: int, shard_count: int) -> range:
    """Returns the rows of a global batch that one shard reads.

    Raises:
      ConfigError: The batch does not divide by the number of shards.
    """
    if batch % shard_count:
        raise ConfigError(
            f"config.train.global_batch_size={batch} does not divide by the {shard_count} shards that read data "
            "(config.parallel.data x config.parallel.fsdp over processes)"
        )
    assert 0 <= shard_index < shard_count, (shard_index, shard_count)
    rows = batch // shard_count
    return range(shard_index * rows, (shard_index + 1) * rows)


def augmented(samples: grain.MapDataset, config: RunConfig) -> grain.MapDataset:
    """Returns samples changed as ``data.augmentation`` says, drawn by their place: alike for any number of shards."""
    augmentation = config.data.augmentation
    return samples.random_map(Augmentation(config.data), seed=augmentation.seed) if augmentation.is_on else samples


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

    def __init__(self, reader: WindowReader, rows: RowRuns | None = None) -> None:
        """Wraps a reader of the validation split, or some rows of it."""
        self._reader: WindowReader | Chosen = reader if rows is None else Chosen(reader, rows)
        chosen = slice(None) if rows is None else rows.locate(np.arange(len(rows)))
        self.episodes: npt.NDArray[np.int32] = reader.windows.episodes[chosen]
        self.starts: npt.NDArray[np.int32] = reader.windows.starts[chosen]

    def __len__(self) -> int:
        return len(self._reader)

    def sample(self, index: int) -> WamBatch:
        """Returns one window without the batch dim."""
        return self._reader[index]

    def batch(self, indices: Sequence[int]) -> WamBatch:
        """Returns the windows at ``indices`` as one host batch, in that order."""
        return stack_samples(self._reader.read(indices))


def stack_samples(samples: Sequence[WamBatch]) -> WamBatch:
    """Returns samples without batch dim as one batch; streams that a run does not have stay absent."""
    columns = {
        field.name: [getattr(sample, field.name) for sample in samples] for field in dataclasses.fields(WamBatch)
    }
    return WamBatch(**{name: None if column[0] is None else np.stack(column) for name, column in columns.items()})
