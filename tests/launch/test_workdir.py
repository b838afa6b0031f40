"""The work directory: its lock, and what a resumed run may change."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.workdir import (
    WorkDir,
    changed_keys,
    check_resumable,
    config_hash,
    git_revision,
    versions,
    write_run,
)
from wamjax.config.buckets import BucketConfig, BucketsConfig
from wamjax.config.schema import DataConfig, RunConfig
from wamjax.errors import ConfigError, DataError

CONFIG = RunConfig()


def _change(section: str, **values: Any) -> RunConfig:
    return dataclasses.replace(CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **values)})


@pytest.mark.parametrize(
    "config",
    [
        _change("log", every_steps=3),
        _change("checkpoint", keep=9),
        _change("evaluate", every_steps=1),
        _change("parallel", fsdp=2),
        _change("data", path="elsewhere", num_threads=1, prefetch=1),
        dataclasses.replace(CONFIG, name="other"),
    ],
)
def test_keys_that_change_nothing_computed_may_differ(config: RunConfig) -> None:
    assert changed_keys(CONFIG, config) == []
    assert config_hash(config) == config_hash(CONFIG)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (_change("model", width=64), "model.width"),
        (_change("train", seed=1), "train.seed"),
        (_change("train", global_batch_size=64), "train.global_batch_size"),
        (_change("data", shuffle_seed=1), "data.shuffle_seed"),
        (_change("optimizer", peak_lr=0.1), "optimizer.peak_lr"),
        (_change("train", num_steps=500), "optimizer.decay_steps"),  # the schedule would follow
    ],
)
def test_keys_that_decide_what_is_computed_are_named(config: RunConfig, key: str) -> None:
    assert [name for name, *_ in changed_keys(CONFIG, config)] == [key]
    assert config_hash(config) != config_hash(CONFIG)


def test_longer_run_that_keeps_its_schedule_is_the_same_run() -> None:
    longer = dataclasses.replace(
        _change("train", num_steps=500), optimizer=dataclasses.replace(CONFIG.optimizer, decay_steps=400)
    )
    assert CONFIG.train.num_steps == 400
    assert changed_keys(CONFIG, longer) == []


def test_resume_with_other_keys_is_refused_with_both_values_unless_allowed(tmp_path: Path) -> None:
    workdir = WorkDir(tmp_path)
    check_resumable(workdir, CONFIG, allow_change=False)  # nothing there yet
    write_run(workdir, CONFIG, step=0, facts={})
    check_resumable(workdir, CONFIG, allow_change=False)
    other = _change("model", width=64)
    with pytest.raises(ConfigError, match=r"config\.model\.width: 128 -> 64.*--allow_config_change"):
        check_resumable(workdir, other, allow_change=False)
    check_resumable(workdir, other, allow_change=True)


def test_run_json_keeps_the_history_of_starts_and_changes(tmp_path: Path) -> None:
    workdir = WorkDir(tmp_path)
    write_run(workdir, CONFIG, step=0, facts={"devices": {"count": 8}})
    write_run(workdir, _change("log", every_steps=3), step=20, facts={"devices": {"count": 4}})
    run = workdir.read_run()
    assert [(start["step"], start["devices"]) for start in run["starts"]] == [(0, {"count": 8}), (20, {"count": 4})]
    assert run["devices"] == {"count": 4}
    assert run["config_changes"] == [{"step": 20, "key": "log.every_steps", "old": 10, "new": 3}]
    assert workdir.read_config() == _change("log", every_steps=3)


def test_lock_is_refused_while_held_and_free_afterwards(tmp_path: Path) -> None:
    workdir = WorkDir(tmp_path)
    refused = pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on ")
    with workdir.locked(), refused, workdir.locked():
        pytest.fail("locked twice")
    with workdir.locked():
        pass
    assert workdir.lock.read_text() == ""


def test_run_in_buckets_and_one_without_never_share_a_folder(tmp_path: Path) -> None:
    sets = (BucketConfig(name="a", canvas=(48, 96), num_frames=9),)
    plain, bucketed = RunConfig(), RunConfig(data=DataConfig(buckets=BucketsConfig(sets=sets)))
    for begun, now, refusal in (
        (
            plain,
            bucketed,
            r"counts samples, and this one counts batches \(config\.data\.buckets\.sets: 0 -> 1 buckets\)",
        ),
        (
            bucketed,
            plain,
            r"counts batches, and this one counts samples \(config\.data\.buckets\.sets: 1 -> 0 buckets\)",
        ),
    ):
        write_run(WorkDir(tmp_path), begun, step=0, facts={})
        for allow_change in (False, True):
            with pytest.raises(ConfigError, match=refusal):
                check_resumable(WorkDir(tmp_path), now, allow_change=allow_change)
        (tmp_path / "run.json").unlink()
    more = (*sets, BucketConfig(name="b", canvas=(48, 96), num_frames=5))
    write_run(WorkDir(tmp_path), bucketed, step=0, facts={})
    another = RunConfig(data=DataConfig(buckets=BucketsConfig(sets=more)))
    check_resumable(WorkDir(tmp_path), another, allow_change=True)


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, pathlib; from launch.workdir import WorkDir\n"
        "with WorkDir(pathlib.Path(sys.argv[1])).locked(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, check=False)
    workdir = WorkDir(tmp_path)
    assert workdir.lock.read_text().startswith("process ")
    with workdir.locked():
        assert workdir.lock.read_text().startswith(f"process {os.getpid()} on ")


def test_folder_without_a_run_and_damaged_run_json_are_told_apart(tmp_path: Path) -> None:
    workdir = WorkDir(tmp_path)
    with pytest.raises(ConfigError, match="holds no run"):
        workdir.read_run()
    workdir.run_json.write_text('{"config"')
    with pytest.raises(DataError, match=r"run\.json cannot be read"):
        workdir.read_run()
    workdir.run_json.write_text("{}")
    with pytest.raises(DataError, match="has no configuration"):
        workdir.read_run()


def test_work_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--workdir=.*file cannot be made"):
        WorkDir(tmp_path / "file").create()


def test_versions_and_revision_say_what_ran() -> None:
    assert {"python", "wamjax", "jax", "orbax-checkpoint"} <= set(versions())
    revision = git_revision()
    assert revision is None or len(revision["revision"]) == 40
