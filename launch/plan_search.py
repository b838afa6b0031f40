"""Ranks layouts of a run on one machine, or machines for a deadline or a budget.

  wamjax plan search --config=experiments/pretrain/wan_14b_480p.py --topology=v5p:4x4x4
  wamjax plan search --config=FILE --tokens=500e9 --deadline=30d --machines=v5p:4x4x8,v6e:16x16,h100:256

With one machine: every mesh x context method x remat x parts of a step, by expected step time, the infeasible with the
reason. With several (--machines, or none given: slices and nodes of every chip in the tables): each machine's best, by
wall time, and the Pareto front of time against money. --compile_top=N compiles the first N for their TPU slice, which
needs libtpu and minutes each. The global batch is the configuration's: it is a choice of training, not of layout.
"""

from __future__ import annotations

import collections
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch.experiment import config_from_flags, define_config_flag
from launch.output import check_writable
from launch.plan_command import (
    OUTPUTS,
    define_length_flags,
    define_machine_flags,
    define_output_flags,
    define_price_flags,
    efficiencies_from_flags,
    machine_from_flags,
    rate_from_flags,
    wanted_from_flags,
    write_outputs,
)
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.planning.cost import Prices, load_prices
from wamjax.planning.machine import Machine, chip_names, machine_of_chips, machine_of_topology
from wamjax.planning.memory import PLAN_ERROR
from wamjax.planning.plan import make_plan
from wamjax.planning.plan_json import to_json
from wamjax.planning.run_length import Wanted
from wamjax.planning.search import Result, Space, candidates, pareto, search
from wamjax.planning.text import duration

_DEFAULT_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
_SHOWN_INFEASIBLE = 5
_TIGHT = "~"  # marks memory that only a compiler can judge


def define_flags() -> None:
    """Defines the flags of ``wamjax plan search``."""
    define_config_flag()
    define_machine_flags()
    define_length_flags()
    flags.DEFINE_list("machines", [], "Machines to compare: topologies and KIND:N, separated by commas.")
    flags.DEFINE_integer("top", 10, "How many are printed.", lower_bound=1)
    flags.DEFINE_integer("compile_top", 0, "How many of the first are compiled for their TPU slice.", lower_bound=0)
    define_price_flags()
    define_output_flags("the plan of the first result, with all of them under search,")
    flags.DEFINE_string("plot", None, "Write the plot of wall time against money to this PNG file.")


