"""``Assumption``: a number that a plan takes for granted, together with where it comes from."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumption:
    """A number that was not computed from the configuration.

    Attributes:
      value: The number.
      unit: Its unit; empty for a share or a count.
      source: Who published or measured it, or that it is a guess.
    """

    value: float
    unit: str = ""
    source: str

    def describe(self) -> str:
        """One line: ``2.93 GB/s (source)``."""
        return f"{self.value:g}{' ' if self.unit else ''}{self.unit} ({self.source})"


def to_json(assumptions: object) -> dict[str, dict[str, float | str]]:
    """Returns the fields of a dataclass of assumptions, each as ``{"value", "unit", "source"}``."""
    assert dataclasses.is_dataclass(assumptions) and not isinstance(assumptions, type)
    return {
        field.name: dataclasses.asdict(getattr(assumptions, field.name)) for field in dataclasses.fields(assumptions)
    }
