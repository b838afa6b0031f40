"""Import and export: a reference checkpoint to a folder of weights and back, nothing lost on the way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from wamjax.errors import ConfigError, DataError
from wamjax.parallel.parameters import flatten_params, parameter_shardings
from wamjax.types import PureDict
from wamjax.weights.adapter import load_adapter, merge_adapter
from wamjax.weights.initialise import Initialise, begin_config, make_params
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.kinds.registry import KINDS, find_kind, states_kind
from wamjax.weights.load import load_params
from wamjax.weights.report import Comparison, compare_names
from wamjax.weights.rules import Tensor, TensorRule, nested, tensors_of
from wamjax.weights.store import (
    CONFIG,
    WeightsRecord,
    load_weights,
    read_record,
    require_empty,
    save_weights,
    stored_dtypes,
)
from wamjax.weights.tensors import TensorFolder
from wamjax.weights.write import write_tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A reference checkpoint in memory.

    Attributes:
      kind: Its kind.
      config: Our configuration of it.
      reference_config: Its ``config.json``.
      naming: Whose names its tensors carry.
      params: Pure dict on the mesh.
      comparison: Names on both sides.
      folder: Its tensors.
      rules: Of the tensors that were read; not those of ``naming`` where the checkpoint is a plain backbone.
      made: Tensor, as ``naming`` calls it -> how its parameter was made, of each that the checkpoint does not hold.
    """

    kind: ModelKind[Any]
    config: Any
    reference_config: dict[str, Any]
    naming: str
    params: PureDict
    comparison: Comparison
    folder: TensorFolder
    rules: tuple[TensorRule, ...]
    made: dict[str, str] = dataclasses.field(default_factory=dict)


def read_reference_config(source: Path) -> dict[str, Any]:
    """Returns ``config.json`` beside the tensors of ``source``; empty if there is none.

    Raises:
      DataError: It is not a JSON object.
    """
    path = (source if source.is_dir() else source.parent) / CONFIG
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{path} holds a {type(config).__name__}; expected a JSON object")
    return config


def load_reference(
    source: Path,
    mesh: Mesh,
    *,
    kind_name: str | None = None,
    dtype: str = "preserve",
    ignore: Sequence[str] = (),
    folder: TensorFolder | None = None,
    initialise: Initialise | None = None,
) -> Loaded:
    """Loads a reference checkpoint onto ``mesh``.

    Args:
      source: Folder with ``config.json`` and safetensors. Without one of its kind the ``default_config`` of the kind
        counts, if its tensors have one.
      mesh: Where parameters go, by the parameter rules.
      kind_name: Class name, where ``config.json`` does not say it.
      dtype: ``preserve``, or a dtype to cast to.
      ignore: Patterns of tensors that may be left out.
      folder: The tensors, where they are not all of ``source``.
      initialise: How to make the modules that a system adds, where ``source`` is a plain backbone; None refuses it.

    Raises:
      ConfigError: The class or a value of ``config.json`` is not supported, or a plain backbone is refused.
      DataError: Files are damaged, or names and shapes do not fit.
    """
    reference_config = read_reference_config(source)
    kind = find_kind(reference_config, kind_name)
    folder = TensorFolder(source) if folder is None else folder
    if not states_kind(reference_config, kind):
        reference_config = kind.default_config(folder) or reference_config
    recipe = kind.recipe if kind.recipe is not None and kind.recipe.is_backbone(folder) else None
    if recipe is not None:
        reference_config = begin_config(kind, reference_config, source, initialise)
    elif initialise is not None and kind.recipe is None:
        raise ConfigError(
            f"--initialise_missing makes action modules, and a {kind.class_name} has none; say --kind=..., a system"
        )
    elif initialise is not None and initialise.options:
        raise ConfigError(f"--option has no use for {source}, which holds all of a {kind.class_name}")
    config = kind.parse_config(reference_config)
    variables = nnx.split(nnx.eval_shape(lambda: kind.build(jax.random.key(0), config)))[1]
    abstract = flatten_params(nnx.to_pure_dict(variables))
    shardings = flatten_params(parameter_shardings(variables, mesh, uneven_whole=True))
    sizes = {path: tuple(leaf.shape) for path, leaf in abstract.items()}

    # What the checkpoint holds: the model, or the part of it that is a model of another kind.
    held, its_config, its_path = (
        (kind, config, "") if recipe is None else (KINDS[recipe.base], config.video, recipe.path)
    )
    part = {path.removeprefix(its_path): leaf for path, leaf in abstract.items() if path.startswith(its_path)}
    naming, comparison = _best_naming(held, its_config, part, folder, ignore)
    _require_exact(source, held, naming, comparison, folder)
    part_rules = held.rules(its_config, naming)
    rules = nested(part_rules, its_path)
    flat, made = load_params(folder, rules, shardings, sizes, comparison.matched, dtype), {}
    if initialise is not None and recipe is not None:
        found = (folder, comparison.matched, shardings, sizes)
        added, made = make_params(kind, config, part_rules, *found, seed=initialise.seed, dtype=dtype)
        flat |= added
    treedef = jax.tree.structure(nnx.to_pure_dict(variables))
    return Loaded(
        kind=kind,
        config=config,
        reference_config=reference_config or {"_class_name": kind.class_name},
        naming=naming if recipe is None else kind.namings[0],
        params=jax.tree.unflatten(treedef, [flat[path] for path in abstract]),
        comparison=comparison,
        folder=folder,
        rules=rules,
        made=made,
    )