def run(argv: list[str]) -> int:
    """Searches and prints; returns 0."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; wamjax plan search takes flags only")
    values = flags.FLAGS
    for name in (*OUTPUTS, "plot"):
        check_writable(name, values[name].value)
    config, wanted, single = config_from_flags(), wanted_from_flags(), machine_from_flags()
    if single is not None and values.machines:
        raise ConfigError("--machines and --topology or --chips both name machines; give one")
    prices = load_prices(values.prices)
    steps = make_plan(config, wanted=Wanted(steps=wanted.steps, tokens=wanted.tokens, zflops=wanted.zflops)).run.steps
    if single is not None:
        results = _search(config, single, Space(), steps, prices, wanted)
        tried = len(results)
    else:
        machines = [_parse(name) for name in values.machines] if values.machines else _all_machines()
        ranked = [_search_one_of_many(config, machine, steps, prices, wanted) for machine in machines]
        tried, results = sum(map(len, ranked)), [found[0] for found in ranked if found]
        results.sort(key=lambda r: (bool(r.why_not), r.outlook.elapsed_s.mid if r.outlook else 0.0))
    print(describe(config, results, tried=tried, steps=steps, top=values.top))
    if prices.warning:
        print(f"warning: {prices.warning}")
    report: dict[str, Any] = {
        "steps": steps,
        "results": [result.to_json() for result in results],
        "pareto": [result.to_json() for result in pareto(results)],
    }
    if values.compile_top:
        report["compiled"] = _compile(config, results, values.compile_top)
    if any(values[name].value for name in OUTPUTS):
        write_outputs({**_first(config, results, steps, prices), "search": report})
    if values.plot:
        plots = importlib.import_module("launch.plots")
        Path(values.plot).write_bytes(plots.plot_pareto(report["results"], report["pareto"]).light)
    return 0


def _search(
    config: RunConfig, machine: Machine, space: Space, steps: int, prices: Prices, wanted: Wanted
) -> list[Result]:
    tried, efficiencies = candidates(config, machine, space), efficiencies_from_flags(machine)
    return search(config, tried, steps=steps, prices=prices, wanted=wanted, efficiencies=efficiencies)


def _search_one_of_many(
    config: RunConfig, machine: Machine, steps: int, prices: Prices, wanted: Wanted
) -> list[Result]:
    """Searches the layouts that mostly win; all of them, if none of those is feasible."""
    space = Space(context_methods=("auto",), parts=(1,), tensor=(1,), max_context=16)
    found = _search(config, machine, space, steps, prices, wanted)
    if all(result.why_not for result in found):
        found = _search(config, machine, Space(), steps, prices, wanted)
    return found


def _first(config: RunConfig, results: Sequence[Result], steps: int, prices: Prices) -> dict[str, Any]:
    """Returns the plan of the first feasible result; without one, what does not depend on a machine."""
    feasible = [result.candidate for result in results if not result.why_not]
    laid, machine = (feasible[0].apply(config), feasible[0].machine) if feasible else (config, None)
    efficiencies = None if machine is None else efficiencies_from_flags(machine)
    return to_json(
        make_plan(
            laid,
            machine=machine,
            wanted=Wanted(steps=steps),
            rate=rate_from_flags(config),
            prices=prices,
            efficiencies=efficiencies,
        )
    )


def describe(config: RunConfig, results: Sequence[Result], *, tried: int, steps: int, top: int) -> str:
    """Returns the first of ``results`` (of several machines each one's best), the front, and why others cannot be."""
    feasible = [result for result in results if not result.why_not]
    head = (
        f"{config.name}: {tried:,} layouts tried, {len(feasible):,} of {len(results):,} feasible; {steps:,} steps of "
        f"{config.train.global_batch_size:,} samples; all times are expected ones, assumed (see wamjax plan)"
    )
    columns = (
        f"{'':4} {'machine':14} {'mesh':36} {'context':12} {'remat':10} {'':7} {'step':>10} {'MFU':>6} {'GiB':>6} "
        f"{'run':>10} {'USD':>12}  bound by"
    )
    lines = [head, columns]
    lines += [_row(place, result) for place, result in enumerate(feasible[:top], 1)]
    front = pareto(results)
    if len({result.candidate.machine.name for result in results}) > 1 and front:
        lines += ["", "not beaten in both wall time and money:"]
        lines += [_row(place, result) for place, result in enumerate(front, 1)]
    if any(result.memory is not None and result.memory.is_tight for result in feasible[:top]):
        lines += ["", f"{_TIGHT} fits by less than the {PLAN_ERROR:.0%} a plan may be off: --compile_top=N tells"]
    refused = [result for result in results if result.why_not]
    if refused:
        lines += ["", f"{len(refused):,} cannot be, such as"]
        first, count = {r.why_not: r for r in reversed(refused)}, collections.Counter(r.why_not for r in refused)
        commonest = count.most_common(_SHOWN_INFEASIBLE)
        lines += [f"  {first[why].candidate}: {why}" + (f" ({n:,} layouts)" if n > 1 else "") for why, n in commonest]
    return "\n".join(lines)


def _row(place: int, result: Result) -> str:
    on, outlook = result.on, result.outlook
    assert on is not None, "only feasible results have a row"
    assert on.time is not None
    assert outlook is not None
    tight = _TIGHT if on.memory.is_tight else " "
    usd = "-" if outlook.usd is None else f"{outlook.usd.mid:,.0f}"
    return (
        f"{place:4} {result.candidate!s} {duration(result.step_s):>10} {on.time.mfu:6.1%} "
        f"{on.memory.total / 2**30:6.1f}{tight}{duration(outlook.elapsed_s.mid):>10} {usd:>12}  "
        f"{on.time.binding.name_on(result.candidate.machine)}"
    )


def _parse(name: str) -> Machine:
    """Returns the machine called ``name``: a topology, or KIND:N."""
    make = machine_of_topology if "x" in name.partition(":")[2] else machine_of_chips
    return make(name, flag="--machines")


def _all_machines() -> list[Machine]:
    """Returns machines of every chip in the tables, in powers of two."""
    return [machine_of_chips(f"{name}:{count}") for name in chip_names() for count in _DEFAULT_SIZES]


def _compile(config: RunConfig, results: Sequence[Result], count: int) -> list[dict[str, Any]]:
    """Compiles the first ``count`` feasible results for TPUs, and returns what the compiler says of each."""
    module = importlib.import_module("launch.plan_compile")
    feasible = [result for result in results if not result.why_not]
    found = []
    for result in feasible[:count]:
        candidate = result.candidate
        if candidate.machine.generation is None or candidate.machine.num_slices > 1:
            raise ConfigError(f"--compile_top={count}: {candidate.machine.name} is no single TPU slice to compile for")
        sizes = "x".join(map(str, candidate.machine.sizes))
        topology = f"{candidate.machine.generation.prefix}:{sizes}"
        print(f"\n{candidate}", flush=True)
        plan = make_plan(candidate.apply(config), machine=machine_of_topology(topology))
        report = module.build(plan, topology=topology, is_compiled=True, hlo=None)
        found.append({**result.to_json(), **report})
    return found
