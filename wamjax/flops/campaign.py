"""The cost of a campaign: the ledgers of its runs and precompute jobs, merged without loss.

Owns what one folder's records add up to (``account_training``, ``account_precompute``) and the sum over folders
(``Campaign``). Counts stay Python integers. Reads no file (``launch.ledger_command``) and knows no prices.

What a run computed beyond the checkpoint it was resumed from is in none of the sums of its ledger: it was spent all the
same, so the records that were moved aside are added up apart, as lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wamjax.errors import DataError
from wamjax.flops.goodput import CHECKPOINT_SAVE, EVALUATION, STARTUP, GoodputTally
from wamjax.flops.ledger import ENCODERS
from wamjax.flops.precompute import PRECOMPUTE

TRAINING = "training"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """What the records of one folder add up to.

    Attributes:
      name: The folder.
      kind: ``training`` or ``precompute``.
      status: How far it came, in words.
      steps: Steps (batches of a precompute job) that count.
      samples: Samples of them.
      sources: Samples by dataset, where the records tell.
      epochs: How often each dataset was read, where the records tell.
      tokens: Tokens by stream.
      model_flops: By component.
      hardware_flops: By component.
      encoder_flops: Of frozen encoders, by encoder.
      evaluation_flops: Of validations.
      lost_steps: Steps done again later, or never.
      lost_model_flops: Model FLOPs of them.
      lost_hardware_flops: Hardware FLOPs of them, their encoders and validations included.
      device_s: Device-seconds by device kind, of everything the records tell the time of.
      notes: What is missing in these numbers, one line each.
    """

    name: str
    kind: str
    status: str
    steps: int = 0
    samples: int = 0
    sources: dict[str, int] = dataclasses.field(default_factory=dict)
    epochs: dict[str, float] = dataclasses.field(default_factory=dict)
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    model_flops: dict[str, int] = dataclasses.field(default_factory=dict)
    hardware_flops: dict[str, int] = dataclasses.field(default_factory=dict)
    encoder_flops: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(ENCODERS, 0))
    evaluation_flops: int = 0
    lost_steps: int = 0
    lost_model_flops: int = 0
    lost_hardware_flops: int = 0
    device_s: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def model_total(self) -> int:
        """Model FLOPs of what counts."""
        return sum(self.model_flops.values())

    @property
    def hardware_total(self) -> int:
        """Hardware FLOPs of what counts."""
        return sum(self.hardware_flops.values())

    @property
    def encoder_total(self) -> int:
        """FLOPs of frozen encoders."""
        return sum(self.encoder_flops.values())

    @property
    def executed_total(self) -> int:
        """Everything that was executed: training, encoders, validation, and what was lost."""
        return self.hardware_total + self.encoder_total + self.evaluation_flops + self.lost_hardware_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validations:
    """Validations of a run, which the ledger's last line need not have in it.

    Attributes:
      steps: Step of each validation of what counts.
      num_lost: Validations of what was lost.
      samples: Samples of one.
    """

    steps: tuple[int, ...] = ()
    num_lost: int = 0
    samples: int = 0


def account_training(
    name: str,
    records: Sequence[Mapping[str, Any]],
    *,
    lost: Sequence[Mapping[str, Any]] = (),
    validations: Validations | None = None,
    time: GoodputTally | None = None,
    num_steps: int | None = None,
    notes: Iterable[str] = (),
) -> Account:
    """Returns what a training run cost.

    Args:
      name: Its folder.
      records: Lines of ``ledger.jsonl``.
      lost: Lines that were moved aside when the run was resumed.
      validations: What the metrics tell of validations; None where they are not known.
      time: Where its time went; None where it was not recorded.
      num_steps: Steps the run was to have; None where not known.
      notes: What the caller has to say about the files.

    Raises:
      DataError: A record lacks what the ledger of a run holds.
    """
    told = list(notes)
    if not records and not lost:
        return Account(name=name, kind=TRAINING, status="ended before its first step", notes=tuple(told))
    try:
        last = records[-1] if records else None
        evaluation, lost_evaluation = _evaluations(last, lost, validations or Validations(), told)
        device_s = _device_seconds([*records, *lost])
        if time is None:
            told.append("no goodput.jsonl: start-up, saving and validation are not in its device time")
        else:
            wall = (last or lost[-1])["wall"]
            paused_s = sum(time.buckets[bucket] for bucket in (STARTUP, CHECKPOINT_SAVE, EVALUATION))
            device_s[wall["device_kind"]] += paused_s * wall["num_devices"]
        return Account(
            name=name,
            kind=TRAINING,
            status=_status(last, num_steps),
            steps=0 if last is None else last["step"],
            samples=0 if last is None else last["samples"],
            sources={} if last is None else dict(last.get("sources", {})),  # older records have none
            epochs={} if last is None else dict(last.get("epochs", {})),
            tokens={} if last is None else dict(last["tokens"]),
            model_flops={} if last is None else dict(last["model_flops"]),
            hardware_flops={} if last is None else dict(last["hardware_flops"]),
            encoder_flops=_encoders(last),
            evaluation_flops=evaluation,
            lost_steps=len(lost),
            lost_model_flops=sum(record["this_step"]["model_flops"] for record in lost),
            lost_hardware_flops=lost_evaluation
            + sum(record["this_step"]["hardware_flops"] + _encoders_per_step(record) for record in lost),
            device_s=device_s,
            notes=tuple(told),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{name}: a ledger record is not one of a training run: {error!r}; repair or leave it out"
        ) from error


def account_precompute(name: str, records: Sequence[Mapping[str, Any]], *, notes: Iterable[str] = ()) -> Account:
    """Returns what a precompute job cost; arguments as for ``account_training``.

    Raises:
      DataError: A record lacks what the ledger of a precompute job holds.
    """
    try:
        last = records[-1]
        return Account(
            name=name,
            kind=PRECOMPUTE,
            status=f"{last['job']}, {last['step']:,} batches",
            steps=last["step"],
            samples=last["samples"],
            encoder_flops=_encoders(last),
            device_s=_device_seconds(records),
            notes=tuple(notes),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{name}: a ledger record is not one of a precompute job: {error!r}; repair or leave it out"
        ) from error


def is_precompute(records: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether a folder's ledger is that of a precompute job."""
    return bool(records) and records[-1].get("kind", TRAINING) == PRECOMPUTE


