"""``wamjax checkpoint``: what a run's checkpoints hold, whether they can be trusted, and how two runs differ.

Owns the flags and the printed tables. Comparing is in ``launch.comparison``, reading in ``wamjax.training.checkpoint``.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch import distributed
from launch.command import Command
from launch.comparison import Comparison, compare_runs
from launch.workdir import WorkDir
from wamjax.errors import ConfigError
from wamjax.flops.ledger import zflops
from wamjax.training.checkpoint import CheckpointStore, find_damage
from wamjax.training.checkpoint_record import CheckpointError

DIFFERENT = 1  # exit status: a comparison or a verification failed
_SHOWN = 20  # differences printed one by one


def _define_inspect_flags() -> None:
    flags.DEFINE_bool("verify", True, "Read every array and compare it with its digest; --noverify reads none.")


def _run_inspect(argv: list[str]) -> int:
    """Prints one line per checkpoint."""
    workdir = _workdir(argv, count=1)[0]
    store = CheckpointStore(workdir.checkpoints)
    _require_checkpoints(store)
    distributed.prefer_cpu()
    header = ("step", "size", "arrays", "data position", "samples", "model ZFLOP", "configuration", "state")
    rows = [header, *(_inspect(store, step, verify=flags.FLAGS.verify) for step in store.steps)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1], sep="  ")
    for path in store.partial_steps:
        print(f"{path.name}: half written")
    return 0


def _inspect(store: CheckpointStore, step: int, *, verify: bool) -> tuple[str, ...]:
    """Returns the row of one step; what is wrong with it stands in the last column."""
    size = sum(path.stat().st_size for path in store.path(step).rglob("*") if path.is_file())
    try:
        record = store.read_record(step)
        damaged = find_damage(record, store.read_arrays(step)) if verify else []
    except CheckpointError as error:
        return (str(step), f"{size / 1e6:.1f} MB", "-", "-", "-", "-", "-", str(error))
    verdict = f"DAMAGED: {', '.join(damaged)}" if damaged else "verified" if verify else "not verified"
    return (
        str(step),
        f"{size / 1e6:.1f} MB",
        str(len(record.digests)),
        f"{record.position:,}",
        f"{record.ledger.get('samples', 0):,}",
        f"{zflops(record.ledger.get('model_flops', {})):.3e}",
        record.config_hash,
        verdict,
    )


def _define_step_flag() -> None:
    flags.DEFINE_integer("step", None, "Step of the checkpoint; without it, the newest.", lower_bound=0)


def _run_verify(argv: list[str]) -> int:
    """Reads one checkpoint (all of them without ``--step``) and compares every array with its digest."""
    workdir = _workdir(argv, count=1)[0]
    store = CheckpointStore(workdir.checkpoints)
    _require_checkpoints(store)
    distributed.prefer_cpu()
    steps = store.steps if flags.FLAGS.step is None else [flags.FLAGS.step]
    broken = [step for step in steps if not _verify(store, step)]
    print(
        f"{len(steps) - len(broken)} of {len(steps)} checkpoints verified" + (f"; broken: {broken}" if broken else "")
    )
    return DIFFERENT if broken else 0


def _verify(store: CheckpointStore, step: int) -> bool:
    try:
        record = store.read_record(step)
        damaged = find_damage(record, store.read_arrays(step))
    except CheckpointError as error:
        print(f"step {step}: {error}")
        return False
    for path in damaged:
        print(f"step {step}: array {path} does not match its digest")
    if not damaged:
        print(f"step {step}: {len(record.digests)} arrays match their digests")
    return not damaged


def _define_diff_flags() -> None:
    _define_step_flag()
    flags.DEFINE_float(
        "tolerance",
        0.0,
        "Largest relative difference of floating-point values that passes (of an array: share of its largest "
        "magnitude). 0 wants equal bits.",
        lower_bound=0.0,
    )


def _run_diff(argv: list[str]) -> int:
    """Compares two work directories; the last line says whether, where and how much they differ."""
    first, second = _workdir(argv, count=2)
    steps = []
    for workdir in (first, second):
        store = CheckpointStore(workdir.checkpoints)
        _require_checkpoints(store)
        steps.append(store.steps[-1] if flags.FLAGS.step is None else flags.FLAGS.step)
    distributed.prefer_cpu()
    comparison = compare_runs(first, second, steps=(steps[0], steps[1]), tolerance=flags.FLAGS.tolerance)
    print(f"{first.path} step {steps[0]}  and  {second.path} step {steps[1]}")
    print(describe_comparison(comparison, tolerance=flags.FLAGS.tolerance))
    return DIFFERENT if comparison.differences else 0


def describe_comparison(comparison: Comparison, *, tolerance: float) -> str:
    """Returns a table by group, the first differences one by one, and the verdict as the last line."""
    width = max(len(group) for group in comparison.sizes)
    lines = [f"{'group':{width}}  compared  different"]
    for group, size in comparison.sizes.items():
        number = sum(difference.group == group for difference in comparison.differences)
        lines.append(f"{group:{width}}  {size:8,}  {number:9,}")
    found = comparison.differences
    lines += [f"{one.group}: {one.name}: {one.detail}" for one in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN:,} more")
    if found:
        lines.append(f"different: {len(found):,} differences, first in {found[0].group}: {found[0].name}")
    else:
        lines.append("equal, bit for bit" if tolerance == 0 else f"equal within {tolerance:g}")
    return "\n".join(lines)


def _workdir(argv: list[str], *, count: int) -> list[WorkDir]:
    """Returns the work directories named on the command line."""
    if len(argv) != count:
        wanted = "one work directory" if count == 1 else f"{count} work directories"
        raise ConfigError(f"expected {wanted}, got {len(argv)} arguments; see --help")
    for name in argv:
        if not Path(name).is_dir():
            raise ConfigError(f"{name} is not a folder; expected the work directory of a run")
    return [WorkDir(Path(name)) for name in argv]


def _require_checkpoints(store: CheckpointStore) -> None:
    if not store.steps:
        raise ConfigError(f"{store.directory} holds no checkpoint; expected a work directory that has trained")


SUBCOMMANDS = {
    "inspect": Command(
        summary="the checkpoints of a run: step, size, data position, cost, and whether they verify",
        description="Usage: wamjax checkpoint inspect DIR [--noverify]",
        define_flags=_define_inspect_flags,
        run=_run_inspect,
    ),
    "verify": Command(
        summary="read checkpoints and compare every array with its digest; exit 1 when one is broken",
        description="Usage: wamjax checkpoint verify DIR [--step=N]\n\nWithout --step, all of them.",
        define_flags=_define_step_flag,
        run=_run_verify,
    ),
    "diff": Command(
        summary="compare two runs: arrays, data position, ledger, metrics; exit 1 where they differ",
        description="Usage: wamjax checkpoint diff DIR_A DIR_B [--step=N] [--tolerance=X]\n\n"
        "Compares parameters, average, optimizer state, data position, ledger totals and the records up to that\n"
        "step. What a clock measured does not count. The last line says where the first difference is.",
        define_flags=_define_diff_flags,
        run=_run_diff,
    ),
}
