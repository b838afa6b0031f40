"""Tensor rules: how each parameter of ours is stored in a reference checkpoint, both ways from one declaration.

A rule names one parameter of ours, the tensor (or one tensor per layer) that holds it in a checkpoint, and the einops
pattern between the two layouts. Import applies the pattern, export its reverse, so that nothing is written twice and a
round trip is exact. Knows nothing of files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import einops
import numpy as np

LAYER = "{layer}"  # in a reference name: one tensor per layer, stacked along our first dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRule:
    """One parameter and its tensor.

    Attributes:
      path: Ours, dotted, as in a pure dict of parameters: ``blocks.self_attention.query.kernel``.
      name: The reference's: ``blocks.{layer}.attn1.to_q.weight``. With ``{layer}`` our array has one more dim in front.
      pattern: einops pattern from the reference's tensor to ours, without the layer dim: ``(k e) d -> d k e``. Only
        reorders, splits and merges dims; ``""`` when they are equal.
      sizes: Sizes the pattern needs to split dims: ``{"k": 12}``. None of length 1 may be invented or dropped silently:
        write ``d c 1 1 1 -> c d`` to drop them.
      aliases: Other names under which checkpoints hold the same tensor (tied weights, another version's prefix). Read
        where ``name`` is missing; never written. A checkpoint that has several must hold equal tensors.
    """

    path: str
    name: str
    pattern: str = ""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def is_stacked(self) -> bool:
        """Returns whether the reference has one tensor per layer."""
        return LAYER in self.name

    def name_of(self, layer: int) -> str:
        """Returns the reference's name of ``layer`` (of the only tensor, if the rule is not stacked)."""
        return self.name.replace(LAYER, str(layer))

    def names_of(self, layer: int) -> tuple[str, ...]:
        """Returns every name under which a checkpoint may hold ``layer``, the written one first."""
        return tuple(name.replace(LAYER, str(layer)) for name in (self.name, *self.aliases))

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Returns one reference tensor in our layout; a view where the pattern only splits and reorders dims."""
        return einops.rearrange(tensor, self.pattern, **self.sizes) if self.pattern else tensor

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """Returns one layer of our array in the reference's layout; a view where that is possible."""
        if not self.pattern:
            return array
        reference, ours = self.pattern.split("->")
        sizes = {
            name: size for name, size in self.sizes.items() if name in ours.replace("(", " ").replace(")", " ").split()
        }
        return einops.rearrange(array, f"{ours} -> {reference}", **sizes)

    def reference_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of one tensor in the reference's layout, of a parameter of ``shape`` (layers included)."""
        layer = shape[1:] if self.is_stacked else shape
        return self.to_reference(np.broadcast_to(np.zeros((), np.uint8), layer)).shape


def nested(rules: Iterable[TensorRule], path: str) -> tuple[TensorRule, ...]:
    """Returns ``rules`` for a model that holds theirs under ``path``; the tensors' names stay."""
    return tuple(dataclasses.replace(rule, path=path + rule.path) for rule in rules)


def also_named(rules: Iterable[TensorRule], *prefixes: str) -> tuple[TensorRule, ...]:
    """Returns ``rules`` that are also read where a checkpoint's names begin with one of ``prefixes``."""
    return tuple(
        dataclasses.replace(rule, aliases=(*rule.aliases, *(prefix + rule.name for prefix in prefixes)))
        for rule in rules
    )


def linear_rules(path: str, name: str) -> tuple[TensorRule, ...]:
    """Returns the rules of a linear layer whose weight the reference stores as [out in]."""
    return (
        TensorRule(path=f"{path}.kernel", name=f"{name}.weight", pattern="o i -> i o"),
        TensorRule(path=f"{path}.bias", name=f"{name}.bias"),
    )