def _require_exact(
    source: Path, kind: ModelKind[Any], naming: str, comparison: Comparison, folder: TensorFolder
) -> None:
    """Raises ``DataError`` unless every parameter of ``kind`` has its tensor, and copies of one tensor are equal."""
    if not comparison.is_exact:
        raise DataError(
            f"{source} does not fit {kind.class_name} ({naming} names): {comparison.describe()}"
            + ("; --ignore='pattern' leaves unexpected tensors out" if comparison.unexpected else "")
        )
    for alias, name in comparison.duplicates:
        if not np.array_equal(folder.view(alias).view(np.uint8), folder.view(name).view(np.uint8)):
            raise DataError(f"{source}: {alias} and {name} are one parameter of {kind.class_name} but differ")


def import_weights(
    source: Path,
    out: Path,
    mesh: Mesh,
    *,
    kind_name: str | None = None,
    dtype: str = "preserve",
    ignore: Sequence[str] = (),
    initialise: Initialise | None = None,
) -> Loaded:
    """Imports a reference checkpoint into the folder ``out``; arguments and errors as ``load_reference``."""
    require_empty(out)
    folder = TensorFolder(source)
    with ThreadPoolExecutor(max_workers=1) as pool:
        parent = pool.submit(folder.hash)  # reads the same bytes at the same time
        loaded = load_reference(
            source, mesh, kind_name=kind_name, dtype=dtype, ignore=ignore, folder=folder, initialise=initialise
        )
        # A backbone's own names mean nothing to the system it became part of: it is exported under the system's.
        comparison = loaded.comparison if not loaded.made else None
        record = WeightsRecord(
            kind=loaded.kind.class_name,
            naming=loaded.naming,
            parent_hash=parent.result(),
            dtypes=_narrower_dtypes(loaded) if dtype == "preserve" else {},
            renamed={name: held for name, held in comparison.matched.items() if name != held} if comparison else {},
            duplicates=comparison.duplicates if comparison else (),
            ignored=loaded.comparison.ignored,
            made=loaded.made,
            seed=initialise.seed if initialise is not None and loaded.made else None,
        )
    save_weights(out, loaded.params, loaded.reference_config, record)
    return loaded


