"""What a run did beside what its plan said: FLOPs, step time, utilisation, where time went, chip-hours.

Owns the reduction of a run's records to the figures a plan has (``measure_run``) and the rows of the table
(``compare``). Reads a plan as the JSON object that ``wamjax plan --json`` writes. Reads no file.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from wamjax.errors import DataError
from wamjax.flops.goodput import BUCKETS, DOWN, STEPS, GoodputTally, tally_goodput
from wamjax.flops.hardware import find_chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run's records say.

    Attributes:
      steps: Steps recorded.
      samples: Samples of them.
      step_s: Median time of a step, first steps of processes left out.
      spread_s: The 10th and 90th percentile of the same steps.
      num_timed: How many steps that is.
      data_wait_s: Mean time in which one of these steps waited for data; None where it was not recorded.
      model_flops: Of one step.
      hardware_flops: Of one step.
      mfu: Of the median step; None on devices without a listed peak.
      hfu: The same of hardware FLOPs.
      mfu_reason: Why there is none, or what it is a share of.
      device_kind: Devices of the last step.
      num_devices: How many.
      time: Where time went; None where it was not recorded.
    """

    steps: int
    samples: int
    step_s: float
    spread_s: tuple[float, float]
    num_timed: int
    data_wait_s: float | None
    model_flops: int
    hardware_flops: int
    mfu: float | None
    hfu: float | None
    mfu_reason: str
    device_kind: str
    num_devices: int
    time: GoodputTally | None

    @property
    def num_chips(self) -> float | None:
        """Chips the devices make up; None where they are no listed chip."""
        chip = find_chip(self.device_kind)
        return None if chip is None else self.num_devices / chip.devices_per_chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the comparison.

    Attributes:
      key: Stable name.
      label: What it is.
      unit: Of both.
      planned: None where the plan has no such number.
      actual: None where the run has none.
      note: Range of the plan, spread of the run, or why a number is missing.
    """

    key: str
    label: str
    unit: str
    planned: float | int | None
    actual: float | int | None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Actual over planned."""
        return None if not self.planned or self.actual is None else self.actual / self.planned

    def to_json(self) -> dict[str, Any]:
        """Returns the row as plain JSON data."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


def measure_run(
    name: str, records: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]] | None = None
) -> Measured:
    """Returns the figures of a run.

    Args:
      name: Its folder, for messages.
      records: Lines of ``ledger.jsonl``.
      events: Lines of ``goodput.jsonl``; None where there is none.

    Raises:
      DataError: No step was timed but first ones, which compile.
    """
    firsts = {1} | {event["step"] for event in events or () if event["event"] == STEPS and event["is_first"]}
    last_wall = records[-1]["wall"] if records else {}
    # Devices may change when a run is resumed; what counts is the time on the last ones.
    same = [r for r in records if all(r["wall"][k] == last_wall[k] for k in ("device_kind", "num_devices"))]
    if any("bucket" in record for record in same):
        raise DataError(f"{name}: trained in buckets, whose steps differ; a plan is of one size (config.data.buckets)")
    timed = [r for r in same if r["step"] not in firsts and r["wall"]["step_s"] is not None]
    if not timed:
        raise DataError(f"{name}: no step was timed but first ones, which compile; train a few more steps")
    times = sorted(record["wall"]["step_s"] for record in timed)
    median_s = statistics.median(times)
    middle, last = min(timed, key=lambda record: abs(record["wall"]["step_s"] - median_s)), records[-1]
    wall = middle["wall"]
    return Measured(
        steps=last["step"],
        samples=last["samples"],
        step_s=median_s,
        spread_s=(times[len(times) // 10], times[-1 - len(times) // 10]),
        num_timed=len(times),
        data_wait_s=_data_wait_s(events),
        model_flops=middle["this_step"]["model_flops"],
        hardware_flops=middle["this_step"]["hardware_flops"],
        mfu=wall["mfu"],
        hfu=wall["hfu"],
        mfu_reason=wall["mfu_denominator"] or wall["mfu_reason"],
        device_kind=wall["device_kind"],
        num_devices=wall["num_devices"],
        time=None if events is None else tally_goodput(events),
    )


def compare(plan: Mapping[str, Any], measured: Measured) -> list[Row]:
    """Returns planned and actual side by side.

    Args:
      plan: A plan as JSON holds it, of as many steps as the run has done.
      measured: What the run did.
    """
    step, time = _find(plan, "time.step_s"), measured.time
    rows = [
        Row(
            key="model_flops_per_step",
            label="model FLOPs of a step",
            unit="FLOP",
            planned=_find(plan, "flops_per_step.model"),
            actual=measured.model_flops,
        ),
        Row(
            key="hardware_flops_per_step",
            label="hardware FLOPs of a step",
            unit="FLOP",
            planned=_find(plan, "flops_per_step.hardware"),
            actual=measured.hardware_flops,
        ),
        Row(
            key="step_s",
            label="step time",
            unit="s",
            planned=None if step is None else step["mid"],
            actual=measured.step_s,
            note=_describe_step(step, measured),
        ),
        Row(
            key="data_wait_s",
            label="waiting for data in a step",
            unit="s",
            planned=_per_step(_find(plan, "goodput.buckets.data_wait"), _find(plan, "run.steps")),
            actual=measured.data_wait_s,
            note="" if measured.data_wait_s is not None else "no goodput.jsonl",
        ),
        Row(
            key="mfu",
            label="MFU",
            unit="",
            planned=_find(plan, "time.mfu"),
            actual=measured.mfu,
            note=measured.mfu_reason,
        ),
        Row(key="hfu", label="HFU", unit="", planned=_find(plan, "time.hfu"), actual=measured.hfu),
        Row(
            key="chip_hours",
            label="chip-hours",
            unit="h",
            planned=_planned_chip_hours(plan),
            actual=_chip_hours(measured),
            note="without time down"
            if measured.num_chips is not None
            else f"{measured.device_kind!r} is no listed chip",
        ),
        Row(
            key="goodput",
            label="goodput",
            unit="",
            planned=_find(plan, "goodput.goodput"),
            actual=None if time is None else time.goodput,
            note="" if time is not None else "no goodput.jsonl",
        ),
    ]
    for bucket, meaning in BUCKETS.items():
        planned, actual = _find(plan, f"goodput.buckets.{bucket}"), None if time is None else time.buckets[bucket]
        rows.append(
            Row(
                key=f"goodput.{bucket}",
                label=bucket.replace("_", " "),
                unit="s",
                planned=planned,
                actual=actual,
                note=meaning,
            )
        )
    return rows


def describe(rows: Sequence[Row]) -> str:
    """Returns the comparison as a table."""
    lines = [f"{'':30}{'planned':>26}{'actual':>26}{'actual / planned':>18}"]
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
        planned, actual = _cell(row.planned, row.unit), _cell(row.actual, row.unit)
        lines.append(f"{row.label:30}{planned:>26}{actual:>26}{ratio:>18}  {row.note}".rstrip())
    return "\n".join(lines)


def _cell(value: float | int | None, unit: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g} {unit}" if unit else f"{value:.1%}"


def _find(plan: Mapping[str, Any], dotted: str) -> Any:
    """Returns what a plan has under a dotted key; None where it has nothing there."""
    value: Any = plan
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def _per_step(seconds: float | None, steps: int | None) -> float | None:
    return None if seconds is None or not steps else seconds / steps


def _describe_step(step: Mapping[str, float] | None, measured: Measured) -> str:
    planned = "" if step is None else f"planned {step['low']:.4g} to {step['high']:.4g} s; "
    low, high = measured.spread_s
    return f"{planned}median of {measured.num_timed}, 10 % to 90 %: {low:.4g} to {high:.4g} s"


def _data_wait_s(events: Sequence[Mapping[str, Any]] | None) -> float | None:
    steady = [event for event in events or () if event["event"] == STEPS and not event["is_first"]]
    num_steps = sum(event["num_steps"] for event in steady)
    return sum(event["data_wait_s"] for event in steady) / num_steps if num_steps else None


def _planned_chip_hours(plan: Mapping[str, Any]) -> float | None:
    """Returns the plan's chip-hours less those of time down, in which a run records nothing."""
    hours, elapsed_s = _find(plan, "cost.chip_hours"), _find(plan, "goodput.elapsed_s")
    if hours is None or not elapsed_s:
        return hours
    return hours * (1.0 - _find(plan, f"goodput.buckets.{DOWN}") / elapsed_s)


def _chip_hours(measured: Measured) -> float | None:
    if measured.num_chips is None or measured.time is None:
        return None
    return measured.time.occupied_s * measured.num_chips / 3600.0
