"""Initialisers that carry logical axis names.

Every parameter of the library is made through ``named``, so that ``parallel.rules`` can place it. The names live
under the metadata key ``axes`` (NNX's own ``out_sharding`` key would shard at construction).
"""

from __future__ import annotations

from typing import Any

from flax import nnx
from jax.nn.initializers import Initializer, variance_scaling, zeros

from wamjax.parallel.rules import AXES_KEY
from wamjax.types import PRNGKey


def fan_in(
    scale: float = 1.0, *, in_axis: int | tuple[int, ...] = -2, out_axis: int | tuple[int, ...] = -1
) -> Initializer:
    """Returns a truncated-normal initialiser of variance ``scale / fan_in``."""
    return variance_scaling(scale, "fan_in", "truncated_normal", in_axis=in_axis, out_axis=out_axis)


def named(key: PRNGKey, init: Initializer, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param[Any]:
    """Makes an fp32 parameter of ``shape`` whose dims carry the logical names ``axes``."""
    assert len(shape) == len(axes), f"{len(shape)} dims, {len(axes)} names: {shape} {axes}"
    return nnx.Param(init(key, shape, "float32"), axes=axes)


def whole_width(axes: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """Returns the names of a vector's dims from those of its kernel: the model width of a vector is not split.

    Vectors are small, and where kernels are gathered layer by layer theirs would be one more exchange each.
    """
    return tuple(None if name == "embed" else name for name in axes)


__all__ = ["AXES_KEY", "fan_in", "named", "whole_width", "zeros"]
