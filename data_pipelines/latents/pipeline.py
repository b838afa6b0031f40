"""The pipeline of a backbone's run: cached latents as batches, with the order and position of the pixel pipeline.

Models on pictures or features of their own (``config.vla``, ``config.gpt``) read such a folder too. It holds all that
training reads: latents, what stands beside them, actions and states as normalised when it was
made, and prompt embeddings. The dataset need not be there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import ml_dtypes
import numpy as np
import numpy.typing as npt
from absl import logging

from data_pipelines.latents.manifest import (
    MANIFEST_FILE,
    TEXT_FOLDER,
    TRAIN,
    VALIDATION,
    Manifest,
    check_readable,
)
from data_pipelines.latents.records import SplitRecords
from data_pipelines.normalisation import Normalisation, write_json
from data_pipelines.pipeline import NORMALISATION_FILE, PROMPTS_FILE
from data_pipelines.sources.remote import dataset_path
from data_pipelines.stream import ONLY_SOURCE, TrainStream, endless, stack_samples
from data_pipelines.text.embedding_cache import EmbeddingCache
from wamjax.batch import WamBatch, batch_spec
from wamjax.config.schema import RunConfig
from wamjax.errors import DataError

_TEXT_DTYPE = "bfloat16"
NO_PROMPT = ""  # what a dropped prompt is replaced by
_PROMPTS_KEPT = 64  # embeddings in memory: 4 MB each for 512 tokens of 4,096


def open_text_cache(folder: Path, fingerprint: str) -> EmbeddingCache:
    """Returns the prompt embeddings of a folder of latents, by the text encoder's fingerprint."""
    return EmbeddingCache(folder / TEXT_FOLDER, fingerprint, _TEXT_DTYPE)


def prompts_to_embed(prompts: Sequence[str], config: RunConfig) -> tuple[str, ...]:
    """Returns the prompts whose embeddings a run reads: those of its data, and none where some are dropped."""
    return (*prompts, *([NO_PROMPT] if config.objective.prompt_dropout else []))


def open_latents(config: RunConfig, *, workdir: Path | None) -> LatentPipeline:
    """Opens the latents of ``config.data.latents``.

    Args:
      config: The run.
      workdir: Work directory of the run: manifest, normalisation and prompts are copied there, and a run that goes on
        must find the manifest it began with. None copies nothing.

    Raises:
      ConfigError: The folder was made with other settings or for another model.
      DataError: The folder is incomplete or damaged, or not the one the work directory began with.
    """
    folder = dataset_path(config.data.latents)
    manifest = Manifest.load(folder)
    check_readable(manifest, config, folder)
    normalisation = Normalisation.load(folder / NORMALISATION_FILE)
    if workdir is not None:
        _keep(manifest, normalisation, folder, workdir)
    return LatentPipeline(folder, manifest, normalisation, config)


class LatentPipeline:
    """Streams of one run on cached latents; the counterpart of ``pipeline.Pipeline``.

    Attributes:
      manifest: What the folder holds.
      normalisation: Scales with which actions and states were normalised.
      prompts: Task strings.
      fingerprint: Hash of all that the records depend on.
    """

    def __init__(self, folder: Path, manifest: Manifest, normalisation: Normalisation, config: RunConfig) -> None:
        """See ``open_latents``."""
        self.manifest, self.normalisation = manifest, normalisation
        self.prompts, self.fingerprint = manifest.prompts, manifest.fingerprint
        self._folder, self._config = folder, config
        text = batch_spec(config, 1).text
        if text is None:  # prompts are in the records, as token ids
            self._embed = None
            return
        texts = open_text_cache(folder, manifest.encoders["text"])
        wanted = prompts_to_embed(manifest.prompts, config)
        missing = [prompt for prompt in wanted if not texts.path_of(prompt).exists()]
        if missing:
            raise DataError(
                f"latents {folder} are not complete: the embeddings of {len(missing)} of {len(wanted)} prompts "
                f"are missing, first that of {missing[0]!r}; run the same wamjax data cache again"
            )
        self._embed = functools.lru_cache(_PROMPTS_KEPT)(functools.partial(_padded, texts, text.shape[1]))

    def embedding(self, prompt: str) -> npt.NDArray[Any]:
        """Returns the padded embedding ``[l d]`` of one of ``prompts``, or of none where training drops some.

        Raises:
          DataError: The folder holds none of such a prompt.
        """
        assert self._embed is not None, "prompts are token ids"
        if prompt not in prompts_to_embed(self.prompts, self._config):
            raise DataError(
                f"latents {self._folder} have no embedding of the prompt {prompt!r}, one of {len(self.prompts)} that "
                "their dataset has: its windows were not cached with them; make latents of this dataset"
            )
        return self._embed(prompt)

    def train_stream(self, shard_index: int, shard_count: int, position: int = 0) -> TrainStream:
        """As ``Pipeline.train_stream``."""
        return TrainStream(
            self.samples(), self._config, shard_index=shard_index, shard_count=shard_count, position=position
        )

    def samples(self) -> grain.MapDataset:
        """Returns the endless sequence of training samples."""
        return endless(self.training_windows(), self._config.data.shuffle_seed)

    def training_windows(self) -> LatentWindows:
        """Returns random access to the training windows, ordered by episode and start."""
        windows, share = self._reader(TRAIN), self._config.objective.prompt_dropout
        if not share:
            return windows
        assert self._embed is not None, "prompts are dropped of backbones alone, which read embeddings"
        return DroppingWindows(windows, share, self._embed(NO_PROMPT))

    def validation_windows(self) -> LatentWindows:
        """Returns random access to the held-out windows, ordered by episode and start."""
        return self._reader(VALIDATION)

    def video_statistics(self) -> None:
        """Returns None: latents are normalised by the autoencoder's own statistics."""

    @property
    def num_windows(self) -> dict[str, int]:
        """Training windows: the samples of one epoch."""
        return {ONLY_SOURCE: len(self.training_windows())}

    def count_samples(self, position: int) -> dict[str, int]:
        """Returns how many of the first ``position`` samples of the stream come from each dataset: all from this."""
        return {ONLY_SOURCE: position}

    @property
    def hours(self) -> float | None:
        """Duration of the dataset's episodes that were read; None where the frame rate is not known."""
        dataset = self.manifest.dataset
        return dataset["steps"] / dataset["fps"] / 3600 if dataset["fps"] else None

    @property
    def summary(self) -> dict[str, Any]:
        """What was read and what was left out, for run.json (JSON types only)."""
        manifest = self.manifest
        return {
            **manifest.dataset,
            "latents": str(self._folder),
            "dataset_fingerprint": manifest.dataset["fingerprint"],
            "fingerprint": self.fingerprint,
            "encoders": manifest.encoders,
            **{name: {"episodes": s.episodes, "windows": s.windows} for name, s in manifest.splits.items()},
            "prompts": len(self.prompts),
        }

    def _reader(self, split: str) -> LatentWindows:
        return LatentWindows(SplitRecords(self._folder, self.manifest, split), self.prompts, self._embed)


