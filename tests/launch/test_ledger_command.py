"""``wamjax ledger`` over folders as runs leave them: whole, killed and resumed, unfinished, copied, damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch import cli
from tests.launch.recorded_run import STEP_S, V5P, RecordedRun
from tests.tiny import TINY
from wamjax.flops.model import FlopCount, count_flops
from wamjax.flops.precompute import PrecomputeLedger
from wamjax.flops.utilisation import Denominator
from wamjax.layout import build_layout
from wamjax.training.precompute_log import PrecomputeLog
from wamjax.training.records import RecordLog

CPU = Denominator(device_kind="cpu", num_devices=2, dtype="float32")


@pytest.fixture(scope="module")
def count() -> FlopCount:
    return count_flops(TINY, build_layout(TINY))


def whole(path: Path, count: FlopCount, **options: Any) -> RecordedRun:
    run = RecordedRun(path, count, **options)
    run.event("startup", 0, seconds=30.0)
    run.steps(1, 6)
    return run


def ledger(*arguments: Any) -> int:
    return cli.main(["ledger", *map(str, arguments)])


def campaign(tmp_path: Path, *folders: Path, prices: str = "") -> dict[str, Any]:
    output = tmp_path / "campaign.json"
    arguments = [*folders, f"--json={output}"] + ([f"--prices={prices}"] if prices else [])
    assert ledger(*arguments) == 0
    return json.loads(output.read_text())


def test_campaign_of_runs_and_a_cache_adds_up_exactly(
    tmp_path: Path, count: FlopCount, capsys: pytest.CaptureFixture[str]
) -> None:
    whole(tmp_path / "pretrain", count)
    tune = RecordedRun(tmp_path / "tune", count)
    tune.event("startup", 0, seconds=10.0)
    tune.steps(1, 2)
    checkpoint = tune.ledger.totals
    tune.steps(3, 5)  # beyond the checkpoint of step 2; killed in the middle of a line
    with open(tune.workdir.ledger, "a") as file:
        file.write('{"step": 6, "sam')
    tune.resume(checkpoint, 2)
    tune.event("startup", 2, seconds=10.0)
    tune.steps(3, 4)
    cache = PrecomputeLedger(job="latents", flops_per_run={"vae": 10**21}, denominator=V5P)
    (tmp_path / "cache").mkdir()
    PrecomputeLog(tmp_path / "cache", cache).add(samples=2, runs={"vae": 2}, seconds=9.0)
    prices = tmp_path / "prices.json"
    prices.write_text('{"date": "2020-01-31", "region": "here", "usd_per_chip_hour": {"v5p": 3600}}')

    found = campaign(tmp_path, *(tmp_path / name for name in ("pretrain", "tune", "cache")), prices=str(prices))
    total, by_name = found["total"], {Path(row["name"]).name: row for row in found["ledgers"]}
    one_model, one_hardware = 8 * count.model_total, 8 * count.hardware_total
    assert total["flops"]["model"] == 10 * one_model
    assert total["flops"]["executed"] == 13 * one_hardware + 2 * 10**21
    assert (by_name["tune"]["lost_steps"], by_name["tune"]["flops"]["lost"]) == (3, 3 * one_hardware)
    assert [row["status"] for row in found["ledgers"]] == ["complete", "step 4 of 6", "latents, 1 batches"]
    assert total["zflops"]["encoders"] == 2.0
    assert total["tokens"] == {stream: 80 * number for stream, number in count.tokens.items()}
    # At a dollar a second: 13 steps of four chips, three starts, nine seconds of the cache.
    assert by_name["pretrain"]["usd"] == pytest.approx(4 * (6 * STEP_S + 30))
    assert total["usd"] == pytest.approx(4 * (13 * STEP_S + 50 + 9))
    printed = capsys.readouterr()
    assert "2020-01-31" in printed.err
    assert "1 half-written lines of killed processes are not counted" in printed.out
    assert f"{13 * one_hardware + 2 * 10**21:,} FLOPs" in printed.out


def test_broken_last_line_is_named_and_not_counted(
    tmp_path: Path, count: FlopCount, capsys: pytest.CaptureFixture[str]
) -> None:
    run = whole(tmp_path / "run", count)
    with open(run.workdir.ledger, "a") as file:
        file.write('{"step": 7, "samples": 5')
    found = campaign(tmp_path, tmp_path / "run")
    assert found["total"]["steps"] == 6
    assert "NOTE " + str(tmp_path / "run") in capsys.readouterr().out
    assert "half-written line" in found["ledgers"][0]["notes"][0]


def test_folder_given_twice_or_copied_counts_once(
    tmp_path: Path, count: FlopCount, capsys: pytest.CaptureFixture[str]
) -> None:
    whole(tmp_path / "run", count)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    found = campaign(tmp_path, *(tmp_path / name for name in ("run", "link", "copy")))
    assert found["total"]["steps"] == 6
    assert len(found["notes"]) == 2
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'link'} was given before" in printed
    assert f"{tmp_path / 'copy'} ends with the very line" in printed


def test_run_that_never_made_a_step_is_a_row_of_nothing(tmp_path: Path, count: FlopCount) -> None:
    RecordedRun(tmp_path / "run", count)
    found = campaign(tmp_path, tmp_path / "run")
    assert found["ledgers"][0]["status"] == "ended before its first step"
    assert found["total"]["flops"]["executed"] == 0


def test_devices_that_are_no_chip_have_hours_but_no_price(tmp_path: Path, count: FlopCount) -> None:
    whole(tmp_path / "run", count, denominator=CPU)
    row = campaign(tmp_path, tmp_path / "run")["total"]
    assert row["device_hours"] == {"cpu": pytest.approx(2 * (6 * STEP_S + 30) / 3600)}
    assert (row["chip_hours"], row["usd"]) == (None, None)
    assert "'cpu', which is no listed chip" in row["usd_reason"]


def test_validation_after_the_last_step_counts(tmp_path: Path, count: FlopCount) -> None:
    run = whole(tmp_path / "run", count)
    log = RecordLog(run.workdir.metrics)
    log.append({"step": 6, "loss/total": 1.0})
    log.append({"step": 6, "validation/total": 1.0})
    forward = sum(count.hardware_forward.values())
    samples = TINY.evaluate.num_batches * TINY.train.global_batch_size
    assert campaign(tmp_path, tmp_path / "run")["total"]["flops"]["evaluation"] == samples * forward


@pytest.mark.parametrize(
    ("break_it", "status", "words"),
    [
        (lambda run: run.workdir.ledger.unlink(), 2, "holds no ledger (ledger.jsonl)"),
        (lambda run: run.workdir.ledger.write_text("{}\n" + run.workdir.ledger.read_text()), 3, "ledger.jsonl, line 1"),
        (lambda run: run.workdir.ledger.write_text('{"step": 1}\n'), 3, "is not one of a training run"),
        (lambda run: run.workdir.run_json.write_text("{"), 3, "run.json cannot be read"),
        (lambda run: (run.workdir.path / "ledger.discarded.jsonl").write_text("no\n"), 3, "a line that is not JSON"),
    ],
)
def test_damage_is_one_line_naming_the_file(
    tmp_path: Path, count: FlopCount, capsys: pytest.CaptureFixture[str], break_it: Any, status: int, words: str
) -> None:
    break_it(whole(tmp_path / "run", count))
    assert ledger(tmp_path / "run") == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_no_folder_and_unknown_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger() == 2
    assert ledger(tmp_path / "nowhere") == 2
    assert "nowhere holds no ledger" in capsys.readouterr().err
    assert ledger(tmp_path, "--json=/nowhere/at/all.json") == 2
