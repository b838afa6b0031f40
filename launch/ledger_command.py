"""Adds up what a campaign has cost: pretraining, tuning, data precompute, failed attempts, each named by its folder.

  wamjax ledger runs/pretrain runs/tune caches/droid [--json=campaign.json] [--prices=prices.json]

Counts come from each folder's ledger.jsonl and add exactly. Steps that were computed again after a kill are counted as
lost, from ledger.discarded.jsonl. Chip-hours have start-up, saving and validation in them where goodput.jsonl tells.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch.output import check_writable
from launch.workdir import WorkDir
from wamjax.errors import ConfigError, DataError
from wamjax.flops.campaign import (
    TRAINING,
    Account,
    Validations,
    account_precompute,
    account_training,
    is_precompute,
    total_account,
)
from wamjax.flops.goodput import tally_goodput
from wamjax.flops.hardware import find_chip
from wamjax.flops.ledger import ZETTA
from wamjax.planning.cost import Prices, load_prices, plan_cost
from wamjax.training.records import HALF_WRITTEN, discarded_path, read_log

_VALIDATION = "validation/"


def define_flags() -> None:
    """Defines the flags of ``wamjax ledger``."""
    flags.DEFINE_string("json", None, "Write the table to this file.")
    flags.DEFINE_string("prices", None, "Price file (JSON: date, region, usd_per_chip_hour); without it, examples.")


def run(argv: list[str]) -> int:
    """Prints the table; returns 0."""
    if not argv:
        raise ConfigError("wamjax ledger takes work directories and cache folders; name at least one")
    values = flags.FLAGS
    check_writable("json", values.json)
    prices = load_prices(values.prices)
    accounts, notes = read_campaign([Path(name) for name in argv])
    if prices.warning:
        print(f"WARNING: {prices.warning}", file=sys.stderr)
    campaign = to_json(accounts, prices, notes)
    print(describe(campaign))
    if values.json:
        Path(values.json).write_text(json.dumps(campaign, indent=2) + "\n")
    return 0


def read_campaign(folders: Sequence[Path]) -> tuple[list[Account], list[str]]:
    """Returns the accounts of ``folders`` in their order, each ledger once, and what was left out of them.

    Raises:
      ConfigError: A folder holds no ledger.
      DataError: A ledger is damaged.
    """
    accounts, notes = [], []
    seen: dict[Path, str] = {}
    contents: dict[str, str] = {}
    for folder in folders:
        name, place = str(folder), folder.resolve()
        if place in seen:
            notes.append(f"{name} was given before (as {seen[place]}): counted once")
            continue
        seen[place] = name
        account, last = _read_account(folder)
        # Two runs never agree in every clock reading of a line: this folder is a copy of that one.
        if last is not None and last in contents:
            notes.append(f"{name} ends with the very line that {contents[last]} ends with (a copy): counted once")
            continue
        if last is not None:
            contents[last] = name
        accounts.append(account)
    return accounts, notes


def _read_account(folder: Path) -> tuple[Account, str | None]:
    """Returns the account of one folder, and its ledger's last line as text."""
    workdir = WorkDir(folder)
    if not workdir.ledger.is_file():
        raise ConfigError(f"{folder} holds no ledger ({workdir.ledger.name}); name a run or a precompute folder")
    records, fragment = read_log(workdir.ledger)
    notes = [f"{workdir.ledger.name} ends in a half-written line: its step is not counted"] if fragment else []
    last = json.dumps(records[-1], sort_keys=True) if records else None
    if is_precompute(records):
        return account_precompute(str(folder), records, notes=notes), last
    lost, half_written = _read_discarded(workdir.ledger)
    if half_written:
        notes.append(f"{half_written} half-written lines of killed processes are not counted")
    config = workdir.read_config() if workdir.run_json.is_file() else None
    validations = None
    if config is None:
        notes.append("no run.json: how long the run was to be is not known")
    else:
        validations = Validations(
            steps=tuple(_validated_steps(read_log(workdir.metrics)[0])),
            num_lost=len(_validated_steps(_read_discarded(workdir.metrics)[0])),
            samples=config.evaluate.num_batches * config.train.global_batch_size,
        )
    events = read_log(workdir.goodput)[0] if workdir.goodput.is_file() else None
    account = account_training(
        str(folder),
        records,
        lost=lost,
        validations=validations,
        time=None if events is None else tally_goodput(events),
        num_steps=None if config is None else config.train.num_steps,
        notes=notes,
    )
    return account, last