def export_weights(
    directory: Path,
    out: Path,
    mesh: Mesh,
    *,
    naming: str | None = None,
    lora: Path | None = None,
    max_file_bytes: int,
) -> list[Path]:
    """Writes a folder of weights as a reference checkpoint: ``config.json`` and safetensors.

    Args:
      directory: What ``import_weights`` wrote.
      out: New folder.
      mesh: Where the parameters are loaded on the way.
      naming: Whose tensor names to write; None takes those it was imported with.
      lora: Adapter file of low-rank updates to add to their kernels.
      max_file_bytes: Files are closed before they grow beyond this.

    Raises:
      ConfigError: The kind has no such naming, or the adapter was trained on other weights.
      DataError: ``directory`` cannot be read or ``out`` not be written, or the adapter does not fit.
    """
    require_empty(out)
    record, reference_config = read_record(directory)
    kind = find_kind(reference_config, record.kind)
    config = kind.parse_config(reference_config)
    naming = naming or record.naming
    if naming not in kind.namings:
        raise ConfigError(f"--naming={naming} does not exist for {kind.class_name}; expected one of {kind.namings}")
    variables = nnx.split(nnx.eval_shape(lambda: kind.build(jax.random.key(0), config)))[1]
    shardings = parameter_shardings(variables, mesh, uneven_whole=True)
    stored = stored_dtypes(directory, shardings)
    abstract = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), stored, shardings)
    adapter = load_adapter(lora, kind, config, base_hash=record.parent_hash) if lora else None
    params = load_weights(directory, abstract)
    flat = flatten_params(merge_adapter(params, adapter) if adapter else params)
    source_rules = {rule.path: rule for rule in kind.rules(config, record.naming)}
    places = tensors_of(kind.rules(config, naming), {path: array.shape for path, array in flat.items()})
    if naming == record.naming:  # under the very names of the source
        places = {record.renamed.get(name, name): tensor for name, tensor in places.items()}
        places |= {alias: places[name] for alias, name in record.duplicates}
    dtypes = {name: _dtype_to_write(tensor, source_rules, record, flat) for name, tensor in places.items()}

    def read(name: str) -> np.ndarray:
        tensor, parts = places[name], []
        for rule in tensor.rules:
            array = flat[rule.path]
            piece = np.asarray(jax.device_get(array[tensor.layer] if rule.is_stacked else array))
            parts.append(rule.to_reference(piece).astype(dtypes[name], copy=False))
        return tensor.join(parts)

    planned = [(name, dtypes[name], tensor.shape) for name, tensor in places.items()]

    out.mkdir(parents=True, exist_ok=True)
    files = write_tensors(out, kind.file_stem, planned, read, max_file_bytes=max_file_bytes)
    (out / CONFIG).write_text(json.dumps(reference_config, indent=2) + "\n", encoding="utf-8")
    return files


def _dtype_to_write(
    tensor: Tensor, source_rules: Mapping[str, TensorRule], record: WeightsRecord, params: Mapping[str, jax.Array]
) -> np.dtype:
    """Returns the dtype that ``tensor`` had in the source; the widest of its parts where these were separate there."""
    dtypes = []
    for rule in tensor.rules:
        narrow = record.dtypes.get(source_rules[rule.path].name_of(tensor.layer))
        dtypes.append(jnp.dtype(narrow) if narrow else jnp.dtype(params[rule.path].dtype))
    return np.result_type(*dtypes)


def _best_naming(
    kind: ModelKind[Any],
    config: Any,
    abstract: Mapping[str, Any],
    folder: TensorFolder,
    ignore: Sequence[str],
) -> tuple[str, Comparison]:
    """Returns the naming under which most tensors match; where none fits, the one whose names are there."""
    shapes = {name: tensor.shape for name, tensor in folder.items()}
    patterns = (*ignore, *kind.ignored)
    compared = {
        naming: compare_names(kind.rules(config, naming), abstract, shapes, patterns) for naming in kind.namings
    }
    naming = max(compared, key=lambda name: (len(compared[name].matched), len(compared[name].misshaped)))
    return naming, compared[naming]


def _narrower_dtypes(loaded: Loaded) -> dict[str, str]:
    """Returns the tensors, as ``loaded.naming`` calls them, whose dtype is not the one their parameter was given."""
    flat, narrower = flatten_params(loaded.params), {}
    names = {rule.path: rule for rule in loaded.kind.rules(loaded.config, loaded.naming)}
    for rule in loaded.rules:
        array = flat[rule.path]
        for layer in range(array.shape[0] if rule.is_stacked else 1):
            stored = loaded.folder[loaded.comparison.matched[rule.name_of(layer)]].dtype
            if stored != array.dtype:
                narrower[names[rule.path].name_of(layer)] = stored.name
    return narrower
