"""Writes docs/compute_ledger.md: the published compute figures of world-action models and their exact counts.

Usage: python -m launch.compute_ledger
"""

from __future__ import annotations

from pathlib import Path

from wamjax.planning.published_page import render

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compute_ledger.md"


def main() -> None:
    """Writes the page."""
    PAGE.write_text(render())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
