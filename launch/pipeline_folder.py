"""A folder of pretrained parts, as diffusers lays out a pipeline: transformer, vae, text_encoder, tokenizer.

Owns which sub-folder holds what and the loading of each part, from a reference checkpoint or from imported weights.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from wamjax.errors import DataError
from wamjax.parallel.parameters import parameter_shardings
from wamjax.types import PureDict
from wamjax.weights.adapter import load_adapter, merge_adapter
from wamjax.weights.exchange import load_reference
from wamjax.weights.kinds.registry import find_kind
from wamjax.weights.store import RECORD, load_weights, read_record
from wamjax.weights.tensors import TensorFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One loaded model.

    Attributes:
      config: Its configuration.
      graphdef: Its structure.
      params: Its parameters on the mesh.
    """

    config: Any
    graphdef: nnx.GraphDef[Any]
    params: PureDict

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns ``function(module, *arguments)``, compiled."""

        @jax.jit
        def run(params: PureDict, arguments: tuple[Any, ...]) -> Any:
            return function(nnx.merge(self.graphdef, params), *arguments)

        return run(self.params, arguments)


@dataclasses.dataclass(frozen=True)
class PipelineFolder:
    """The parts of a pipeline."""

    path: Path

    def has(self, name: str) -> bool:
        """Returns whether there is a sub-folder ``name``."""
        return (self.path / name).is_dir()

    def load(self, name: str, mesh: Mesh, compute_dtype: str, *, lora: Path | None = None) -> Part:
        """Loads the part in sub-folder ``name``; the updates in the adapter file ``lora`` are added to its kernels.

        Raises:
          DataError: It is missing, its weights cannot be read, or the adapter does not fit it.
          ConfigError: Its class is not known, or the adapter was trained on other weights.
        """
        folder = self.path / name
        if not folder.is_dir():
            raise DataError(
                f"--weights={self.path} has no folder {name}; expected transformer, vae, text_encoder and tokenizer"
            )
        return load_part(folder, mesh, compute_dtype, lora=lora)

    @functools.cached_property
    def scheduler(self) -> dict[str, Any]:
        """Returns ``scheduler/scheduler_config.json``; empty if there is none."""
        return self._read_json("scheduler/scheduler_config.json")

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        """Returns ``model_index.json``; empty if there is none."""
        return self._read_json("model_index.json")

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        if not path.exists():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not JSON: {error}") from error


def load_part(folder: Path, mesh: Mesh, compute_dtype: str, *, lora: Path | None = None) -> Part:
    """Loads the model in ``folder``, a reference checkpoint or imported weights. Arguments and errors as ``load``."""
    if (folder / RECORD).exists():
        record, reference_config = read_record(folder)
        kind = find_kind(reference_config, record.kind)
        config = with_compute_dtype(kind.parse_config(reference_config), compute_dtype)
        graphdef, variables = nnx.split(nnx.eval_shape(lambda: kind.build(jax.random.key(0), config)))
        shapes = nnx.to_pure_dict(variables)
        shardings = parameter_shardings(variables, mesh, uneven_whole=True)
        abstract = jax.tree.map(
            lambda shape, place: jax.ShapeDtypeStruct(shape.shape, compute_dtype, sharding=place), shapes, shardings
        )
        adapter = load_adapter(lora, kind, config, base_hash=record.parent_hash) if lora else None
        params = load_weights(folder, abstract)
    else:
        loaded = load_reference(folder, mesh, dtype=compute_dtype)
        config = with_compute_dtype(loaded.config, compute_dtype)
        graphdef = nnx.split(nnx.eval_shape(lambda: loaded.kind.build(jax.random.key(0), config)))[0]
        adapter = load_adapter(lora, loaded.kind, config, base_hash=loaded.folder.hash()) if lora else None
        params = loaded.params
    return Part(config=config, graphdef=graphdef, params=merge_adapter(params, adapter) if adapter else params)


def weights_hash(folder: Path) -> str:
    """Returns the hash of the checkpoint that ``folder`` is or was imported from (reads a checkpoint whole)."""
    if (folder / RECORD).exists():
        return read_record(folder)[0].parent_hash
    return TensorFolder(folder).hash()


def with_compute_dtype(config: Any, dtype: str) -> Any:
    """Returns ``config`` with matrix products in ``dtype``, wherever it declares that."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "compute_dtype":
            changes[field.name] = dtype
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_compute_dtype(value, dtype)
    return dataclasses.replace(config, **changes)
