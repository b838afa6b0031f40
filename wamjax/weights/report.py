"""What a checkpoint and a model have in common and what not, both ways, in words."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from wamjax.weights.rules import TensorRule, tensors_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Names on both sides. Nothing is dropped without being in here.

    Attributes:
      matched: Reference name -> name in the checkpoint (its own, or an alias) of each tensor that fills a parameter.
      duplicates: (alias, name) of tensors the checkpoint holds a second time.
      missing: Tensors the model needs and the checkpoint lacks.
      unexpected: Tensors the checkpoint holds and the model has no place for.
      ignored: Unexpected tensors that the user said to leave out or the kind has no use for.
      misshaped: (tensor, shape in the checkpoint, the parameters it should fill, shape that would).
    """

    matched: dict[str, str]
    duplicates: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[str, ...], tuple[int, ...]], ...]

    @property
    def is_exact(self) -> bool:
        """Returns whether every parameter has its tensor and every tensor its parameter."""
        return not (self.missing or self.unexpected or self.misshaped)

    def describe(self) -> str:
        """Returns one line that names counts and the first name of each kind of difference."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing, first {self.missing[0]}")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected, first {self.unexpected[0]}")
        if self.misshaped:
            name, stored, paths, wanted = self.misshaped[0]
            parts.append(
                f"{len(self.misshaped)} of another shape, first {name} {stored}; expected {wanted} for "
                + ", ".join(paths)
            )
        if self.ignored:
            parts.append(f"{len(self.ignored)} ignored, first {self.ignored[0]}")
        return f"{len(self.matched)} tensors matched" + "".join(f"; {part}" for part in parts)


def compare_names(
    rules: Sequence[TensorRule],
    params: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    ignore: Sequence[str] = (),
) -> Comparison:
    """Compares a model's parameters with a checkpoint's tensors.

    Args:
      rules: One per parameter.
      params: Path -> anything with a ``shape``, of every parameter of the model.
      shapes: Tensor name -> shape, of the whole checkpoint.
      ignore: Patterns (``*``) of tensors that may be left out.
    """
    unruled = sorted(set(params) ^ {rule.path for rule in rules})
    assert not unruled, f"rules and parameters differ: {unruled[:3]}"
    wanted = tensors_of(rules, {path: tuple(leaf.shape) for path, leaf in params.items()})
    matched: dict[str, str] = {}
    duplicates, missing, misshaped, known = [], [], [], set()
    for name, tensor in wanted.items():
        held = [candidate for candidate in tensor.rules[0].names_of(tensor.layer) if candidate in shapes]
        known.update(held)
        if not held:
            missing.append(name)
            continue
        wrong = [candidate for candidate in held if tuple(shapes[candidate]) != tensor.shape]
        paths = tuple(rule.path for rule in tensor.rules)
        misshaped += [(candidate, tuple(shapes[candidate]), paths, tensor.shape) for candidate in wrong]
        if not wrong:
            matched[name] = held[0]
            duplicates += [(alias, held[0]) for alias in held[1:]]
    extra = [name for name in shapes if name not in known]
    ignored = [name for name in extra if any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)]
    return Comparison(
        matched=matched,
        duplicates=tuple(duplicates),
        missing=tuple(missing),
        unexpected=tuple(name for name in extra if name not in set(ignored)),
        ignored=tuple(ignored),
        misshaped=tuple(misshaped),
    )
