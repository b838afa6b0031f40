"""Writes docs/planner_accuracy.md: the planner beside compiled programs and published runs.

Usage: python -m launch.planner_accuracy
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.experiment import load_experiment
from wamjax.config.bridge import apply_overrides
from wamjax.config.schema import RunConfig
from wamjax.planning.references_page import render

_ROOT = Path(__file__).resolve().parents[1]
PAGE = _ROOT / "docs" / "planner_accuracy.md"


def load(name: str, overrides: Sequence[str]) -> RunConfig:
    """Returns the configuration of the experiment ``name`` below ``experiments/`` with ``KEY=VALUE`` overrides."""
    return apply_overrides(load_experiment(str(_ROOT / "experiments" / name)), overrides)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(render(load))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
