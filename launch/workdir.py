"""The work directory of a run: its files, its lock, and what a resumed run may change.

Owns ``run.json`` (what ran, where and with which versions), ``LOCK`` and the names of everything else in the folder.
Does not write checkpoints or logs (``wamjax.training``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

import wamjax
from data_pipelines.lock import locked
from data_pipelines.sources.remote import refuse_address
from wamjax.config import bridge
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError, DataError

# Keys a resumed run may change without asking: they decide where, how fast and how often, not what is computed.
# ``data.path``, ``data.latents`` and ``finetune.base`` are among them because the fingerprint counts (each may be
# moved), and ``train.num_steps`` because a longer run is the same run; what the schedule makes of it is compared
# instead (see ``effective_config``).
FREE_SECTIONS = ("log", "checkpoint", "evaluate", "parallel")
FREE_KEYS = (
    "name",
    "train.num_steps",
    "train.accumulate",
    "optimizer.max_skipped",
    "data.path",
    "data.latents",
    "data.index",
    "data.num_threads",
    "data.prefetch",
    "data.decoded_frames_mib",
    "finetune.base",
)

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av", "ml-collections")


@dataclasses.dataclass(frozen=True)
class WorkDir:
    """Names of what a run keeps in its folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, one sub-folder per step."""
        return self.path / "checkpoints"

    @property
    def run_json(self) -> Path:
        """What ran: configuration, versions, devices, data."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """Metrics of every step, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        """Run ledger, one JSON object per step."""
        return self.path / "ledger.jsonl"

    @property
    def goodput(self) -> Path:
        """Where the run's time went, one JSON object per event, over all its processes."""
        return self.path / "goodput.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def first_batch(self) -> Path:
        """Picture of the first training batch."""
        return self.path / "first_batch.png"

    @property
    def lock(self) -> Path:
        """File locked by the run that is alive."""
        return self.path / "LOCK"

    def create(self) -> None:
        """Makes the folder.

        Raises:
          ConfigError: A file is in the way, it may not be written, or it is no folder of a disk.
        """
        refuse_address(self.path, "--workdir")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--workdir={self.path} cannot be made: {error.strerror}; choose another one") from error

    def read_run(self) -> dict[str, Any]:
        """Returns ``run.json``.

        Raises:
          ConfigError: The folder holds no run.
          DataError: ``run.json`` is damaged.
        """
        try:
            run = json.loads(self.run_json.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(f"--workdir={self.path} holds no run (no run.json); train one there first") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{self.run_json} cannot be read: {error}; restore it from a backup") from error
        if not isinstance(run, dict) or "config" not in run:
            raise DataError(f"{self.run_json} has no configuration; restore it from a backup")
        return run

    def read_config(self) -> RunConfig:
        """Returns the configuration of the run in this folder; raises as ``read_run``."""
        return bridge.from_config_dict(self.read_run()["config"])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process. The system frees the lock when the process dies, however it dies.

        Raises:
          ConfigError: A live process holds it.
        """
        refusal = f"--workdir={self.path} is in use by {{holder}}; wait for that run, stop it, or use another --workdir"
        with locked(self.lock, refusal):
            yield


def effective_config(config: RunConfig) -> RunConfig:
    """Returns ``config`` with values that follow from others written out: today ``optimizer.decay_steps``.

    With ``decay_steps = 0`` a learning rate that decays does so over ``train.num_steps``, so a longer run is another
    schedule from the first step on. Resuming with more steps is therefore accepted only when ``optimizer.decay_steps``
    is set to what it was.
    """
    decay_steps = config.optimizer.decay_steps or config.train.num_steps
    if config.optimizer.schedule == "constant":
        decay_steps = 0
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, decay_steps=decay_steps))


def changed_keys(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """Returns (dotted key, old, new) of every difference that changes what is computed."""
    differences = bridge.diff_configs(effective_config(old), effective_config(new))
    return [(key, a, b) for key, a, b in differences if not _is_free(key)]


def _is_free(key: str) -> bool:
    """Returns whether a dotted key leaves alone what is computed; a source of a mixture is a ``data`` of its own."""
    plain = re.sub(r"\.mixture\.sources\[\d+\]\.", ".", key)
    return plain in FREE_KEYS or key.split(".")[0] in FREE_SECTIONS


def check_resumable(workdir: WorkDir, config: RunConfig, *, allow_change: bool) -> None:
    """Compares ``config`` with the run already in ``workdir``, if there is one.

    Raises:
      ConfigError: Keys that matter differ and ``allow_change`` is False; names each with both values. Or one of the
        runs is in buckets and the other is not: their positions in the data cannot be compared.
      DataError: ``run.json`` is damaged.
    """
    if not workdir.run_json.exists():
        return
    begun = workdir.read_config()
    changed = changed_keys(begun, config)
    if not changed:
        return
    counted = ["batches" if sets else "samples" for sets in (begun.data.buckets.sets, config.data.buckets.sets)]
    if counted[0] != counted[1]:
        raise ConfigError(
            f"--workdir={workdir.path} holds a run whose position in the data counts {counted[0]}, and this one counts "
            f"{counted[1]} (config.data.buckets.sets: {len(begun.data.buckets.sets)} -> "
            f"{len(config.data.buckets.sets)} buckets): use another --workdir"
        )
    listed = "; ".join(f"config.{key}: {old!r} -> {new!r}" for key, old, new in changed)
    if not allow_change:
        hint = ""
        if any(key == "optimizer.decay_steps" for key, *_ in changed):
            hint = " (config.optimizer.decay_steps follows config.train.num_steps unless it is set)"
        raise ConfigError(
            f"--workdir={workdir.path} holds a run of another configuration: {listed}{hint}; use another --workdir, or "
            "--allow_config_change to go on with the new values"
        )
    logging.warning("resuming with another configuration: %s", listed)


def config_hash(config: RunConfig) -> str:
    """Returns a short hash of what ``config`` computes; free keys do not count."""
    fields = {key: value for key, value in bridge.iterate_fields(effective_config(config)) if not _is_free(key)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def write_run(workdir: WorkDir, config: RunConfig, *, step: int, facts: dict[str, Any]) -> None:
    """Writes ``run.json`` for a run that starts or goes on at ``step``; the history of starts is kept.

    Args:
      workdir: Where.
      config: The resolved configuration.
      step: Step this process starts from.
      facts: JSON data about this start: devices, mesh, parameters, data.
    """
    former = workdir.read_run() if workdir.run_json.exists() else {}
    start = {
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "host": socket.gethostname(),
        "devices": facts.get("devices"),
        "versions": versions(),
        "git": git_revision(),
    }
    changes = former.get("config_changes", [])
    if former:
        changes = [
            *changes,
            *(
                {"step": step, "key": key, "old": old, "new": new}
                for key, old, new in bridge.diff_configs(bridge.from_config_dict(former["config"]), config)
            ),
        ]
    run = {
        "config": dataclasses.asdict(config),
        "config_hash": config_hash(config),
        "versions": start["versions"],
        "git": start["git"],
        **facts,
        "starts": [*former.get("starts", []), start],
        "config_changes": changes,
    }
    replacement = workdir.run_json.with_name("run.json.tmp")
    try:
        replacement.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        os.replace(replacement, workdir.run_json)
    except OSError as error:
        raise DataError(f"cannot write {workdir.run_json}: {error.strerror}; free space there") from error


def settings(config: RunConfig) -> dict[str, str]:
    """Returns every key of ``config`` with its value as text."""
    return {f"config.{key}": repr(value) for key, value in bridge.iterate_fields(config)}


def code_facts() -> dict[str, str]:
    """Returns what of the code must be the same in all processes of a run: versions, and the git revision if known."""
    found = {name: version for name, version in versions().items() if name != "python"}
    git = git_revision()
    return found if git is None else {**found, "the git revision": git["revision"]}


def versions() -> dict[str, str]:
    """Returns the versions of Python, wamjax and the packages that decide what is computed."""
    found = {"python": platform.python_version(), "wamjax": wamjax.__version__}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_revision() -> dict[str, Any] | None:
    """Returns commit and whether the tree has changes of its own; None where the code is no git checkout."""
    root = Path(wamjax.__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # installed inside somebody else's repository
        return {"revision": git("rev-parse", "HEAD"), "has_changes": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
