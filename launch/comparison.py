"""Comparing two runs: checkpointed arrays, data position, ledger totals, and the recorded metrics.

Owns what counts as a difference. Whatever a clock measured (``time/*``, ``throughput/*``, ``wall``) does not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.workdir import WorkDir
from wamjax.training.checkpoint import CheckpointStore
from wamjax.training.checkpoint_record import CheckpointRecord
from wamjax.training.records import read_records

_CLOCK_PREFIXES = ("time/", "throughput/")
_CLOCK_KEYS = ("wall",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that is not the same in two runs.

    Attributes:
      group: ``params``, ``ema``, ``opt``, ``step``, ``data position``, ``ledger totals``, ``metrics.jsonl``, ...
      name: Array path, key, or record and key.
      detail: Both values, or how far apart two arrays are.
      relative: Largest difference as a share of the largest magnitude; infinity where that has no meaning.
    """

    group: str
    name: str
    detail: str
    relative: float = math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was compared, and what differed.

    Attributes:
      sizes: Group -> number of things compared.
      differences: In the order of ``sizes``.
    """

    sizes: Mapping[str, int]
    differences: Sequence[Difference]


def compare_runs(first: WorkDir, second: WorkDir, *, steps: tuple[int, int], tolerance: float = 0.0) -> Comparison:
    """Compares checkpoints ``steps`` of two runs and all their records up to those steps.

    Args:
      first: One run.
      second: The other.
      steps: Step of each.
      tolerance: Largest relative difference of floating-point values that passes; 0 wants equal bits.

    Raises:
      CheckpointError: A checkpoint cannot be read.
      DataError: A log has a broken line.
    """
    stores = [CheckpointStore(workdir.checkpoints) for workdir in (first, second)]
    records = [store.read_record(step) for store, step in zip(stores, steps, strict=True)]
    arrays = [store.read_arrays(step) for store, step in zip(stores, steps, strict=True)]
    sizes: dict[str, int] = {}
    for path in sorted({*arrays[0], *arrays[1]}, key=_group_order):
        sizes[_group(path)] = sizes.get(_group(path), 0) + 1
    found = list(_compare_arrays(arrays[0], arrays[1]))
    for name, values in _record_fields(*records).items():
        sizes[name] = len({*values[0], *values[1]})
        found += _compare_fields(name, values[0], values[1])
    for name in ("metrics", "ledger"):
        logs = [
            _records_until(getattr(workdir, name), step) for workdir, step in zip((first, second), steps, strict=True)
        ]
        sizes[f"{name}.jsonl"] = max(len(log) for log in logs)
        found += _compare_logs(f"{name}.jsonl", logs[0], logs[1])
    return Comparison(sizes=sizes, differences=[one for one in found if not one.relative <= tolerance])


def _compare_arrays(first: Mapping[str, jax.Array], second: Mapping[str, jax.Array]) -> Iterator[Difference]:
    for path in sorted({*first, *second}, key=_group_order):
        group = _group(path)
        if path not in first or path not in second:
            yield Difference(group=group, name=path, detail=f"only in the {'first' if path in first else 'second'} run")
            continue
        a, b = np.asarray(first[path]), np.asarray(second[path])
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            yield Difference(group=group, name=path, detail=f"{a.dtype}{a.shape} and {b.dtype}{b.shape}")
        elif a.tobytes() != b.tobytes():
            yield _distance(group, path, a, b)


def _distance(group: str, path: str, a: np.ndarray, b: np.ndarray) -> Difference:
    """Returns how far apart two arrays of one shape are; integers and NaN have no tolerable distance."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    count = int(np.sum((wide_a != wide_b) & ~(np.isnan(wide_a) & np.isnan(wide_b))))
    absolute = float(np.max(np.abs(wide_a - wide_b)))
    scale = float(max(np.max(np.abs(wide_a)), np.max(np.abs(wide_b))))
    relative = absolute / scale if scale else 0.0
    detail = f"{count:,} of {a.size:,} elements, max abs {absolute:.3e}, max rel {relative:.3e}"
    is_exact_kind = np.issubdtype(a.dtype, np.integer) or a.dtype == np.bool_
    return Difference(
        group=group,
        name=path,
        detail=detail,
        relative=math.inf if is_exact_kind or math.isnan(relative) else relative,
    )


def _record_fields(
    first: CheckpointRecord, second: CheckpointRecord
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Returns what two checkpoint records say, by group."""
    return {
        "checkpoint step": ({"step": first.step}, {"step": second.step}),
        "data position": ({"position": first.position}, {"position": second.position}),
        "configuration": ({"config_hash": first.config_hash}, {"config_hash": second.config_hash}),
        "ledger totals": (dict(_flat(first.ledger)), dict(_flat(second.ledger))),
    }


def _compare_fields(group: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted({*first, *second}):
        a, b = first.get(name, "absent"), second.get(name, "absent")
        if a != b:
            yield Difference(group=group, name=name, detail=f"{a} and {b}", relative=_relative(a, b))


def _compare_logs(
    group: str, first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]
) -> Iterator[Difference]:
    if len(first) != len(second):
        yield Difference(group=group, name="records", detail=f"{len(first)} and {len(second)}")
    for number, (a, b) in enumerate(zip(first, second, strict=False), start=1):
        for found in _compare_fields(group, dict(_flat(a)), dict(_flat(b))):
            yield dataclasses.replace(found, name=f"record {number} (step {a['step']}), {found.name}")


def _records_until(path: Path, step: int) -> list[dict[str, Any]]:
    return [record for record in read_records(path) if record["step"] <= step]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of nested JSON data, without what a clock measured."""
    for key, value in fields.items():
        if key in _CLOCK_KEYS or key.startswith(_CLOCK_PREFIXES):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _relative(a: Any, b: Any) -> float:
    if type(a) is float and type(b) is float and max(abs(a), abs(b)) > 0:
        return abs(a - b) / max(abs(a), abs(b))
    return math.inf


def _group(path: str) -> str:
    return path.split(".", 1)[0]


def _group_order(path: str) -> tuple[int, str]:
    """Sorts parameters before their average, before optimizer state, before the rest."""
    order = ("params", "ema", "opt")
    group = _group(path)
    return (order.index(group) if group in order else len(order), path)
