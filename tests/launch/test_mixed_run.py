"""A whole run on a mixture with indexes and buckets, as a user starts, kills, resumes and evaluates it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.indexing.job import make_index
from data_pipelines.mixtures.settings import resolve_mixture, source_config
from tests.data_pipelines.conftest import run_config, write_episodes
from wamjax.config.buckets import BucketConfig, BucketsConfig
from wamjax.config.schema import (
    CheckpointConfig,
    EvaluateConfig,
    LayoutConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from wamjax.config.sources import MixtureConfig, MixtureSource
from wamjax.layout.buckets import shortest_windows

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
SETS = (
    BucketConfig(name="short", canvas=(16, 32), num_frames=3),
    BucketConfig(name="long", canvas=(16, 32), num_frames=5),
)


def mixed_run(folder: Path) -> RunConfig:
    """Two datasets of two sources, each with an index in ``folder``, in two lengths."""
    sources = tuple(
        MixtureSource(name=name, path=str(folder / name), index=str(folder / f"{name}-index"), weight=weight)
        for name, weight in (("a", 1.0), ("b", 2.0))
    )
    small = ModelConfig(
        width=16, num_layers=1, num_heads=2, ffn_width=16, patch=(1, 16, 16), time_width=8, action_hidden=8
    )
    config = run_config(folder / "unused", layout=LayoutConfig(num_blocks=2, frames_per_block=2, actions_per_block=4))
    data = dataclasses.replace(
        config.data,
        canvas=(16, 32),
        views=(("observation.images.left", 0, 0, 16, 16), ("observation.images.right", 0, 16, 16, 16)),
        video_statistics="none",
        mixture=MixtureConfig(sources=sources),
        buckets=BucketsConfig(sets=SETS, batch_multiple=2),
    )
    return dataclasses.replace(
        config,
        model=small,
        data=data,
        optimizer=OptimizerConfig(warmup_steps=1),
        parallel=ParallelConfig(fsdp=1),
        train=TrainConfig(num_steps=STEPS, global_batch_size=2),
        checkpoint=CheckpointConfig(every_steps=3),
        evaluate=EvaluateConfig(every_steps=6, num_batches=1, num_windows=4, solver_steps=1, bootstrap=10),
        log=LogConfig(every_steps=1, tensorboard=False, progress_bar=False),
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_mixed_run_in_buckets_killed_and_resumed_is_the_run_that_was_not(tmp_path: Path) -> None:
    write_episodes(tmp_path / "a", lengths=(14, 20, 17, 16))
    write_episodes(tmp_path / "b", lengths=(24, 9, 18, 12, 21))
    config = mixed_run(tmp_path)
    for source in config.data.mixture.sources:
        own = shortest_windows(source_config(resolve_mixture(config), source))
        make_index(own, Path(source.index), num_workers=1, part_episodes=10)
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from pathlib import Path\nfrom tests.launch.test_mixed_run import mixed_run\n"
        f"def get_config(): return mixed_run(Path({str(tmp_path)!r}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment.pop("JAX_PLATFORMS", None)
    options: dict[str, Any] = {"cwd": ROOT, "env": environment}

    def command(verb: str, workdir: Path, *more: str) -> list[str]:
        return [sys.executable, "-m", "launch.cli", verb, f"--workdir={workdir}", "--cpu_devices=1", *more]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train = f"--config={experiment}"
    done = subprocess.run(command("train", whole, train), check=True, capture_output=True, text=True, **options)
    assert "model FLOPs/step" in done.stdout
    process = subprocess.Popen(command("train", killed, train), stdout=subprocess.DEVNULL, **options)
    limit = time.monotonic() + 900
    while len(lines(killed / "ledger.jsonl")) < 5:
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command("train", killed, train), check=True, stdout=subprocess.DEVNULL, **options)

    def facts(record: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if key != "wall"}

    expected = lines(whole / "ledger.jsonl")
    assert [facts(line) for line in lines(killed / "ledger.jsonl")] == [facts(line) for line in expected]
    assert {line["bucket"] for line in expected} == {"short", "long"}
    last = expected[-1]
    assert sum(last["buckets"].values()) == last["samples"] == sum(last["sources"].values())
    assert last["step"] == STEPS
    assert set(last["sources"]) == {"a", "b"}
    subprocess.run(command("eval", whole, "--source=b"), check=True, stdout=subprocess.DEVNULL, **options)
    evaluation = json.loads((whole / "eval.json").read_text())
    assert evaluation["source"] == "b"
    assert evaluation["windows"] == 4
    refused = subprocess.run(command("eval", whole), capture_output=True, text=True, **options)
    assert refused.returncode == 2
    assert "--source=None: one dataset at a time; expected one of a, b" in refused.stderr
