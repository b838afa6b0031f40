"""Numbers that a plan takes for granted, each with where it is from, and the tag that figures of a plan carry."""

from __future__ import annotations

import dataclasses
import enum


class Source(enum.StrEnum):
    """How a figure of a plan came about."""

    EXACT = "computed exactly"
    COMPILED = "compiled"
    MEASURED = "measured"
    ASSUMED = "assumed"

    @property
    def tag(self) -> str:
        """One letter for tables: e, c, m or a."""
        return {"computed exactly": "e", "compiled": "c", "measured": "m", "assumed": "a"}[self.value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumption:
    """One number.

    Attributes:
      name: What it is.
      value: In ``unit``.
      unit: Its unit; empty for a share.
      source: Where it is from.
    """

    name: str
    value: float
    unit: str
    source: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value:g}{' ' + self.unit if self.unit else ''} ({self.source})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """A number that is not known well.

    Attributes:
      low: The least that is likely.
      mid: What is expected.
      high: The most that is likely.
    """

    low: float
    mid: float
    high: float

    def __post_init__(self) -> None:
        assert self.low <= self.mid <= self.high, f"{self.low}, {self.mid}, {self.high} do not ascend"

    def to_json(self) -> dict[str, float]:
        """Returns ``{"low", "mid", "high"}``."""
        return {"low": self.low, "mid": self.mid, "high": self.high}
