"""Says what a run is and what it will need, before anyone buys it; with --compile, what the compiler says of it.

  wamjax plan --config=experiments/pretrain/wan_14b_480p.py --topology=v5p:4x4x4 --tokens=500e9
  wamjax plan --config=experiments/quickstart.py --chips=h100:8 --json=plan.json

Without a machine: geometry, tokens, FLOPs. With one: memory of a device, step time, goodput, input and cost, too. Every
number carries its source. The run's length is config.train.num_steps, or solved from --steps, --tokens, --zflops,
--budget_usd or --deadline. Nothing is built or allocated: it takes about a second.

--compile compiles the very step that would train, for the TPU slice of --topology, on a machine without TPUs (Linux on
x86-64 with libtpu; minutes for a large model). Memory and schedule are the compiler's own; times are an estimate whose
assumptions are printed. A step that does not fit is an answer too: exit status 0, and the JSON says "fits": false.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from launch.bucket_table import describe_buckets
from launch.command import Verb
from launch.experiment import config_from_flags, define_config_flag
from launch.output import check_writable
from wamjax.config.blocks import reads_pixels
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.model import count_flops
from wamjax.layout import build_layout
from wamjax.layout.buckets import split_buckets
from wamjax.planning.assumption import Assumption, Source
from wamjax.planning.cost import load_prices
from wamjax.planning.efficiency import Efficiencies, efficiencies_of, with_overrides
from wamjax.planning.machine import Machine, chip_names, machine_of_chips, machine_of_topology
from wamjax.planning.plan import make_plan
from wamjax.planning.plan_json import bucket_json, to_json
from wamjax.planning.run_length import Wanted, parse_duration
from wamjax.planning.text import describe

OUTPUTS = ("json", "html", "markdown")
MIN_FPS, MAX_FPS = 0.001, 10_000.0

SUBCOMMANDS = {
    "search": Verb("launch.plan_search", "rank layouts of a machine, or machines for a deadline or budget"),
    "compare": Verb("launch.plan_compare", "lay a run beside its plan"),
    "calibrate": Verb("launch.plan_calibrate", "fit the efficiencies a step time rests on to measured runs"),
}

# Imported when they are asked for: one builds the program, the other imports the plots.
_COMPILE_MODULE, _REPORT_MODULE = "launch.plan_compile", "launch.plan_report"


def define_flags() -> None:
    """Defines the flags of ``wamjax plan``."""
    define_config_flag()
    define_machine_flags()
    define_length_flags()
    flags.DEFINE_bool("compile", False, "Compile the training step for the slice (needs --topology).")
    flags.DEFINE_bool("shardings", False, "Print where every parameter goes (needs --topology).")
    define_output_flags("the plan")
    define_price_flags()
    flags.DEFINE_string("hlo", None, "Write the compiled program's text to this file (with --compile).")


def define_output_flags(what: str) -> None:
    """Defines the flags that name files to write."""
    flags.DEFINE_string("json", None, f"Write {what} to this file.")
    flags.DEFINE_string("html", None, f"Write {what} as a page that needs no other file.")
    flags.DEFINE_string("markdown", None, f"Write {what} as Markdown tables.")


def define_machine_flags() -> None:
    """Defines the flags that name a machine."""
    flags.DEFINE_string("topology", None, "TPU slice to plan for, such as v5p:4x4x4 or v6e:16x16.")
    flags.DEFINE_string(
        "chips", None, f"Chips to plan for, KIND:N such as h100:64 or v5p:64; kinds: {', '.join(chip_names())}."
    )


def define_price_flags() -> None:
    """Defines the flags that replace figures the planner assumes."""
    flags.DEFINE_string("prices", None, "Price file (wamjax/planning/cost.py has its form); default: dated examples.")
    flags.DEFINE_string("efficiencies", None, "Shares of listed rates, as wamjax plan calibrate writes them.")


def define_length_flags() -> None:
    """Defines the flags that decide a run's length."""
    flags.DEFINE_integer("steps", None, "Length of the run in optimizer steps.")
    flags.DEFINE_float("tokens", None, "Length of the run in tokens of all streams, padding not counted.")
    flags.DEFINE_float("zflops", None, "Length of the run in 1e21 model FLOPs.")
    flags.DEFINE_float("budget_usd", None, "Money for the chips: as many steps as it pays for.")
    flags.DEFINE_string("deadline", None, "Wall time such as 14d or 36h: as many steps as it allows.")
    flags.DEFINE_float("fps", None, "Frames of a sample per second, for hours of video; default: of published clips.")


