"""Embeddings of prompts on disk: each prompt is encoded once per encoder.

A file belongs to one prompt and one encoder, named by its fingerprint: weights, configuration, tokenizer and dtype.
Both are written into the file and compared before it is used, so a file that was moved, mixed up or cut short is never
taken for another's; it is made again, and named. Knows neither the encoder nor JAX.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from absl import logging

from data_pipelines.sources.remote import dataset_path
from wamjax.errors import DataError

# safetensors' reader of NumPy arrays does not know bfloat16, so its bits are stored.
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
BITS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16)}

Embedding = npt.NDArray[Any]
Encode = Callable[[Sequence[str]], Sequence[Embedding]]


def encoder_fingerprint(*, weights: str, config: Mapping[str, Any], tokenizer: str, dtype: str) -> str:
    """Returns a hash of everything that an embedding depends on besides the prompt.

    Args:
      weights: Hash of the encoder's weights, as the record of their import holds it.
      config: The encoder's configuration, of JSON values.
      tokenizer: ``PromptTokenizer.fingerprint``.
      dtype: Dtype the encoder computes in.
    """
    parts = {"weights": weights, "config": dict(config), "tokenizer": tokenizer, "dtype": dtype}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheReport:
    """What one call did.

    Attributes:
      found: Prompts that were read from disk.
      computed: Prompts that were encoded, the damaged included.
      damaged: File -> what was wrong with it, for each that was replaced.
    """

    found: int
    computed: int
    damaged: dict[Path, str]


class EmbeddingCache:
    """The embeddings of one encoder.

    Files are ``FOLDER/<fingerprint>/<hash of the prompt>.safetensors``, written whole or not at all, so that any number
    of processes may share a folder.
    """

    def __init__(self, folder: str | Path, fingerprint: str, dtype: str = "float32") -> None:
        """Opens the cache, which need not exist.

        Args:
          folder: Folder of the caches of all encoders; one in a store can be read and not be written to.
          fingerprint: Of this encoder (``encoder_fingerprint``).
          dtype: Dtype in which embeddings are kept: a key of ``DTYPES``.

        Raises:
          DataError: The dtype is unknown.
        """
        if dtype not in DTYPES:
            raise DataError(f"embeddings cannot be kept as {dtype!r}; expected one of {sorted(DTYPES)}")
        self.folder, self.fingerprint, self.dtype = dataset_path(folder) / fingerprint[:16], fingerprint, dtype

    def path_of(self, prompt: str) -> Path:
        """Returns the file of ``prompt``, whether it exists or not."""
        return self.folder / f"{hashlib.sha256(prompt.encode()).hexdigest()[:32]}.safetensors"

    def embed(
        self, prompts: Sequence[str], encode: Encode, batch_size: int = 8
    ) -> tuple[dict[str, Embedding], CacheReport]:
        """Returns the embedding of every prompt, encoding those that are not on disk.

        Args:
          prompts: Prompts, in any number of copies.
          encode: Unique prompts, at most ``batch_size`` -> the embedding ``[length d]`` of each, without padding.
          batch_size: Prompts that are encoded together.

        Returns:
          Prompt -> embedding ``[length d]`` in the cache's dtype, and what was done.

        Raises:
          DataError: ``encode`` gave something that is no embedding.
        """
        embeddings: dict[str, Embedding] = {}
        damaged: dict[Path, str] = {}
        missing = []
        unique = list(dict.fromkeys(prompts))
        for prompt in unique:
            path = self.path_of(prompt)
            if not path.exists():
                missing.append(prompt)
                continue
            try:
                embeddings[prompt] = self._read(path, prompt)
            except DataError as error:
                logging.warning("%s; encoding its prompt again", error)
                damaged[path] = str(error)
                missing.append(prompt)
        for batch in _batches(missing, batch_size):
            for prompt, array in zip(batch, encode(batch), strict=True):
                embedding = np.asarray(array, DTYPES[self.dtype])
                if embedding.ndim != 2 or not np.isfinite(embedding.astype(np.float32)).all():
                    what = "has values that are not finite" if embedding.ndim == 2 else f"has shape {embedding.shape}"
                    raise DataError(f"the embedding of prompt {prompt!r} {what}; expected finite [tokens, width]")
                self._write(self.path_of(prompt), prompt, embedding)
                embeddings[prompt] = embedding
        report = CacheReport(found=len(unique) - len(missing), computed=len(missing), damaged=damaged)
        return {prompt: embeddings[prompt] for prompt in unique}, report

    def read(self, prompt: str) -> Embedding:
        """Returns the embedding ``[length d]`` of a prompt that is on disk.

        Raises:
          DataError: It is not, or its file is damaged.
        """
        return self._read(self.path_of(prompt), prompt)

    def _read(self, path: Path, prompt: str) -> Embedding:
        """Reads a file; ``DataError`` if it is damaged or belongs to another encoder, prompt or dtype."""
        try:
            with safetensors.safe_open(path, framework="np") as file:
                record = file.metadata() or {}
                bits = file.get_tensor("embedding")
        except (safetensors.SafetensorError, OSError) as error:
            raise DataError(f"cached embedding {path} is damaged ({' '.join(str(error).split())})") from error
        expected = self._record(prompt, bits)
        wrong = [key for key, value in expected.items() if record.get(key) != value]
        if wrong:
            raise DataError(f"cached embedding {path} is not the one it is named for (differs in {', '.join(wrong)})")
        return bits.view(DTYPES[self.dtype])

    def _write(self, path: Path, prompt: str, embedding: Embedding) -> None:
        bits = np.ascontiguousarray(embedding).view(BITS[self.dtype])
        content = safetensors.numpy.save({"embedding": bits}, self._record(prompt, bits))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)

    def _record(self, prompt: str, bits: npt.NDArray[Any]) -> dict[str, str]:
        """Returns what a file must say of itself to be used."""
        return {
            "fingerprint": self.fingerprint,
            "prompt": prompt,
            "dtype": self.dtype,
            "sha256": hashlib.sha256(bits.tobytes()).hexdigest(),
        }


def _batches(prompts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]