def _read_discarded(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the records that were cut from a log when its run was resumed, and how many half-written lines were."""
    discarded = discarded_path(path)
    if not discarded.is_file():
        return [], 0
    try:
        lines = [json.loads(line) for line in discarded.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise DataError(f"{discarded} holds a line that is not JSON ({error}); repair or delete it") from error
    records = [line for line in lines if HALF_WRITTEN not in line]
    return records, len(lines) - len(records)


def _validated_steps(records: Sequence[Mapping[str, Any]]) -> list[int]:
    return [record["step"] for record in records if any(key.startswith(_VALIDATION) for key in record)]


def to_json(accounts: Sequence[Account], prices: Prices, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the campaign as plain JSON data: every ledger, their sum, what was left out."""
    return {
        "ledgers": [_row(account, prices) for account in accounts],
        "total": _row(total_account(accounts), prices),
        "prices": {"date": prices.date, "region": prices.region, "source": prices.source, "warning": prices.warning},
        "notes": list(notes),
    }


def _row(account: Account, prices: Prices) -> dict[str, Any]:
    return {
        "name": account.name,
        "kind": account.kind,
        "status": account.status,
        "steps": account.steps,
        "samples": account.samples,
        "sources": {
            name: {"samples": samples, "epochs": account.epochs.get(name)} for name, samples in account.sources.items()
        },
        "tokens": account.tokens,
        "flops": {
            "model": account.model_total,
            "hardware": account.hardware_total,
            "encoders": account.encoder_total,
            "evaluation": account.evaluation_flops,
            "lost": account.lost_hardware_flops,
            "executed": account.executed_total,
        },
        "model_flops_by_component": account.model_flops,
        "hardware_flops_by_component": account.hardware_flops,
        "encoder_flops_by_encoder": account.encoder_flops,
        "zflops": {
            "model": account.model_total / ZETTA,
            "hardware": account.hardware_total / ZETTA,
            "encoders": account.encoder_total / ZETTA,
            "evaluation": account.evaluation_flops / ZETTA,
            "lost": account.lost_hardware_flops / ZETTA,
            "executed": account.executed_total / ZETTA,
        },
        "lost_steps": account.lost_steps,
        "lost_model_flops": account.lost_model_flops,
        **_price(account, prices),
        "notes": list(account.notes),
    }


def _price(account: Account, prices: Prices) -> dict[str, Any]:
    """Returns chip-hours and money by chip. Devices that are no listed chip have device-hours and no price."""
    chips, reasons = {}, []
    for kind, seconds in account.device_s.items():
        chip = find_chip(kind)
        if chip is None:
            reasons.append(f"{seconds / 3600:.3g} device-hours on {kind!r}, which is no listed chip")
            continue
        cost = plan_cost(chip=chip, chip_hours=seconds / 3600 / chip.devices_per_chip, prices=prices)
        reasons += [] if cost.usd_reason is None else [cost.usd_reason]
        chips[chip.name] = {"chip_hours": cost.chip_hours, "usd": cost.usd, "energy_kwh": cost.energy_kwh}
    dollars = [row["usd"] for row in chips.values()]
    return {
        "chips": chips,
        "device_hours": {kind: seconds / 3600 for kind, seconds in account.device_s.items()},
        "chip_hours": sum(row["chip_hours"] for row in chips.values()) if chips else None,
        "usd": sum(dollars) if dollars and None not in dollars and not reasons else None,
        "usd_reason": "; ".join(reasons) or (None if dollars else "no time was recorded"),
    }


def describe(campaign: Mapping[str, Any]) -> str:
    """Returns the campaign as a table, what lies behind its sum, and what was left out."""
    rows = [*campaign["ledgers"], campaign["total"]]
    head = [
        "ledger",
        "",
        "steps",
        "lost",
        "samples",
        "model",
        "hardware",
        "encoders",
        "evaluation",
        "lost",
        "chip-h",
        "USD",
    ]
    table = [head, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["what was computed, FLOPs in units of 1e21 (ZFLOP)"]
    for number, row in enumerate(table):
        if number == len(table) - 1:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
        cells = [
            cell.ljust(w) if column < 2 else cell.rjust(w)
            for column, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    total = campaign["total"]
    lines += ["", f"executed in all: {total['flops']['executed']:,} FLOPs = {total['zflops']['executed']:.6g} ZFLOP"]
    lines += _describe_components(total)
    lines += [_describe_sources(row) for row in campaign["ledgers"] if row["sources"]]
    if total["tokens"]:
        lines.append("tokens: " + ", ".join(f"{stream} {count:,}" for stream, count in total["tokens"].items()))
    lines.append(
        f"prices: {campaign['prices']['source']}, {campaign['prices']['region']}, {campaign['prices']['date']}"
    )
    lines.append("chip-hours are those of running processes: what was paid for between them is not recorded")
    if total["usd_reason"]:
        lines.append(f"no sum of money: {total['usd_reason']}")
    lines += [f"NOTE {row['name']}: {note}" for row in campaign["ledgers"] for note in row["notes"]]
    lines += [f"NOTE {note}" for note in campaign["notes"]]
    return "\n".join(lines)


def _describe_sources(row: Mapping[str, Any]) -> str:
    """Returns the samples and epochs of each dataset of one ledger."""
    parts = [
        f"{name} {read['samples']:,} samples" + ("" if read["epochs"] is None else f" ({read['epochs']:.3g} epochs)")
        for name, read in row["sources"].items()
    ]
    return f"read by {row['name']}: {', '.join(parts)}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    flops, zflops = row["flops"], row["zflops"]
    kind = row["status"] if row["kind"] != TRAINING else f"{row['kind']}, {row['status']}"
    return [
        row["name"],
        kind,
        f"{row['steps']:,}",
        f"{row['lost_steps']:,}" if row["lost_steps"] else "-",
        f"{row['samples']:,}",
        *(
            f"{zflops[name]:.4g}" if flops[name] else "-"
            for name in ("model", "hardware", "encoders", "evaluation", "lost")
        ),
        "-" if row["chip_hours"] is None else f"{row['chip_hours']:,.2f}",
        "-" if row["usd"] is None else f"{row['usd']:,.2f}",
    ]


def _describe_components(total: Mapping[str, Any]) -> list[str]:
    """Returns the sum by component: model, hardware, share of the model FLOPs."""
    model, hardware = total["model_flops_by_component"], total["hardware_flops_by_component"]
    named = [name for name in hardware if hardware[name]]
    if not named:
        return []
    lines = [f"{'training by component':24}{'model FLOPs':>36}{'hardware FLOPs':>36}{'of model':>10}"]
    for name in named:
        share = model[name] / total["flops"]["model"] if total["flops"]["model"] else 0.0
        lines.append(f"  {name.replace('_', ' '):22}{model[name]:36,}{hardware[name]:36,}{share:10.1%}")
    return lines
