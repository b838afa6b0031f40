"""Tensor rules: how each parameter of ours is stored in a reference checkpoint, both ways from one declaration.

A rule names one parameter of ours, the tensor (or one tensor per layer) that holds it in a checkpoint, and the einops
pattern between the two layouts. Import applies the pattern, export its reverse, so that nothing is written twice and a
round trip is exact. A fused tensor holds several parameters one after the other, each with a rule. Knows nothing of
files.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

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
      part: (index, count): the parameter is the ``index``-th of ``count`` equal parts of the tensor's first dim, and
        other rules of the same name have the others. ``(0, 3)`` is the query of a fused query, key and value.
    """

    path: str
    name: str
    pattern: str = ""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    part: tuple[int, int] = (0, 1)

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

    def part_of(self, tensor: np.ndarray) -> np.ndarray:
        """Returns the rows of one reference tensor that hold the parameter, as a view; all unless it is fused."""
        index, count = self.part
        return np.split(tensor, count)[index] if count > 1 else tensor

    def part_to_ours(self, part: np.ndarray) -> np.ndarray:
        """Returns what ``part_of`` gives in our layout; a view where the pattern only splits and reorders dims."""
        return einops.rearrange(part, self.pattern, **self.sizes) if self.pattern else part

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Returns the parameter that one reference tensor holds, in our layout; a view where that is possible."""
        return self.part_to_ours(self.part_of(tensor))

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """Returns one layer of our array in the reference's layout, the reverse of ``part_to_ours``."""
        if not self.pattern:
            return array
        reference, ours = self.pattern.split("->")
        sizes = {
            name: size for name, size in self.sizes.items() if name in ours.replace("(", " ").replace(")", " ").split()
        }
        return einops.rearrange(array, f"{ours} -> {reference}", **sizes)

    def reference_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the tensor, all of its parts, for a parameter of ``shape`` (layers included)."""
        layer = shape[1:] if self.is_stacked else shape
        part = self.to_reference(np.broadcast_to(np.zeros((), np.uint8), layer)).shape
        _, count = self.part
        return (part[0] * count, *part[1:]) if count > 1 else part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a reference checkpoint.

    Attributes:
      rules: Of the parameters it holds, in the order of its rows; one unless it is fused.
      layer: Which; 0 where the rules are not stacked.
      shape: Its own.
    """

    rules: tuple[TensorRule, ...]
    layer: int
    shape: tuple[int, ...]

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the tensor of its parts, each in the reference's layout; where there is one, that."""
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


def tensors_of(rules: Iterable[TensorRule], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Returns every tensor of a reference checkpoint by name, in the order of ``rules``; a fused one once.

    Args:
      rules: One per parameter.
      shapes: Path -> shape of the parameter, the layer dim included.
    """
    sharing: dict[str, list[TensorRule]] = defaultdict(list)
    for rule in rules:
        sharing[rule.name].append(rule)
    found = {}
    for name, unordered in sharing.items():
        parts = tuple(sorted(unordered, key=lambda rule: rule.part))
        assert [rule.part for rule in parts] == [(i, len(parts)) for i in range(len(parts))], f"{name} has gaps"
        shape, *others = {rule.reference_shape(shapes[rule.path]) for rule in parts}
        assert not others, f"{name}: its parts differ in size"
        num_layers = shapes[parts[0].path][0] if parts[0].is_stacked else 1
        for layer in range(num_layers):
            found[parts[0].name_of(layer)] = Tensor(rules=parts, layer=layer, shape=shape)
    return found


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
