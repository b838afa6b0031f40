"""What the weights room must know of a kind of model to import, export and verify it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any, Generic, TypeVar

import jax
from flax import nnx

from wamjax.types import PRNGKey
from wamjax.weights.recipe import Recipe
from wamjax.weights.rules import TensorRule

ConfigT = TypeVar("ConfigT")


def no_outputs(module: Any, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Stands where a kind has no forward pass; nobody calls it."""
    raise AssertionError(f"{type(module).__name__} computes nothing from {sorted(inputs)}")


def no_config(names: Container[str]) -> dict[str, Any]:
    """Stands where a kind's checkpoints always come with a ``config.json``."""
    del names
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelKind(Generic[ConfigT]):
    """A model class of a reference library, and ours that equals it.

    Attributes:
      class_name: ``_class_name`` (diffusers) or ``architectures[0]`` (transformers) in its ``config.json``.
      parse_config: ``config.json`` -> our configuration. Raises ``ConfigError`` naming a value we do not support.
      build: (key, configuration) -> the module; also called under ``nnx.eval_shape``.
      rules: (configuration, naming) -> one rule per parameter; namings are listed in ``namings``.
      namings: Names of the checkpoint namings that exist: ``diffusers``, ``original``.
      outputs: (module as built, inputs by the reference's argument names) -> outputs as ``weights verify`` names them;
        Left out where its forward pass is not one of ours.
      class_aliases: Other class names whose checkpoints hold this model.
      ignored: Pattern (``fnmatch``) of tensors that checkpoints may hold and the model does not use -> why not.
      file_stem: What the reference library calls the file of the tensors.
      recipe: How a model of this kind is begun from a plain backbone; None where it is not.
      default_config: Names of a checkpoint's tensors -> the ``config.json`` that it was published without; empty where
        the names do not say which model it is.
    """

    class_name: str
    parse_config: Callable[[Mapping[str, Any]], ConfigT]
    build: Callable[[PRNGKey, ConfigT], nnx.Module]
    rules: Callable[[ConfigT, str], tuple[TensorRule, ...]]
    namings: tuple[str, ...]
    outputs: Callable[[Any, Mapping[str, jax.Array]], dict[str, jax.Array]] = no_outputs
    class_aliases: tuple[str, ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    file_stem: str = "diffusion_pytorch_model"
    recipe: Recipe | None = None
    default_config: Callable[[Container[str]], dict[str, Any]] = no_config

    @property
    def has_outputs(self) -> bool:
        """Returns whether ``outputs`` computes anything."""
        return self.outputs is not no_outputs
