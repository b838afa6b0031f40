"""``wamjax train`` around a toy model: resuming, refusing, falling back, diverging, all in this process."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch import cli
from launch.workdir import WorkDir
from wamjax.training.records import discarded_path, read_records


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> WorkDir:
    """A copy of the undisturbed run that a test may wreck."""
    return WorkDir(Path(shutil.copytree(whole, tmp_path / "copy")))


def test_run_leaves_everything_a_work_directory_holds(whole: Path) -> None:
    workdir = WorkDir(whole)
    assert sorted(path.name for path in workdir.checkpoints.iterdir()) == ["12", "18", "24"]
    steps = [record["step"] for record in read_records(workdir.metrics) if "loss/total" in record]
    assert steps == list(range(1, 25))
    assert [record["step"] for record in read_records(workdir.metrics) if "validation/total" in record] == [8, 16, 24]
    assert [record["step"] for record in read_records(workdir.ledger)] == list(range(1, 25))
    run = workdir.read_run()
    assert run["devices"]["mesh"] == {"data": 1, "fsdp": 4, "context": 2, "tensor": 1}
    assert run["starts"][0]["step"] == 0
    assert workdir.read_config().train.num_steps == 24
    assert workdir.first_batch.stat().st_size > 1000


def test_complete_run_started_again_says_so_and_changes_nothing(
    toy: Any, copy: WorkDir, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy.run(copy.path) == 0
    assert "the run is complete: its checkpoint is of step 24 of 24" in capsys.readouterr().out
    assert toy.diff(whole, copy.path) == 0


def test_longer_run_with_its_old_schedule_goes_on(toy: Any, copy: WorkDir) -> None:
    assert toy.run(copy.path, train__num_steps=30, optimizer__decay_steps=24) == 0
    assert [record["step"] for record in read_records(copy.ledger)] == list(range(1, 31))
    assert copy.read_run()["starts"][1]["step"] == 24


def test_longer_run_with_another_schedule_is_refused_naming_the_key(
    toy: Any, copy: WorkDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy.run(copy.path, train__num_steps=30) == 2
    assert "config.optimizer.decay_steps: 24 -> 30" in capsys.readouterr().err


def test_run_of_another_configuration_is_refused_unless_told(
    toy: Any, copy: WorkDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy.run(copy.path, train__seed=7, optimizer__peak_lr=0.5, log__every_steps=3) == 2
    message = capsys.readouterr().err
    assert "config.train.seed: 0 -> 7" in message
    assert "config.optimizer.peak_lr" in message
    assert "log.every_steps" not in message
    assert message.count("\n") == 1
    assert toy.run(copy.path, "--allow_config_change", train__seed=7) == 0
    assert [change["key"] for change in copy.read_run()["config_changes"]] == ["train.seed"]


def test_work_directory_of_a_live_run_is_refused_naming_its_process(
    toy: Any, copy: WorkDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with copy.locked():
        assert toy.run(copy.path) == 2
    assert "is in use by process" in capsys.readouterr().err
    assert toy.run(copy.path) == 0


def test_damaged_newest_checkpoint_is_computed_again_from_the_one_before(
    toy: Any, copy: WorkDir, whole: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    largest = max((copy.checkpoints / "24").rglob("*"), key=lambda path: path.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(bytes(raw))
    assert toy.run(copy.path) == 0
    assert "falling back to step 18" in caplog.text
    assert "resuming from checkpoint 18 of 24 (verified)" in capsys.readouterr().out
    assert toy.diff(whole, copy.path) == 0
    moved = read_records(discarded_path(copy.ledger))
    assert [record["step"] for record in moved] == list(range(19, 25))


def test_no_checkpoint_to_trust_exits_with_3_and_keeps_everything(
    toy: Any, copy: WorkDir, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (12, 18, 24):
        (copy.checkpoints / str(step) / "files.json").write_text("{")
    before = copy.metrics.read_bytes()
    assert toy.run(copy.path) == 3
    assert f"in {copy.checkpoints} can be trusted" in capsys.readouterr().err
    assert copy.metrics.read_bytes() == before


@pytest.mark.slow
def test_run_whose_updates_are_skipped_in_a_row_exits_with_4_and_one_skip_is_survived_and_counted(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOY_NAN_AT", "9,10")
    workdir = WorkDir(tmp_path / "run")
    assert toy.run(workdir.path, optimizer__max_skipped=2) == 4
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("wamjax train: step 10 diverged: its update is number 2 skipped in a row")
    assert "since loss/total = nan at step 9; the last good checkpoint is step 6" in message
    assert sorted(path.name for path in workdir.checkpoints.iterdir()) == ["6"]
    assert json.loads(workdir.metrics.read_text().splitlines()[-1])["loss/total"] == "nan"

    monkeypatch.setenv("TOY_NAN_AT", "9")
    assert toy.run(workdir.path, optimizer__max_skipped=2) == 0
    assert "step  9/24  update skipped" in capsys.readouterr().err
    monkeypatch.delenv("TOY_NAN_AT")
    assert toy.run(workdir.path, train__num_steps=26, optimizer__decay_steps=24) == 0
    ledger = read_records(workdir.ledger)
    assert [record["step"] for record in ledger if record["this_step"]["is_skipped"]] == [9]
    assert [record["skipped"] for record in ledger] == [0] * 8 + [1] * 18
    metrics = [record for record in read_records(workdir.metrics) if "loss/total" in record]
    assert [record["optimizer/skipped"] for record in metrics] == [0] * 8 + [1] * 18, "the count survives resuming"


# Orbax's reading tasks are cancelled after their event loop is gone; Python says so when it collects them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_checkpoint_inspect_and_verify_tell_good_from_damaged(
    toy: Any, copy: WorkDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["checkpoint", "verify", str(copy.path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 of 3 checkpoints verified"
    largest = max((copy.checkpoints / "18").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    assert cli.main(["checkpoint", "verify", str(copy.path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 3 checkpoints verified; broken: [18]"
    assert cli.main(["checkpoint", "verify", str(copy.path), "--step=24"]) == 0
    capsys.readouterr()
    assert cli.main(["checkpoint", "inspect", str(copy.path)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows if row.split()[0].isdecimal()] == ["12", "18", "24"]
    assert ["is damaged" in row for row in rows[-3:]] == [False, True, False]


def test_checkpoint_diff_names_the_first_difference_and_exits_with_1(
    toy: Any, copy: WorkDir, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy.diff(whole, copy.path) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "equal, bit for bit"
    lines = copy.metrics.read_text().splitlines()
    record = json.loads(lines[4])
    lines[4] = json.dumps(record | {"loss/total": record["loss/total"] * (1 + 1e-6)})
    copy.metrics.write_text("\n".join(lines) + "\n")
    assert toy.diff(whole, copy.path) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "different: 1 differences, first in metrics.jsonl: record 5 (step 5), loss/total"
    assert toy.diff(whole, copy.path, "--tolerance=1e-5") == 0
    assert toy.diff(whole, copy.path, "--step=99") == 3
