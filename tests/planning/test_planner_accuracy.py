from launch.planner_accuracy import PAGE, load
from wamjax.layout import build_layout
from wamjax.planning.machine import machine_of_topology
from wamjax.planning.plan import plan_on
from wamjax.planning.references import COMPILED
from wamjax.planning.references_page import render


def test_page_is_what_the_planner_says_now() -> None:
    assert PAGE.read_text() == render(load), "python -m launch.planner_accuracy writes it anew; look at what moved"


def test_planned_memory_is_within_a_tenth_of_the_compilers_or_the_gap_is_told_by_kind() -> None:
    for row in COMPILED:
        config = load(row.experiment, row.overrides)
        memory = plan_on(config, build_layout(config), machine_of_topology(row.topology)).memory
        assert abs(memory.total / 2**30 / row.peak_gib - 1) < (0.3 if row.gap else 0.1), row