def total_account(accounts: Sequence[Account]) -> Account:
    """Returns the sum over folders. Integers add exactly; a component that only some have counts for those."""
    return Account(
        name="total",
        kind="campaign",
        status=f"{len(accounts)} ledgers",
        steps=sum(account.steps for account in accounts),
        samples=sum(account.samples for account in accounts),
        tokens=_added(account.tokens for account in accounts),
        model_flops=_added(account.model_flops for account in accounts),
        hardware_flops=_added(account.hardware_flops for account in accounts),
        encoder_flops=_added(account.encoder_flops for account in accounts),
        evaluation_flops=sum(account.evaluation_flops for account in accounts),
        lost_steps=sum(account.lost_steps for account in accounts),
        lost_model_flops=sum(account.lost_model_flops for account in accounts),
        lost_hardware_flops=sum(account.lost_hardware_flops for account in accounts),
        device_s=_added(account.device_s for account in accounts),
    )


def _added(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    for part in parts:
        for name, amount in part.items():
            sums[name] = sums.get(name, 0) + amount
    return sums


def _status(last: Mapping[str, Any] | None, num_steps: int | None) -> str:
    step = 0 if last is None else last["step"]
    if num_steps is None:
        return f"step {step:,}"
    return "complete" if step >= num_steps else f"step {step:,} of {num_steps:,}"


def _encoders(record: Mapping[str, Any] | None) -> dict[str, int]:
    """Returns the encoders' FLOPs of a record; one older than that count has none."""
    return {**dict.fromkeys(ENCODERS, 0), **({} if record is None else record.get("encoder_flops", {}))}


def _encoders_per_step(record: Mapping[str, Any]) -> int:
    """Returns the encoders' FLOPs of the step of a record: each step of a run costs the same."""
    return sum(_encoders(record).values()) // record["step"]


def _device_seconds(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the device-seconds of steps by device kind: a run may go on with other devices."""
    seconds: dict[str, float] = {}
    for record in records:
        wall = record["wall"]
        kind = wall["device_kind"]
        seconds[kind] = seconds.get(kind, 0.0) + (wall["step_s"] or 0.0) * wall["num_devices"]
    return seconds


def _evaluations(
    last: Mapping[str, Any] | None, lost: Sequence[Mapping[str, Any]], validations: Validations, notes: list[str]
) -> tuple[int, int]:
    """Returns the FLOPs of validations that count and of those that were lost.

    A validation after step n is in the ledger's line of step n + 1, so that after the last step of a run is in no line.
    """
    record = last or lost[-1]
    evaluation, one = record["evaluation"], record.get("evaluation_flops_per_validation")
    after = 0 if last is None else sum(step == last["step"] for step in validations.steps)
    if one is None:
        per_sample = record.get("evaluation_flops_per_sample")
        if per_sample is None and evaluation["samples"]:
            per_sample = evaluation["hardware_flops"] // evaluation["samples"]
        if per_sample is None:
            if after or validations.num_lost:
                notes.append(
                    f"{after + validations.num_lost} validations are not counted: its ledger does not say what one "
                    "costs"
                )
            after = per_sample = 0
        one = validations.samples * per_sample
    counted = 0 if last is None else evaluation["hardware_flops"]
    return counted + after * one, validations.num_lost * one