class LatentWindows:
    """Random access to the samples of one split (Grain's ``RandomAccessDataSource``)."""

    def __init__(self, records: SplitRecords, prompts: Sequence[str], embed: Any) -> None:
        """Wraps records; ``embed`` gives the padded embedding of a prompt, None gives samples none."""
        self._records, self._prompts, self._embed = records, prompts, embed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> WamBatch:
        """Returns sample ``index``: a ``WamBatch`` of host arrays without the batch dim.

        Raises:
          DataError: Its record is damaged.
        """
        arrays = self._records[index]
        prompt = self._prompts[int(arrays.pop("prompt_id"))]
        return WamBatch(**arrays, text=None if self._embed is None else self._embed(prompt))

    def sample(self, index: int) -> WamBatch:
        """As ``self[index]``."""
        return self[index]

    def batch(self, indices: Sequence[int]) -> WamBatch:
        """Returns the windows at ``indices`` as one host batch, in that order."""
        return stack_samples([self[int(index)] for index in indices])


class DroppingWindows(LatentWindows):
    """Windows some of whose prompts are dropped when they are read for training (``stream.endless``)."""

    def __init__(self, windows: LatentWindows, share: float, nothing: npt.NDArray[Any]) -> None:
        """Drops a ``share`` of the prompts of ``windows`` for the embedding ``nothing`` of none."""
        super().__init__(windows._records, windows._prompts, windows._embed)
        self._share, self._nothing = share, nothing

    def vary(self, sample: WamBatch, rng: np.random.Generator) -> WamBatch:
        """Returns ``sample`` with its prompt or without."""
        return dataclasses.replace(sample, text=self._nothing) if rng.random() < self._share else sample


def _padded(texts: EmbeddingCache, length: int, prompt: str) -> npt.NDArray[Any]:
    """Returns the embedding of ``prompt`` with zeros up to ``length`` tokens, as Wan reads it; not to be written to."""
    tokens = texts.read(prompt)
    padded = np.zeros((length, tokens.shape[1]), ml_dtypes.bfloat16)
    padded[: len(tokens)] = tokens
    padded.setflags(write=False)
    return padded


def _keep(manifest: Manifest, normalisation: Normalisation, folder: Path, workdir: Path) -> None:
    """Copies what describes the data into ``workdir``, or compares it with what a run began with."""
    if (workdir / MANIFEST_FILE).exists():
        begun = Manifest.load(workdir)
        if begun.fingerprint != manifest.fingerprint:
            raise DataError(
                f"latents {folder} have fingerprint {manifest.fingerprint[:16]}, but {workdir / MANIFEST_FILE} says "
                f"{begun.fingerprint[:16]}: they are not what the run began with; restore them or use another --workdir"
            )
        return
    normalisation.save(workdir / NORMALISATION_FILE)
    write_json(workdir / PROMPTS_FILE, list(manifest.prompts))
    manifest.save(workdir)
    logging.info("wrote %s, %s and %s to %s", NORMALISATION_FILE, PROMPTS_FILE, MANIFEST_FILE, workdir)
