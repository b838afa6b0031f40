import dataclasses
import itertools

import pytest

from tests.tiny import TINY
from wamjax.config.schema import ParallelConfig
from wamjax.planning.cost import load_prices
from wamjax.planning.machine import machine_of_chips, machine_of_topology
from wamjax.planning.run_length import Wanted
from wamjax.planning.search import Candidate, Result, Space, candidates, pareto, search

CONFIG = dataclasses.replace(
    TINY,
    model=dataclasses.replace(TINY.model, compute_dtype="bfloat16"),
    layout=dataclasses.replace(TINY.layout, pad_multiple=128),
    parallel=ParallelConfig(),
)
MACHINE = machine_of_topology("v5e:2x2")


def run(space: Space, wanted: Wanted | None = None, config=CONFIG) -> list[Result]:
    return search(config, candidates(config, MACHINE, space), steps=100, prices=load_prices(), wanted=wanted)


def test_every_mesh_of_the_devices_is_tried_once() -> None:
    meshes = [tuple(c.mesh.values()) for c in candidates(CONFIG, MACHINE, Space(remats=("none",), parts=(1,)))]
    assert len({mesh for mesh in meshes if mesh[2] == 1}) == meshes.count((4, 1, 1, 1)) * 6  # 4 over three axes
    expected = {m for m in itertools.product((1, 2, 4), repeat=4) if m[0] * m[1] * m[2] * m[3] == 4}
    assert set(meshes) == expected


def test_results_are_ranked_by_time_and_refusals_say_why() -> None:
    results = run(Space(remats=("none", "full"), parts=(1, 3), tensor=(1, 4)))
    feasible = [r for r in results if not r.why_not]
    refused = results[len(feasible) :]
    assert feasible
    assert [r.step_s for r in feasible] == sorted(r.step_s for r in feasible)
    assert refused
    assert all(r.why_not and "\n" not in r.why_not for r in refused)


def test_what_does_not_fit_names_its_largest_kind() -> None:
    wide = dataclasses.replace(CONFIG.model, width=8192, num_heads=64, ffn_width=32768, num_layers=40)
    (result, *_) = run(Space(remats=("none",), parts=(1,), tensor=(1,)), config=dataclasses.replace(CONFIG, model=wide))
    assert "GiB of 15.8" in result.why_not
    assert "of them" in result.why_not


def test_deadline_and_budget_refuse() -> None:
    space = Space(remats=("none",), parts=(1,), tensor=(1,), max_context=1)
    assert all("days" in r.why_not for r in run(space, Wanted(deadline_s=1e-3)) if r.on)
    assert all("USD" in r.why_not for r in run(space, Wanted(budget_usd=1e-6)) if r.on)


def test_a_candidate_changes_the_layout_and_nothing_else() -> None:
    mesh = {"data": 1, "fsdp": 2, "context": 1, "tensor": 2}
    laid = Candidate(machine=MACHINE, mesh=mesh, context_method="auto", remat="full", parts=2).apply(CONFIG)
    assert (laid.parallel.fsdp, laid.parallel.tensor, laid.parallel.blocks) == (2, 2, "sharded")
    assert (laid.model.remat, laid.train.accumulate) == ("full", 2)
    assert (laid.data, laid.objective, laid.optimizer) == (CONFIG.data, CONFIG.objective, CONFIG.optimizer)


def test_the_front_holds_what_no_other_beats_in_time_and_money() -> None:
    machines = [machine_of_chips(name) for name in ("v5e:4", "v5e:8", "v6e:4", "v6e:8")]
    space = Space(remats=("none",), parts=(1,), tensor=(1,), max_context=1)
    prices = load_prices()
    results = [r for m in machines for r in search(CONFIG, candidates(CONFIG, m, space), steps=100, prices=prices)]
    front = pareto(results)

    def both(result: Result) -> tuple[float, float]:
        assert result.outlook is not None
        assert result.outlook.usd is not None
        return result.outlook.elapsed_s.mid, result.outlook.usd.mid

    priced = [r for r in results if not r.why_not and r.outlook is not None]
    assert front
    for result in front:
        assert not any(
            both(o)[0] <= both(result)[0] and both(o)[1] <= both(result)[1] and both(o) != both(result) for o in priced
        )
    for result in priced:
        assert any(both(f)[0] <= both(result)[0] and both(f)[1] <= both(result)[1] for f in front)


@pytest.mark.parametrize("context", [2, 4])
def test_context_methods_that_would_be_equal_are_tried_once(context: int) -> None:
    tried = [c.context_method for c in candidates(CONFIG, MACHINE, Space(remats=("none",), parts=(1,), tensor=(1,)))
             if c.mesh["context"] == context]  # fmt: skip
    assert "ulysses_ring" not in tried  # four heads divide over either: it would be Ulysses
    assert len(tried) == len(set(tried)) * (len(tried) // len(set(tried)))
