"""The table of model kinds, by the class name their ``config.json`` carries."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from wamjax.errors import ConfigError
from wamjax.weights.kinds import (
    autoencoder_kl_wan,
    clip_vision,
    cosmos_transformer,
    dreamzero,
    fast_wam,
    lingbot_va,
    umt5_encoder,
    wan_transformer,
)
from wamjax.weights.kinds.kind import ModelKind

_ALL: tuple[ModelKind[Any], ...] = (
    wan_transformer.KIND,
    cosmos_transformer.KIND,
    autoencoder_kl_wan.KIND,
    umt5_encoder.KIND,
    clip_vision.KIND,
    dreamzero.KIND,
    lingbot_va.KIND,
    fast_wam.KIND,
)

KINDS: Mapping[str, ModelKind[Any]] = {name: kind for kind in _ALL for name in (kind.class_name, *kind.class_aliases)}


def find_kind(config: Mapping[str, Any], name: str | None = None) -> ModelKind[Any]:
    """Returns the kind of a checkpoint.

    Args:
      config: Its ``config.json``: ``_class_name`` (diffusers) or the first of ``architectures`` (transformers) is read.
      name: The class name to use instead (``--kind``).

    Raises:
      ConfigError: No class name, or one that is not known.
    """
    stated = [name] if name else _class_names(config)
    for candidate in stated:
        if candidate in KINDS:
            return KINDS[candidate]
    known = ", ".join(sorted(KINDS))
    if not stated:
        raise ConfigError(
            f"config.json is missing, or has neither _class_name nor architectures; say --kind=..., one of {known}"
        )
    near = difflib.get_close_matches(str(stated[0]), KINDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"model class {stated[0]!r} is not known{hint} (known: {known})")


def states_kind(config: Mapping[str, Any], kind: ModelKind[Any]) -> bool:
    """Returns whether a ``config.json`` is one of ``kind``: it names its class, or no class at all but has values."""
    stated = _class_names(config)
    return any(KINDS.get(name) is kind for name in stated) if stated else bool(config)


def _class_names(config: Mapping[str, Any]) -> list[str]:
    return [name for name in (config.get("_class_name"), *(config.get("architectures") or ())) if name]
