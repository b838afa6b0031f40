"""The world-action model itself, killed and resumed: as ``test_resume`` does with the toy, but minutes long."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.multiprocess.processes import free_port, process_flags

SETTINGS = {
    "model__num_layers": 2,
    "model__width": 32,
    "model__ffn_width": 64,
    "model__action_hidden": 32,
    "train__num_steps": 12,
    "checkpoint__every_steps": 4,
    "evaluate__every_steps": 6,
}

pytestmark = pytest.mark.slow


def test_two_processes_train_the_model_as_one_does(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes of 4 devices and one of 8, on one mesh: the same records, parameters and moments."""
    for count in (1, 2):
        port = free_port()
        processes = [
            toy.start(tmp_path / str(count), *process_flags(port, process, count), is_real=True, **SETTINGS)
            for process in range(count)
        ]
        outputs = [process.communicate(timeout=900) for process in processes]
        assert [process.returncode for process in processes] == [0] * count, outputs
    assert toy.diff(tmp_path / "1", tmp_path / "2", "--tolerance=1e-4") == 0, capsys.readouterr().out


def _train(toy: Any, workdir: Path, *flags: str) -> None:
    process = toy.start(workdir, *flags, is_real=True, **SETTINGS)
    output = process.communicate(timeout=900)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def whole_and_killed(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs on 4 devices, the second killed by SIGKILL between two checkpoints."""
    whole, killed = tmp_path_factory.mktemp("real") / "whole", tmp_path_factory.mktemp("real") / "killed"
    _train(toy, whole, "--cpu_devices=4")
    process = toy.start(killed, "--cpu_devices=4", is_real=True, **SETTINGS)
    toy.wait_for_step(process, killed, 7, timeout_s=900)
    process.kill()
    process.communicate()
    return whole, killed


def test_killed_model_resumed_equals_one_that_never_stopped(
    toy: Any, whole_and_killed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = whole_and_killed
    workdir = Path(shutil.copytree(killed, tmp_path / "run"))
    _train(toy, workdir, "--cpu_devices=4")
    assert toy.diff(whole, workdir) == 0, capsys.readouterr().out


def test_killed_model_resumed_on_half_the_devices_learns_the_same(
    toy: Any, whole_and_killed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = whole_and_killed
    workdir = Path(shutil.copytree(killed, tmp_path / "run"))
    _train(toy, workdir, "--cpu_devices=2")
    assert toy.diff(whole, workdir, "--tolerance=1e-3") == 0, capsys.readouterr().out
