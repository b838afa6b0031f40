"""`wamjax data index` as a user runs it: processes, SIGKILL, and the same command again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.indexing.job import make_index
from tests.data_pipelines.conftest import run_config, write_episodes

ROOT = Path(__file__).resolve().parents[2]


def children_of(process: int) -> list[int]:
    """Processes that `process` or one of its children started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended while we looked
            continue
        if parent == process:
            found += [int(entry.parent.name), *children_of(int(entry.parent.name))]
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.slow
def test_index_killed_in_the_middle_is_completed_by_the_same_command(tmp_path: Path) -> None:
    path = write_episodes(tmp_path / "set", lengths=(12, 14) * 30, video_file_bytes=6000)
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from pathlib import Path\nfrom tests.data_pipelines.conftest import run_config\n"
        f"def get_config(): return run_config(Path({str(path)!r}))\n"
    )
    out = tmp_path / "index"
    command = [sys.executable, "-m", "launch.cli", "data", "index", f"--config={experiment}", f"--out={out}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = subprocess.Popen([*command, "--num_workers=2", "--part_episodes=2"], **options)
    wait_for(lambda: len(list(out.glob("parts/part-*"))) >= 2, 120)
    workers = children_of(killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 30)
    assert len(list(out.glob("parts/part-*"))) < 30
    assert not (out / "index.json").exists()
    subprocess.run([*command, "--num_workers=2", "--part_episodes=2"], check=True, **options)
    make_index(run_config(path), tmp_path / "whole", num_workers=1, part_episodes=100)
    for array in (tmp_path / "whole").glob("*.npy"):
        assert (out / array.name).read_bytes() == array.read_bytes(), array.name
