"""A plan as a page and as Markdown: whole, self-contained, with every number's source."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from launch.plan_report import to_markdown, write_report
from launch.plan_tables import Table, as_markdown, source_of, tabulate
from tests.tiny import TINY
from wamjax.config.schema import RunConfig
from wamjax.planning.cost import load_prices
from wamjax.planning.machine import machine_of_chips
from wamjax.planning.plan import make_plan
from wamjax.planning.plan_json import to_json
from wamjax.planning.search import Candidate, pareto, search

VOID = {"meta", "link", "img", "source", "br", "hr", "input"}


def config_of(dtype: Any) -> RunConfig:
    model = dataclasses.replace(TINY.model, compute_dtype=dtype)
    parallel = dataclasses.replace(TINY.parallel, fsdp=-1)
    return dataclasses.replace(TINY, name="a <tiny> | plan", model=model, parallel=parallel)


def plan_of(chips: str | None, dtype: Any = "bfloat16") -> dict[str, Any]:
    machine = None if chips is None else machine_of_chips(chips)
    return json.loads(json.dumps(to_json(make_plan(config_of(dtype), machine=machine))))


@pytest.fixture(scope="module")
def plan() -> dict[str, Any]:
    return plan_of("h200:8")


@pytest.fixture(scope="module")
def searched(plan: dict[str, Any]) -> dict[str, Any]:
    config, candidates = config_of("bfloat16"), []
    for chips in ("h200:8", "h100:4", "a100:8"):
        mesh = {"data": 1, "fsdp": machine_of_chips(chips).num_devices, "context": 1, "tensor": 1}
        candidates.append(
            Candidate(machine=machine_of_chips(chips), mesh=mesh, context_method="auto", remat="none", parts=1)
        )
    results = search(config, candidates, steps=100, prices=load_prices())
    values = {"results": [one.to_json() for one in results], "pareto": [one.to_json() for one in pareto(results)]}
    return {**plan, "search": json.loads(json.dumps(values))}


class Page(html.parser.HTMLParser):
    """Checks that tags close in order, and collects what the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.references += [str(values[name]) for name in ("src", "srcset", "href") if name in values]
        self.anchors |= {str(values["id"])} if "id" in values else set()
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def page_of(plan: dict[str, Any], tmp_path: Path) -> tuple[str, Page]:
    write_report(plan, tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text()
    return text, Page(text)


def test_page_is_whole_and_needs_nothing_else(searched: dict[str, Any], tmp_path: Path) -> None:
    text, page = page_of(searched, tmp_path)
    assert "<script" not in text
    outside = [one for one in page.references if not one.startswith(("data:", "#"))]
    assert not outside
    assert {one[1:] for one in page.references if one.startswith("#")} <= page.anchors
    assert len(re.findall("<picture>", text)) == 5, "FLOPs, memory, time, goodput, time against money"
    assert "a &lt;tiny&gt; | plan" in text


def test_tables_hold_the_numbers_of_the_plan_and_their_source(plan: dict[str, Any]) -> None:
    tables = {table.key: table for table in tabulate(plan)}
    assert list(tables) == [
        "summary", "sample", "flops", "run", "memory", "time", "goodput", "feed", "cost", "assumptions",
    ]  # fmt: skip
    summary = {row[0]: row[1:] for row in tables["summary"].rows}
    assert summary["parameters"] == (f"{plan['model']['parameters']:,}", "computed exactly")
    assert summary["step time"][1] == "assumed"
    total = tables["flops"].rows[-1]
    assert total[1:4] == tuple(
        f"{plan['flops'][key]:,}"
        for key in ("forward_per_sample", "train_model_per_sample", "train_hardware_per_sample")
    )
    assert all(len(row) == len(table.head) for table in tables.values() for row in table.rows)
    assert any("Llama 3" in row[2] for row in tables["assumptions"].rows)


def test_markdown_has_every_table(searched: dict[str, Any]) -> None:
    text = to_markdown(searched)
    assert text.startswith("# Plan of a <tiny> | plan\n")
    for table in tabulate(searched):
        assert f"## {table.title}\n" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in rows]
    assert min(widths) >= 3
    changes = sum(a != b for a, b in itertools.pairwise(widths))
    assert changes < len(tabulate(searched)), "columns change only between tables"


def test_markdown_cell_cannot_break_its_row() -> None:
    table = Table(key="k", title="T", head=("", "b"), rows=(("x | y", "line\nbreak"),))
    assert as_markdown([table]).splitlines()[2:] == ["|   | b |", "| --- | --- |", "| x \\| y | line break |"]


def test_plan_without_a_machine_shows_what_it_has(tmp_path: Path) -> None:
    plan = plan_of(None)
    assert [table.key for table in tabulate(plan)] == ["summary", "sample", "flops", "run"]
    text, _ = page_of(plan, tmp_path)
    assert "no machine chosen" in text
    assert len(re.findall("<picture>", text)) == 1


def test_plan_without_a_step_time_says_why() -> None:
    plan = plan_of("h200:8", "float32")
    assert "unknown: no listed float32 peak for NVIDIA H200" in to_markdown(plan)
    assert [table.key for table in tabulate(plan)] == ["summary", "sample", "flops", "run", "memory"]


def test_compiled_memory_stands_beside_the_planned(plan: dict[str, Any]) -> None:
    total = plan["memory"]["total_bytes"]
    compiled = {**plan, "compile": {"peak_bytes": 2 * total}}
    rows = {row[0]: row for table in tabulate(compiled) if table.key == "memory" for row in table.rows}
    assert "-50.0% planned" in rows["the compiler's peak"][1]


def test_source_is_that_of_the_longest_prefix() -> None:
    plan = {"sources": {"memory": {"source": "a"}, "memory.loss_bytes": {"source": "b"}}}
    assert [source_of(plan, key) for key in ("memory.x", "memory.loss_bytes", "time")] == ["a", "b", ""]