def run(argv: list[str]) -> int:
    """Plans and prints; returns 0."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; wamjax plan takes flags only (see wamjax plan --help)")
    values = flags.FLAGS
    if values.hlo and not values.compile:
        raise ConfigError(f"--hlo={values.hlo} needs --compile: without it there is no compiled program")
    for name in ("compile", "shardings"):
        if values[name].value and not values.topology:
            raise ConfigError(f"--{name} needs --topology: a TPU slice such as v5p:4x4x4")
    for name in (*OUTPUTS, "hlo"):
        check_writable(name, values[name].value)
    config = config_from_flags()
    machine = machine_from_flags()
    plan = make_plan(
        config,
        machine=machine,
        wanted=wanted_from_flags(),
        rate=rate_from_flags(config),
        efficiencies=None if machine is None else efficiencies_from_flags(machine),
        prices=load_prices(values.prices),
    )
    print(describe(plan), flush=True)
    buckets = split_buckets(config)
    if buckets:
        costs = {n: (count_flops(own, build_layout(own)), own.train.global_batch_size) for n, own in buckets.items()}
        print(
            f"\nThe above is for config.data.canvas and config.layout; in buckets:\n{describe_buckets(config, costs)}"
        )
    report = to_json(plan)
    if buckets:
        report["buckets"] = bucket_reports(buckets, machine)
        report["sources"]["buckets"] = {"source": Source.ASSUMED.value, "note": "each key as that of the whole plan"}
    if values.compile or values.shardings:
        report |= importlib.import_module(_COMPILE_MODULE).build(
            plan, topology=values.topology, is_compiled=values.compile, hlo=values.hlo
        )
    if "compile" in report:
        report["sources"]["compile"] = {"source": Source.COMPILED.value, "note": "libtpu, for the slice; nothing ran"}
    write_outputs(report)
    return 0


def bucket_reports(buckets: Mapping[str, RunConfig], machine: Machine | None) -> list[dict[str, Any]]:
    """Returns what of a plan is each bucket's own, after printing what it needs of ``machine``."""
    efficiencies = None if machine is None else efficiencies_from_flags(machine)
    reports = []
    for name, own in buckets.items():
        report = {"name": name, **bucket_json(make_plan(own, machine=machine, efficiencies=efficiencies))}
        reports.append(report)
        if machine is not None:
            step, memory = report["time"]["step_s"], report["memory"]
            time = (
                "no step time"
                if step is None
                else f"{step['mid']:.3g} s a step ({step['low']:.3g} to {step['high']:.3g})"
            )
            fits = "fits" if memory["fits"] else "does not fit"
            print(f"{name:16} {time}, {memory['total_bytes'] / 2**30:.2f} GiB a device: {fits}")
    return reports


def write_outputs(report: dict[str, Any]) -> None:
    """Writes a plan's JSON object to the files that the flags name."""
    values = flags.FLAGS
    if values.json:
        Path(values.json).write_text(json.dumps(report, indent=2) + "\n")
    if values.html or values.markdown:
        page = importlib.import_module(_REPORT_MODULE)
        if values.html:
            page.write_report(report, values.html)
        if values.markdown:
            Path(values.markdown).write_text(page.to_markdown(report))


def machine_from_flags() -> Machine | None:
    """Returns the machine that ``--topology`` or ``--chips`` names; None if neither is given.

    Raises:
      ConfigError: Both are, or the name is unknown.
    """
    values = flags.FLAGS
    if values.topology and values.chips:
        raise ConfigError(f"--topology={values.topology} and --chips={values.chips} both name a machine; give one")
    if values.topology:
        return machine_of_topology(values.topology)
    return machine_of_chips(values.chips) if values.chips else None


def efficiencies_from_flags(machine: Machine) -> Efficiencies:
    """Returns the efficiencies of ``machine``'s chips with those of ``--efficiencies``.

    Raises:
      ConfigError: The file cannot be read or is no table of efficiencies.
    """
    efficiencies, path = efficiencies_of(machine.chip.name), flags.FLAGS.efficiencies
    if not path:
        return efficiencies
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"--efficiencies={path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--efficiencies={path} is no text in UTF-8: {error.reason}") from error
    return with_overrides(efficiencies, text, f"--efficiencies={path}")


def wanted_from_flags() -> Wanted:
    """Returns the length that the flags ask for."""
    values = flags.FLAGS
    return Wanted(
        steps=values.steps,
        tokens=values.tokens,
        zflops=values.zflops,
        budget_usd=values.budget_usd,
        deadline_s=None if values.deadline is None else parse_duration(values.deadline),
    )


def rate_from_flags(config: RunConfig) -> Assumption | None:
    """Returns the frame rate of a sample: ``--fps``, or the dataset's over its stride where there is one on disk."""
    fps = flags.FLAGS.fps
    if fps is not None:
        if not MIN_FPS <= fps <= MAX_FPS:
            raise ConfigError(f"--fps={fps:g}; expected frames per second from {MIN_FPS:g} to {MAX_FPS:g}")
        return _rate(fps, "--fps")
    info = Path(config.data.path) / "meta" / "info.json"
    if not reads_pixels(config) or not info.is_file():
        return None
    try:
        recorded = float(json.loads(info.read_text())["fps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{info} states no frame rate ({error!r}); give --fps") from error
    return _rate(
        recorded / config.data.frame_stride, f"{info}: {recorded:g} Hz, every {config.data.frame_stride}th frame"
    )


def _rate(value: float, source: str) -> Assumption:
    return Assumption(name="frames per second of a clip", value=value, unit="Hz", source=source)
