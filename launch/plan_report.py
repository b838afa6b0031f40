"""A plan as one HTML page that needs nothing else, and as Markdown for a design document.

Both are made from the JSON object that ``wamjax plan --json`` writes, with the one of ``wamjax plan search --json``
under ``search`` where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch import plots
from launch.page import page_template
from launch.plan_tables import as_markdown, tabulate


def write_report(plan: Mapping[str, Any], path: Path | str) -> None:
    """Writes the page of ``plan`` to ``path``."""
    tables = tabulate(plan)
    page = page_template("plan.html.j2").render(
        name=plan["name"],
        tables=tables,
        plots=_plots(plan),
        sources=[(key, entry["source"], entry["note"]) for key, entry in plan.get("sources", {}).items()],
    )
    Path(path).write_text(page, encoding="utf-8")


def to_markdown(plan: Mapping[str, Any]) -> str:
    """Returns ``plan`` as Markdown tables."""
    return f"# Plan of {plan['name']}\n\n{as_markdown(tabulate(plan))}"


def _plots(plan: Mapping[str, Any]) -> dict[str, plots.Plot]:
    """Returns the plots of the tables that have one, by the table's key."""
    flops = plan["flops"]
    found = {
        "flops": plots.plot_components(flops["train_model_by_component"], flops["train_hardware_by_component"]),
    }
    if "memory" in plan:
        memory = plan["memory"]
        kinds = {
            key.removesuffix("_bytes"): size
            for key, size in memory.items()
            if key.endswith("_bytes") and key not in ("total_bytes", "hbm_bytes", "host_bytes", "checkpoint_bytes")
        }
        compiled = plan.get("compile", {}).get("peak_bytes")
        found["memory"] = plots.plot_memory(kinds, limit=memory["hbm_bytes"], compiled=compiled)
    if plan.get("time", {}).get("step_s"):
        found["time"] = plots.plot_phases(plan["time"]["phases"], plan["time"]["step_s"])
    if "goodput" in plan:
        found["goodput"] = plots.plot_buckets(plan["goodput"]["buckets"])
    if plan.get("search", {}).get("pareto"):
        found["search"] = plots.plot_pareto(plan["search"]["results"], plan["search"]["pareto"])
    return found
