"""A folder of imported weights: parameters in our layout, and the record of where they came from.

Layout: ``config.json`` (the reference's own, verbatim), ``params/`` (Orbax), ``weights.json`` (the record, written
last: a folder without it is half written).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from wamjax.errors import ConfigError, DataError
from wamjax.types import PureDict

RECORD = "weights.json"
CONFIG = "config.json"
_PARAMS = "params"
_CONCURRENT_BYTES = 2**28  # written at one time: bounds memory, and is still a disk's full speed


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """Where weights came from and how to give them back.

    Attributes:
      kind: Class name of the reference model.
      naming: Whose tensor names the source had.
      parent_hash: Hash of the source's files.
      dtypes: Tensor name -> dtype as stored in the source, where the parameter holds another (wider) one.
      renamed: Reference name -> the alias under which the source held the tensor.
      duplicates: (alias, name) of tensors the source held a second time.
      ignored: Tensors of the source that were not read, as the user said or because the kind has no use for them.
      made: Tensor -> how its parameter was made, of each that the source, a plain backbone, did not hold.
      seed: Of what was drawn among them.
    """

    kind: str
    naming: str
    parent_hash: str
    dtypes: dict[str, str]
    renamed: dict[str, str]
    duplicates: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    made: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int | None = None


def save_weights(directory: Path, params: PureDict, config: dict[str, Any], record: WeightsRecord) -> None:
    """Writes ``directory``.

    Raises:
      ConfigError: It exists and is not empty.
      DataError: The disk is full, or the folder cannot be written.
    """
    require_empty(directory)
    directory = directory.absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _memory_bound():
            ocp.save_checkpointables(str(directory / _PARAMS), {_PARAMS: _with_text_keys(params)})
        (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        half = directory / f"{RECORD}.tmp"
        half.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8")
        os.replace(half, directory / RECORD)
    except Exception as error:  # Orbax passes on whatever its storage raises
        shutil.rmtree(directory / _PARAMS, ignore_errors=True)
        reason = " ".join(str(error).split())
        raise DataError(
            f"weights could not be written to {directory}: {type(error).__name__}: {reason[-160:]}"
        ) from error


def require_empty(directory: Path) -> None:
    """Raises ``ConfigError`` unless ``directory`` can become a new folder of weights."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"--out={directory} exists and is not an empty folder; name another, or remove it")


def read_record(directory: Path) -> tuple[WeightsRecord, dict[str, Any]]:
    """Returns the record and the reference's ``config.json`` of ``directory``.

    Raises:
      DataError: It is not a folder of imported weights, or half written, or damaged.
    """
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        duplicates = tuple((str(alias), str(name)) for alias, name in record["duplicates"])
        return WeightsRecord(**{**record, "duplicates": duplicates, "ignored": tuple(record["ignored"])}), config
    except FileNotFoundError as error:
        raise DataError(
            f"{directory} has no {Path(error.filename).name}: expected a folder that `wamjax weights import` completed"
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{directory}/{RECORD} is damaged: {error}; import the weights again") from error


def load_weights(directory: Path, abstract: PureDict) -> PureDict:
    """Loads the parameters onto the shardings of ``abstract``.

    Args:
      directory: A folder of weights.
      abstract: Pure dict of ``jax.ShapeDtypeStruct`` with shardings; a dtype of another width casts.

    Raises:
      DataError: They cannot be read.
    """
    try:
        with _memory_bound():
            wanted = {_PARAMS: _with_text_keys(abstract)}
            loaded = ocp.load_checkpointables(str(directory.absolute() / _PARAMS), wanted)[_PARAMS]
    except Exception as error:  # whatever Orbax's storage raises
        reason = " ".join(str(error).split())
        raise DataError(f"{directory}/{_PARAMS} cannot be read: {reason[:160]}; import the weights again") from error
    return _with_keys_of(loaded, abstract)


def stored_dtypes(directory: Path, like: PureDict) -> PureDict:
    """Returns shape and dtype of each parameter as stored, as ``jax.ShapeDtypeStruct``, in the tree of ``like``."""
    metadata = ocp.checkpointables_metadata(str(directory.absolute() / _PARAMS)).metadata[_PARAMS]
    return _with_keys_of(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata), like)


def _with_text_keys(tree: Any) -> Any:
    """Returns a nested dict with every key as text: Orbax gives back nothing else (a list of modules has numbers)."""
    return {str(key): _with_text_keys(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _with_keys_of(tree: Any, like: Any) -> Any:
    """Returns what ``_with_text_keys`` was made of, whose keys are those of ``like``."""
    return (
        {key: _with_keys_of(tree[str(key)], value) for key, value in like.items()} if isinstance(like, dict) else tree
    )


def _memory_bound() -> ocp.Context:
    """Returns how Orbax reads and writes: never much more than the arrays themselves in memory."""
    context = ocp.Context()
    context.array.saving.use_compression = False  # weights do not compress, and compressing is slower than a disk
    context.memory.write_concurrent_bytes = _CONCURRENT_BYTES
    context.memory.read_concurrent_bytes = _CONCURRENT_BYTES
    context.memory.transfer_concurrent_bytes = _CONCURRENT_BYTES
    return context
