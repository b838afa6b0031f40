"""Runs of the toy (``toy_train.py``): in this process, or in processes of their own that can be killed."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch import cli
from wamjax.training.records import read_records

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("toy_train.py")
SETTINGS = {
    "train.num_steps": 24,
    "train.global_batch_size": 16,
    "checkpoint.every_steps": 6,
    "evaluate.every_steps": 8,
    "evaluate.num_batches": 1,
    "optimizer.warmup_steps": 2,
    "log.every_steps": 5,
    "log.tensorboard": "false",
}


class Toy:
    """Starts runs of the toy and compares them; kills what still runs at the end of a test."""

    num_steps = 24

    def __init__(self) -> None:
        spec = importlib.util.spec_from_file_location("toy_train", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._main = module.main
        self._processes: list[subprocess.Popen[str]] = []

    def run(self, workdir: Path, *flags: str, **settings: Any) -> int:
        """Trains in this process, on its 8 devices; returns the exit status."""
        return self._main(_flags(workdir, *flags, **settings))

    def start(
        self, workdir: Path, *flags: str, step_s: float = 0.0, is_real: bool = False, **settings: Any
    ) -> subprocess.Popen[str]:
        """Starts training in a process of its own; with ``is_real`` the model is trained and not the toy."""
        command = ["-m", "launch.cli", "train"] if is_real else [str(SCRIPT)]
        process = subprocess.Popen(
            [sys.executable, *command, *_flags(workdir, *flags, **settings)],
            cwd=ROOT,
            env={**os.environ, "TOY_STEP_S": str(step_s), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def wait_for_step(self, process: subprocess.Popen[str], workdir: Path, step: int, timeout_s: float = 240) -> None:
        """Returns once the run has recorded ``step``."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and process.poll() is None:
            if any(record["step"] >= step for record in read_records(workdir / "metrics.jsonl")):
                return
            time.sleep(0.05)
        process.kill()
        pytest.fail(f"the run did not reach step {step}: {process.communicate()}")

    def diff(self, first: Path, second: Path, *flags: str) -> int:
        """Runs ``wamjax checkpoint diff``; returns its exit status."""
        return cli.main(["checkpoint", "diff", str(first), str(second), *flags])

    def kill_all(self) -> None:
        """Kills every process still running."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def _flags(workdir: Path, *flags: str, **settings: Any) -> list[str]:
    """Returns the flags of ``wamjax train``; ``settings`` override ``SETTINGS`` (``__`` stands for the dot)."""
    named = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    overrides = [f"--config.{name}={value}" for name, value in named.items()]
    return [f"--config={ROOT / 'experiments' / 'quickstart.py'}", f"--workdir={workdir}", *overrides, *flags]


@pytest.fixture(scope="session")
def toy(request: pytest.FixtureRequest) -> Iterator[Toy]:
    """The toy, with the repository as current folder: the experiment names its dataset relative to it."""
    former = Path.cwd()
    os.chdir(ROOT)
    runs = Toy()
    yield runs
    runs.kill_all()
    os.chdir(former)


@pytest.fixture(scope="session")
def whole(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of a run on 8 devices that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert toy.run(workdir) == 0
    return workdir


@pytest.fixture(scope="session")
def killed(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of a run in a process of its own on 8 devices, killed by SIGKILL between two checkpoints."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    process = toy.start(workdir, "--cpu_devices=8", step_s=0.15)
    toy.wait_for_step(process, workdir, 15)
    process.kill()
    process.communicate()
    return workdir
