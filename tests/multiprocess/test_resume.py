"""Runs that are killed, told to leave, or go on elsewhere: they end as if nothing had happened."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.multiprocess.processes import free_port, process_flags
from wamjax.flops.goodput import tally_goodput
from wamjax.training.records import discarded_path, read_records


def _order(workdir: Path) -> list[float]:
    """What was read, step by step."""
    return [record["data/order"] for record in read_records(workdir / "metrics.jsonl") if "data/order" in record]


def test_killed_run_resumed_equals_one_that_never_stopped(
    toy: Any, killed: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parameters, average, optimizer, data position, ledger and metrics, bit for bit, after SIGKILL."""
    workdir = Path(shutil.copytree(killed, tmp_path / "run"))
    assert max(record["step"] for record in read_records(workdir / "metrics.jsonl")) < toy.num_steps
    assert toy.run(workdir) == 0
    assert "resuming from checkpoint 12 of 24 (verified)" in capsys.readouterr().out
    assert read_records(discarded_path(workdir / "ledger.jsonl"))[0]["step"] == 13
    assert toy.diff(whole, workdir) == 0, capsys.readouterr().out
    assert len(set(_order(workdir))) > 20  # the order is really looked at
    time = tally_goodput(read_records(workdir / "goodput.jsonl"))
    assert (time.starts, time.is_complete) == (2, True)
    assert min(time.buckets[name] for name in ("step", "startup", "compile", "checkpoint_save", "down")) > 0


@pytest.mark.slow
def test_run_resumed_on_half_the_devices_reads_the_same_and_learns_the_same(
    toy: Any, killed: Path, whole: Path, tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(killed, tmp_path / "run"))
    process = toy.start(workdir, "--cpu_devices=4")
    output = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert _order(workdir) == _order(whole)
    assert toy.diff(whole, workdir, "--tolerance=1e-4") == 0


@pytest.mark.slow
def test_run_of_one_process_resumed_by_two_reads_the_same_and_learns_the_same(
    toy: Any, killed: Path, whole: Path, tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(killed, tmp_path / "run"))
    pair = _start(toy, workdir, count=2)
    outputs = [process.communicate(timeout=240) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert _order(workdir) == _order(whole)
    assert toy.diff(whole, workdir, "--tolerance=1e-4") == 0


@pytest.fixture(scope="module")
def left_by_two(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of a run of two processes that was told to leave half-way, and left a checkpoint."""
    workdir = tmp_path_factory.mktemp("left_by_two") / "run"
    processes = _start(toy, workdir, count=2, step_s=0.15)
    toy.wait_for_step(processes[0], workdir, 9)
    processes[0].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [42, 42], outputs
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_run_of_two_processes_resumed_by_one_or_four_reads_the_same_and_learns_the_same(
    toy: Any, left_by_two: Path, whole: Path, tmp_path: Path, count: int
) -> None:
    workdir = Path(shutil.copytree(left_by_two, tmp_path / "run"))
    processes = _start(toy, workdir, count=count)
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    assert "resuming from checkpoint" in outputs[0][0]
    assert _order(workdir) == _order(whole)
    assert toy.diff(whole, workdir, "--tolerance=1e-4") == 0


@pytest.mark.slow
def test_run_told_to_leave_saves_exits_with_42_and_resumes_bit_for_bit(toy: Any, whole: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    process = toy.start(workdir, "--cpu_devices=8", step_s=0.15)
    toy.wait_for_step(process, workdir, 9)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)
    assert process.returncode == 42, output
    assert "with a checkpoint; the same command resumes" in output[0]
    assert toy.run(workdir) == 0
    assert toy.diff(whole, workdir) == 0


@pytest.mark.slow
def test_two_processes_leave_together_when_one_is_told(toy: Any, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    pair = _start(toy, workdir, count=2, step_s=0.15)
    toy.wait_for_step(pair[0], workdir, 4)
    pair[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [42, 42], outputs


@pytest.mark.slow
def test_two_processes_with_different_flags_refuse_to_start(toy: Any, tmp_path: Path) -> None:
    port = free_port()
    pair = [toy.start(tmp_path / "run", *process_flags(port, process, 2), train__seed=process) for process in range(2)]
    outputs = [process.communicate(timeout=240) for process in pair]
    assert [process.returncode for process in pair] == [2, 2], outputs
    assert all("process 1 differs from process 0: config.train.seed is 1, not 0;" in error for _, error in outputs)


def _start(toy: Any, workdir: Path, *, count: int, **settings: Any) -> list[Any]:
    """Starts a run of ``count`` processes with 8 devices between them."""
    port = free_port()
    return [toy.start(workdir, *process_flags(port, process, count), **settings) for process in range(count)]
