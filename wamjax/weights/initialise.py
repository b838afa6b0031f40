"""Beginning a system from a plain backbone: the parameters that no checkpoint holds, made by the system's recipe.

What is made, and how, is a ``Recipe``; reading the backbone itself is ``load``'s. Every process computes a derived
tensor whole from the mapped file and keeps its own shards; drawn ones are drawn sharded.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.errors import ConfigError
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.kinds.registry import KINDS
from wamjax.weights.recipe import Derived, Drawn
from wamjax.weights.rules import TensorRule
from wamjax.weights.tensors import TensorFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initialise:
    """The consent to make parameters that a checkpoint does not hold.

    Attributes:
      seed: Of what is drawn.
      options: Sizes that the backbone does not determine, by name.
    """

    seed: int = 0
    options: Mapping[str, int] = dataclasses.field(default_factory=dict)


def begin_config(
    kind: ModelKind[Any], backbone_config: Mapping[str, Any], source: object, initialise: Initialise | None
) -> dict[str, Any]:
    """Returns the ``config.json`` of the system that is begun from a plain backbone.

    Args:
      kind: The system's kind; it has a recipe.
      backbone_config: The backbone's ``config.json``.
      source: Where the backbone is, for messages.
      initialise: The consent, or None.

    Raises:
      ConfigError: There is no consent, the backbone is of another class than the recipe's, or an option is wrong.
    """
    recipe = kind.recipe
    assert recipe is not None
    stated = backbone_config.get("_class_name") or next(iter(backbone_config.get("architectures") or ()), recipe.base)
    if KINDS.get(stated) not in (KINDS[recipe.base], kind):
        raise ConfigError(f"{source} holds a {stated}; {kind.class_name} is begun from a {recipe.base}")
    if initialise is None:
        raise ConfigError(
            f"{source} is a plain backbone without the action modules of {kind.class_name} (no tensor "
            f"{recipe.own_tensor}); --initialise_missing makes them by its recipe and names them"
        )
    return recipe.reference_config(backbone_config, recipe.complete(initialise.options))


def make_params(
    kind: ModelKind[Any],
    config: Any,
    base_rules: Sequence[TensorRule],
    folder: TensorFolder,
    stored_names: Mapping[str, str],
    shardings: Mapping[str, jax.sharding.Sharding],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    seed: int,
    dtype: str,
) -> tuple[dict[str, jax.Array], dict[str, str]]:
    """Makes the parameters of a system that its backbone does not hold.

    Args:
      kind: The system's kind; it has a recipe.
      config: Its configuration.
      base_rules: Of the backbone, with paths in the backbone's own module.
      folder: The backbone's tensors.
      stored_names: Reference name -> name in ``folder`` of each.
      shardings: Path -> where the parameter goes.
      shapes: Path -> its shape, the layer dim included.
      seed: Of what is drawn; each parameter has a key of its own, by its path.
      dtype: Of the parameters; ``preserve`` is fp32, since there is nothing to preserve.

    Returns:
      Path -> global array; and the system's tensor (``{layer}`` for one per layer) -> how it was made, in words.
    """
    assert kind.recipe is not None
    kept = jnp.dtype("float32" if dtype == "preserve" else dtype)
    own, base = ({rule.path: rule for rule in group} for group in (kind.rules(config, kind.namings[0]), base_rules))
    root, params, words = jax.random.key(seed), {}, {}
    for path, how in kind.recipe.made(config).items():
        rule, shape, sharding = own[path], shapes[path], shardings[path]
        words[rule.name] = how.words if isinstance(how, Drawn) else f"{how.words} from {base[how.source].name}"
        if isinstance(how, Drawn):
            key = jax.random.fold_in(root, zlib.crc32(path.encode()))
            draw = jax.jit(how.init, static_argnums=(1, 2), out_shardings=sharding)
            params[path] = draw(key, shape, jnp.float32).astype(kept)
            continue
        tensors = _derive(how, rule, base[how.source], folder, stored_names, shape)
        stacked = np.stack(tensors) if rule.is_stacked else tensors[0]
        whole = np.array(stacked, kept, order="C")  # a copy: on a CPU it could otherwise be the mapped file itself
        params[path] = jax.make_array_from_callback(shape, sharding, whole.__getitem__)
        folder.release()
    return params, words


def _derive(
    how: Derived,
    rule: TensorRule,
    source: TensorRule,
    folder: TensorFolder,
    stored_names: Mapping[str, str],
    shape: tuple[int, ...],
) -> list[np.ndarray]:
    """Returns every layer of one derived parameter, in our layout."""
    assert rule.is_stacked == source.is_stacked, f"{rule.path} and {source.path}"
    assert rule.part == source.part == (0, 1), "a recipe's functions take whole tensors"
    wanted = rule.reference_shape(shape)
    layers = range(shape[0] if rule.is_stacked else 1)
    views = (folder.view(stored_names[source.name_of(layer)]) for layer in layers)
    return [rule.to_ours(how.function(view, wanted)) for view in views]
