"""Adapter files: the low-rank updates of a pretrained model, as diffusers and ``peft`` write and read them.

An update of the kernel behind ``blocks.0.attn1.to_q.weight`` ``[o i]`` is stored as
``transformer.blocks.0.attn1.to_q.lora_A.weight`` ``[r i]`` and ``...lora_B.weight`` ``[o r]``, one pair per layer. The
file's metadata hold rank and alpha, and the hash of the weights it was trained on: on others it is refused.

Owns the file and its mapping to our parameters; the layers' arithmetic is ``nn.lora``'s.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from wamjax.config.finetune import UPDATE_OF, LoraConfig, is_update
from wamjax.errors import ConfigError, DataError
from wamjax.nn.lora import adaptable_kernels, merged_kernel
from wamjax.parallel.parameters import flatten_params
from wamjax.types import PureDict
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.rules import TensorRule
from wamjax.weights.tensors import TensorFolder

_NAMING = "diffusers"
_PREFIX = "transformer."
_BASE_HASH = "base_hash"
_DETAILS = "lora_adapter_metadata"  # where diffusers keeps the settings of peft
# Settings of peft that change what an update does.
_UNSUPPORTED = ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern", "fan_in_fan_out", "lora_bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """Updates in memory.

    Attributes:
      updates: Path of the kernel -> ``{"down", "up"}`` as ``nn.lora.LowRank`` holds them.
      config: Rank and alpha, and the kernels' paths as targets.
      base_hash: Of the weights it was trained on; None where the file does not say.
    """

    updates: dict[str, dict[str, np.ndarray]]
    config: LoraConfig
    base_hash: str | None


def save_adapter(
    path: Path, kind: ModelKind[Any], model_config: Any, params: PureDict, lora: LoraConfig, *, base_hash: str
) -> None:
    """Writes the updates among ``params`` to the safetensors file ``path``.

    Args:
      path: A file; replaced if it exists.
      kind: Of the model.
      model_config: Its configuration.
      params: Its parameters, or the updates alone; whole on this process.
      lora: What they were made with.
      base_hash: Hash of the weights they were trained on (``WeightsRecord.parent_hash``).

    Raises:
      ConfigError: There are no updates, or such models have no names in adapter files.
      DataError: The file cannot be written.
    """
    flat = {name: leaf for name, leaf in flatten_params(params).items() if is_update(name)}
    if not flat:
        raise ConfigError(f"{kind.class_name} has no low-rank update to write to {path}; attach them first")
    tensors: dict[str, np.ndarray] = {}
    modules: list[str] = []
    for pair in _pairs(kind, model_config):
        update = {part: flat.get(f"{pair.update}.{part}") for part in ("down", "up")}
        if update["down"] is None or update["up"] is None:
            continue
        down, up = (np.asarray(jax.device_get(update[part]), np.float32) for part in ("down", "up"))
        for layer in range(len(down) if pair.rule.is_stacked else 1):
            own = (down[layer], up[layer]) if pair.rule.is_stacked else (down, up)
            modules.append(pair.module(layer))
            for name, tensor in zip(pair.names(layer), pair.to_reference(*own), strict=True):
                tensors[name] = np.ascontiguousarray(tensor)
    details = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": modules}
    metadata = {
        "format": "pt",
        _BASE_HASH: base_hash,
        _DETAILS: json.dumps({f"{_PREFIX}{key}": value for key, value in details.items()}, sort_keys=True),
    }
    half = path.with_name(f"{path.name}.tmp")
    try:
        save_file(tensors, half, metadata=metadata)
        os.replace(half, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; free space or name another file") from error


def load_adapter(path: Path, kind: ModelKind[Any], model_config: Any, *, base_hash: str) -> Adapter:
    """Reads the updates in ``path`` for the weights with ``base_hash``.

    Args:
      path: An adapter file, ours or one that diffusers or ``peft`` wrote. Without settings alpha is the rank, as there.
      kind: Of the model.
      model_config: Its configuration.
      base_hash: Hash of the weights at hand.

    Raises:
      ConfigError: It was trained on other weights, or is of a model that adapter files have no names for.
      DataError: The file is damaged, or holds tensors that do not fit the model.
    """
    folder, metadata = TensorFolder(path), _read_metadata(path)
    trained_on = metadata.get(_BASE_HASH)
    if trained_on not in (None, base_hash):
        raise ConfigError(
            f"{path} was trained on the weights with hash {trained_on}; those at hand have {base_hash}: load the "
            "weights it was trained on"
        )
    pairs = _pairs(kind, model_config)
    known = {name: (pair, layer) for pair in pairs for layer in range(pair.num_layers) for name in pair.names(layer)}
    given = {_PREFIX + name.removeprefix(_PREFIX): name for name in folder}
    foreign = [stored for name, stored in given.items() if name not in known]
    if foreign:
        raise DataError(
            f"{path}: {len(foreign)} of {len(given)} tensors are no update of {kind.class_name}, first {foreign[0]}"
        )
    rank = _rank(path, folder)
    updates: dict[str, dict[str, np.ndarray]] = {}
    for name in given:
        pair, layer = known[name]
        first, second = pair.names(layer)
        absent = [part for part in (first, second) if part not in given]
        if absent:
            raise DataError(f"{path} has {name} without {absent[0]}")
        if name == first:
            held = updates.setdefault(pair.rule.path, pair.zeros(rank))  # layers that are not in the file get none
            views = (folder.view(given[part]).astype(np.float32) for part in (first, second))
            for part, value in zip(("down", "up"), pair.to_ours(path, layer, *views), strict=True):
                held[part][layer if pair.rule.is_stacked else ...] = value
    alpha = _alpha(path, metadata, rank)
    return Adapter(
        updates=updates, config=LoraConfig(rank=rank, alpha=alpha, targets=tuple(updates)), base_hash=trained_on
    )


def merge_adapter(params: PureDict, adapter: Adapter) -> PureDict:
    """Returns ``params`` with every update added to its kernel, each where and in the dtype it is."""
    scale, num_merged = adapter.config.alpha / adapter.config.rank, 0
    merge = jax.jit(merged_kernel, static_argnums=3)

    def merge_at(path: Any, leaf: jax.Array) -> jax.Array:
        nonlocal num_merged
        update = adapter.updates.get(jax.tree_util.keystr(path, simple=True, separator="."))
        if update is None:
            return leaf
        num_merged += 1
        return jax.device_put(merge(leaf, update["down"], update["up"], scale), leaf.sharding)

    merged = jax.tree_util.tree_map_with_path(merge_at, params)
    assert num_merged == len(adapter.updates), "an update of another model"
    return merged


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pair:
    """The two tensors per layer that hold the update of one kernel."""

    rule: TensorRule
    shape: tuple[int, ...]
    num_inputs: int

    @property
    def update(self) -> str:
        """Path of the update."""
        parent, _, name = self.rule.path.rpartition(".")
        return f"{parent}.{UPDATE_OF[name]}" if parent else UPDATE_OF[name]

    @property
    def num_layers(self) -> int:
        return self.shape[0] if self.rule.is_stacked else 1

    def module(self, layer: int) -> str:
        """Returns the reference's module."""
        return self.rule.name_of(layer).removesuffix(".weight")

    def names(self, layer: int) -> tuple[str, str]:
        """Returns the names of the tensors of ``down`` and ``up``."""
        module = _PREFIX + self.module(layer)
        return f"{module}.lora_A.weight", f"{module}.lora_B.weight"

    def to_reference(self, down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ``A`` and ``B`` of one layer.

        The rule of the kernel maps the side it splits or reorders (heads, patches), the rank standing in for the other
        side, which is only transposed.
        """
        if self._is_output_plain:
            first = self.rule.to_reference(down)
            return first, up.T.reshape(up.shape[1], up.shape[0], *[1] * (first.ndim - 2))
        return down.T, self.rule.to_reference(up)

    def to_ours(self, path: Path, layer: int, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ``down`` and ``up`` of one layer from ``A`` and ``B``.

        Raises:
          DataError: A shape does not fit.
        """
        down, up = (np.zeros(shape, np.float32) for shape in self._layer_shapes(first.shape[0]))
        for name, tensor, expected in zip(self.names(layer), (first, second), self.to_reference(down, up), strict=True):
            if tensor.shape != expected.shape:
                raise DataError(f"{path}: {name} has shape {tensor.shape}; expected {expected.shape}")
        if self._is_output_plain:
            return self.rule.to_ours(first), second.reshape(second.shape[:2]).T
        return first.T, self.rule.to_ours(second)

    def zeros(self, rank: int) -> dict[str, np.ndarray]:
        """Returns an update that changes nothing."""
        lead = self.shape[:1] if self.rule.is_stacked else ()
        shapes = zip(("down", "up"), self._layer_shapes(rank), strict=True)
        return {part: np.zeros((*lead, *shape), np.float32) for part, shape in shapes}

    def _layer_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        own = self.shape[1:] if self.rule.is_stacked else self.shape
        return (*own[: self.num_inputs], rank), (rank, *own[self.num_inputs :])

    @property
    def _is_output_plain(self) -> bool:
        """Whether the reference's outputs are one dim that the rule leaves as it is; otherwise its inputs are."""
        return not self.rule.pattern.lstrip().startswith("(")


def _pairs(kind: ModelKind[Any], config: Any) -> list[_Pair]:
    """Returns where the updates of a model lie in a file.

    Raises:
      ConfigError: Nobody exchanges updates of such a model.
    """
    if _NAMING not in kind.namings:
        raise ConfigError(f"{kind.class_name} has no {_NAMING} names; adapter files carry those alone")
    model = nnx.eval_shape(lambda: kind.build(jax.random.key(0), config))
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten_params(nnx.to_pure_dict(nnx.state(model))).items()}
    num_inputs = adaptable_kernels(model)
    return [
        _Pair(rule=rule, shape=shapes[rule.path], num_inputs=num_inputs[rule.path])
        for rule in kind.rules(config, _NAMING)
        if rule.path in num_inputs
    ]


def _rank(path: Path, folder: Mapping[str, Any]) -> int:
    """Returns the rank that all updates of a file share."""
    ranks = {tensor.shape[0] for name, tensor in folder.items() if name.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise DataError(f"{path} holds updates of ranks {sorted(ranks)}; expected one rank")
    return ranks.pop()


def _alpha(path: Path, metadata: Mapping[str, str], rank: int) -> float:
    """Returns the alpha of a file; the rank where it has no settings.

    Raises:
      DataError: Its updates are scaled or applied in a way that is not ours.
    """
    try:
        stored = json.loads(metadata.get(_DETAILS, "{}"))
        details = {key.removeprefix(_PREFIX): value for key, value in stored.items()}
        alpha = float(details.get("lora_alpha", rank))
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: metadata {_DETAILS} is damaged: {error}") from error
    other = [key for key in _UNSUPPORTED if details.get(key)]
    if other:
        raise DataError(
            f"{path} has {other[0]}={details[other[0]]!r}; only plain updates scaled by alpha / rank are supported: "
            "merge it with peft first"
        )
    return alpha


def _read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}
