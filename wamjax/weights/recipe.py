"""Recipes: how a system with action modules is begun from a plain video backbone.

A system's checkpoint holds a backbone and modules of its own. Where there is only the backbone, the recipe says how
each of those modules' parameters is made: drawn, or computed from a tensor of the backbone. Knows nothing of files;
``weights.initialise`` carries it out.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from wamjax.errors import ConfigError
from wamjax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A parameter that is drawn at random, or constant.

    Attributes:
      init: (key, shape, dtype) -> the parameter in our layout.
      words: How, for the report.
    """

    init: Callable[[PRNGKey, tuple[int, ...], Any], jax.Array]
    words: str


@dataclasses.dataclass(frozen=True)
class Derived:
    """A parameter that is computed from one of the backbone.

    Attributes:
      source: Path of the backbone's parameter in the backbone's own module; stacked exactly if the new one is.
      function: (tensor, shape) -> the new tensor of ``shape``, both of one layer and in the reference's layout.
      words: How, for the report, which adds the name of the source's tensor.
    """

    source: str
    function: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    words: str


Made = Drawn | Derived


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a system is begun from a plain backbone.

    Attributes:
      base: Class name of the backbone's kind.
      path: Where the system's module holds the backbone: ``video.``.
      own_tensor: Pattern (``fnmatch``) of a tensor that every checkpoint of the system has and no backbone.
      options: Name -> default of each size that a backbone does not determine; None where it must be given.
      reference_config: (the backbone's ``config.json``, options) -> the system's.
      made: The system's configuration -> how each of its parameters outside the backbone is made, by path.
    """

    base: str
    path: str
    own_tensor: str
    options: Mapping[str, int | None]
    reference_config: Callable[[Mapping[str, Any], Mapping[str, int]], dict[str, Any]]
    made: Callable[[Any], dict[str, Made]]

    def is_backbone(self, names: Iterable[str]) -> bool:
        """Returns whether a checkpoint with tensors ``names`` is a plain backbone, without the system's modules."""
        return not any(fnmatch.fnmatchcase(name, self.own_tensor) for name in names)

    def complete(self, given: Mapping[str, int]) -> dict[str, int]:
        """Returns ``given`` options with defaults for the rest.

        Raises:
          ConfigError: One is not known, or one without a default is missing.
        """
        unknown = sorted(set(given) - set(self.options))
        if unknown:
            raise ConfigError(f"--option={unknown[0]} is not known here; expected one of {', '.join(self.options)}")
        options = {name: given.get(name, default) for name, default in self.options.items()}
        absent = [name for name, value in options.items() if value is None]
        if absent:
            raise ConfigError(f"{absent[0]} cannot be read off a plain backbone; give it as --option={absent[0]}=...")
        return {name: value for name, value in options.items() if value is not None}


def torch_linear(fan_in: int) -> Drawn:
    """Returns how PyTorch draws weight and bias of ``nn.Linear``: uniform within 1 / sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Drawn(init, f"uniform within {bound:.4g}")


def copied(source: str) -> Derived:
    """Returns how a parameter is copied from the backbone's ``source``."""

    def same(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        assert tensor.shape == shape, f"{source} {tensor.shape} for {shape}"
        return tensor

    return Derived(source, same, "copied")


def interpolated(source: str) -> Derived:
    """Returns how a parameter of a narrower expert is made from the backbone's ``source`` (``interpolate_expert``)."""
    return Derived(source, interpolate_expert, "interpolated")


def interpolate_expert(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resizes a weight of the video stack to ``shape`` and keeps what it adds up to.

    y = sqrt(last dim of tensor / last dim of shape) resize(x, shape) where the last dim, the one a linear layer sums
    over, changes and there is another; y = resize(x, shape) otherwise. With random inputs the variance of a layer's
    output would otherwise shrink with its width.

    Args:
      tensor: In the reference's layout (a linear layer's weight is [out in]).
      shape: The same number of dims.

    Returns:
      fp32, also of a narrower tensor.

    Source: Fast-WAM, scripts/preprocess_action_dit_backbone.py; LingBot-VA's paper describes the same for its action
    stream. What differs: a bfloat16 tensor is not rounded between resizing and scaling.
    """
    resized = resize_linear(tensor, shape)
    if tensor.ndim > 1 and tensor.shape[-1] != shape[-1]:
        resized = resized * np.float32((tensor.shape[-1] / shape[-1]) ** 0.5)
    return resized


def resize_linear(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resizes ``tensor`` to ``shape`` in fp32 by linear interpolation along one dim after the other.

    y_i = (1 - w) x_j + w x_(j+1), j + w = i (size - 1) / (new size - 1): the first and last entries stay (PyTorch's
    ``align_corners``), and places are rounded to fp32 as PyTorch's. A new size of 1 takes the first entry.
    """
    assert tensor.ndim == len(shape), f"{tensor.shape} cannot be resized to {shape}"
    out = tensor.astype(np.float32)
    for dim, size in enumerate(shape):
        old = out.shape[dim]
        if old == size:
            continue
        step = np.float32((old - 1) / (size - 1)) if size > 1 else np.float32(0)
        places = np.minimum(np.arange(size, dtype=np.float32) * step, np.float32(old - 1))
        first = places.astype(np.int64)
        weight = (places - first.astype(np.float32)).reshape(-1, *(1,) * (out.ndim - dim - 1))
        last = np.minimum(first + 1, old - 1)
        out = np.take(out, first, axis=dim) * (1 - weight) + np.take(out, last, axis=dim) * weight
    return out
