"""The base of a finetuned run: the parameters of another run that this one starts from.

Owns reading them and saying which they are. Which of them are trained on is ``training.trainable``'s. A run of
formulation ``video`` may be the base of any system that has its video transformer: what the system has beside that is
made anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from absl import logging

from wamjax.config.finetune import is_update
from wamjax.errors import ConfigError
from wamjax.parallel.parameters import flatten_params
from wamjax.training.checkpoint import CheckpointStore
from wamjax.training.checkpoint_record import CheckpointError, CheckpointRecord
from wamjax.training.trainable import join_trees, split_tree
from wamjax.types import PureDict

_CHECKPOINTS = "checkpoints"
_TRUNK = "video"  # where a system with action modules holds its video transformer
_SECTIONS = ("ema", "params", "frozen")  # of a state, in the order in which a parameter is looked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Parameters to start from.

    Attributes:
      params: All but the low-rank updates, on the mesh; of a video model's run those of the video transformer alone.
      hash: Says which they are: of the digests of every array.
      path: The checkpoint they were read from.
    """

    params: PureDict
    hash: str
    path: Path


def load_base(folder: Path, abstract_params: PureDict) -> Base:
    """Loads the parameters of a run, as they would be evaluated: the average if the run kept one.

    Args:
      folder: A work directory (its newest checkpoint that verifies is taken), or a checkpoint ``.../checkpoints/400``.
      abstract_params: Shapes, dtypes and shardings of all parameters of the model at hand; its low-rank updates are
        not looked for.

    Raises:
      ConfigError: There is no such run, or its model is neither this one nor the video transformer of this one.
      CheckpointError: No checkpoint can be trusted.
    """
    store, steps = _find(folder)
    wanted = split_tree(abstract_params, is_update)[1]
    problem: CheckpointError | None = None
    for step in reversed(steps):
        try:
            record = store.read_record(step)
            is_trunk = _is_of_trunk(record, wanted)
            sections = _sections(store.path(step), record, wanted[_TRUNK] if is_trunk else wanted)
            parts = store.restore(step, sections, is_part=True).state
        except CheckpointError as error:
            problem = error
            logging.warning("%s; trying an older checkpoint of the base", error)
            continue
        params: PureDict = {}
        for section in parts.values():
            params = join_trees(params, section)
        params = {_TRUNK: params} if is_trunk else params
        return Base(params=params, hash=_hash(record, sections), path=store.path(step))
    raise problem or ConfigError(f"config.finetune.base={folder} has no checkpoint; train the base first")


def _find(folder: Path) -> tuple[CheckpointStore, list[int]]:
    """Returns the checkpoints ``folder`` stands for."""
    if folder.name.isdecimal() and folder.parent.name == _CHECKPOINTS:
        return CheckpointStore(folder.parent), [int(folder.name)]
    if (folder / "weights.json").exists():
        raise ConfigError(
            f"config.finetune.base={folder} holds weights of another library's model; expected the work directory of a "
            "run of this model"
        )
    if not (folder / _CHECKPOINTS).is_dir():
        raise ConfigError(
            f"config.finetune.base={folder} is no run; expected a work directory with {_CHECKPOINTS}/, or one of them"
        )
    store = CheckpointStore(folder / _CHECKPOINTS)
    return store, store.steps


def _is_of_trunk(record: CheckpointRecord, wanted: PureDict) -> bool:
    """Returns whether a base is a video model and ``wanted`` a system that has one among other modules."""
    if not isinstance(wanted.get(_TRUNK), dict):
        return False
    held = {name.partition(".")[2] for name in record.digests if name.partition(".")[0] in _SECTIONS}
    return not any(name.startswith(f"{_TRUNK}.") for name in held) and not held.isdisjoint(
        flatten_params(wanted[_TRUNK])
    )


def _sections(path: Path, record: CheckpointRecord, wanted: PureDict) -> dict[str, PureDict]:
    """Returns the part of the state of ``record`` that holds each of ``wanted``."""
    if record.base_hash is not None:
        raise ConfigError(
            f"config.finetune.base={path} is a finetuned run that kept parameters of its own base and holds only what "
            "it trained; use its own base, or one that trained everything"
        )
    where = {
        name: next((section for section in _SECTIONS if f"{section}.{name}" in record.digests), None)
        for name in flatten_params(wanted)
    }
    absent = [name for name, section in where.items() if section is None]
    if absent:
        raise ConfigError(
            f"config.finetune.base={path} has no parameter {absent[0]}"
            + (f" (nor {len(absent) - 1} more)" if absent[1:] else "")
            + "; the model must be that of the base's run.json, or have it as its video transformer"
        )
    found: dict[str, Any] = {}
    for section in _SECTIONS:
        part = split_tree(wanted, lambda name, section=section: where[name] == section)[0]
        if part:
            found[section] = part
    return found


def _hash(record: CheckpointRecord, sections: dict[str, PureDict]) -> str:
    """Returns a short hash of the digests of the arrays in ``sections``."""
    digests = {
        name: record.digests[f"{section}.{name}"] for section, part in sections.items() for name in flatten_params(part)
    }
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]
