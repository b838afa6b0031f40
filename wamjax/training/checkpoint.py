"""Checkpoints: asynchronous saving, verified loading, and what is kept.

Owns the folder ``checkpoints/``: one sub-folder per step, written by Orbax and renamed into place when complete. Each
holds the training state and, as JSON beside it, a ``CheckpointRecord``: the data position, the ledger totals, the hash
of the configuration and a digest of every array. Loading recomputes the digests, so a checkpoint that changed on disk
is noticed. Does not decide when to save (``training.loop``) nor what a resumed run may change (``launch.workdir``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging as stdlib_logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from wamjax.errors import ConfigError
from wamjax.training.checkpoint_files import find_broken_files, write_manifest
from wamjax.training.checkpoint_record import CheckpointError, CheckpointRecord, require_same_arrays, require_same_base
from wamjax.training.digest import digest_arrays, path_name

_STATE = "state"  # name of the one checkpointable in a step's folder
_PARTIAL_MARK = ".orbax-checkpoint-tmp"  # Orbax writes here and renames when complete
_BROKEN_SUFFIX = ".broken"
_MIN_SLICE_BYTES = 2**20
_FREE_ATTEMPTS = 30  # a tenth of a second apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A verified checkpoint in memory: ``state`` on the mesh it was asked for, and its record."""

    state: Any
    record: CheckpointRecord


class CheckpointStore:
    """The checkpoints of one run. Every process of the run makes the same calls in the same order.

    Args:
      directory: Folder of the steps; made when the first checkpoint is saved.
      keep: How many of the newest complete checkpoints stay. An older one is deleted only after a newer one is
        complete on disk, so there are at most ``keep + 1`` for a moment and never fewer than before a save.
    """

    def __init__(self, directory: Path, *, keep: int = 3) -> None:
        if keep < 1:
            raise ConfigError(f"config.checkpoint.keep={keep}; expected at least 1")
        self.directory = directory.absolute()  # Orbax refuses relative paths
        self._keep = keep
        self._pending: tuple[int, Future[None]] | None = None
        self._finisher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        logging.get_absl_logger().addFilter(_is_not_from_failed_writer)

    @property
    def steps(self) -> list[int]:
        """Steps that are complete on disk, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal() and path.is_dir())

    @property
    def partial_steps(self) -> list[Path]:
        """Folders of saves that never completed."""
        return sorted(self.directory.glob(f"*{_PARTIAL_MARK}*")) if self.directory.is_dir() else []

    def path(self, step: int) -> Path:
        """Returns the folder of ``step``."""
        return self.directory / str(step)

    def save(
        self,
        step: int,
        state: Any,
        *,
        position: int,
        ledger: dict[str, Any],
        config_hash: str,
        base_hash: str | None = None,
    ) -> None:
        """Starts writing ``state`` as checkpoint ``step``; returns once the arrays are copied to the host.

        A save still running is waited for first. The caller may donate ``state`` afterwards. The rest is for the
        record (``CheckpointRecord``).

        Raises:
          CheckpointError: This save could not start, or the one before it failed.
        """
        self.wait()
        record = CheckpointRecord(
            step=step,
            position=position,
            ledger=ledger,
            config_hash=config_hash,
            digests=digest_arrays(state),
            base_hash=base_hash,
        )
        try:
            with _saving_options():
                response = ocp.save_checkpointables_async(
                    str(self.path(step)), {_STATE: state}, custom_metadata=record.to_json()
                )
        except Exception as error:
            raise self._failed_save(step, error) from error
        self._pending = (step, self._finisher.submit(self._finish, step, response.result))

    def wait(self) -> None:
        """Blocks until the last save is complete on disk, then deletes what is no longer kept.

        Raises:
          CheckpointError: The save failed; the checkpoints before it are untouched.
        """
        if self._pending is None:
            return
        (step, finishing), self._pending = self._pending, None
        try:
            finishing.result()
        except Exception as error:
            raise self._failed_save(step, error) from error
        if jax.process_index() == 0:
            for old in self.steps[: -self._keep]:
                _delete_step(self.path(old))

    def _finish(self, step: int, finished: Callable[[], None]) -> None:
        """Waits, in the background, until Orbax has put the step in place; then adds the checksums of its files."""
        finished()
        if jax.process_index() == 0:
            write_manifest(self.path(step))

    def read_record(self, step: int) -> CheckpointRecord:
        """Returns the record of ``step`` without reading its arrays.

        Raises:
          CheckpointError: The step does not exist, or its record cannot be trusted.
        """
        if not self.path(step).is_dir():
            raise CheckpointError(f"{self.directory} has no checkpoint of step {step}; it has {self.steps or 'none'}")
        with _own_words(f"checkpoint {self.path(step)} is unreadable"):
            data = ocp.checkpointables_metadata(str(self.path(step))).custom_metadata
        try:
            return CheckpointRecord.from_json(data)
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {self.path(step)} is damaged: {error}") from error

    def restore(
        self, step: int, abstract_state: Any, *, base_hash: str | None = None, is_part: bool = False
    ) -> Restored:
        """Loads checkpoint ``step`` onto the shardings of ``abstract_state`` and verifies every array.

        Args:
          step: A step of ``steps``.
          abstract_state: Pytree of ``jax.ShapeDtypeStruct`` with shardings, for any mesh.
          base_hash: Hash of the kept parameters the state is completed with, if it is not whole.
          is_part: Whether ``abstract_state`` is a part of what the checkpoint holds, for a use of its own: nothing
            else is read.

        Raises:
          ConfigError: The checkpoint holds other arrays than ``abstract_state``: it is of another configuration, or it
            was trained on another base.
          CheckpointError: It is unreadable, or an array does not match its digest.
        """
        self._check_files(step)
        record = self.read_record(step)
        if is_part:
            wanted = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract_state)}
            held = {path: digest for path, digest in record.digests.items() if path in wanted}
            record = dataclasses.replace(record, digests=held)
        else:
            require_same_base(self.path(step), record, base_hash)
        require_same_arrays(self.path(step), record, abstract_state)
        with _own_words(f"checkpoint {self.path(step)} is unreadable"), _loading_options(is_part):
            state = ocp.load_checkpointables(str(self.path(step)), {_STATE: abstract_state})[_STATE]
        wrong = find_damage(record, state)
        if wrong:
            raise CheckpointError(
                f"checkpoint {self.path(step)} is damaged: {len(wrong)} of {len(record.digests)} arrays do not match "
                f"their digest, first {wrong[0]}"
            )
        return Restored(state=state, record=record)

    def read_arrays(self, step: int) -> dict[str, jax.Array]:
        """Loads every array of ``step`` onto one device, by path, without knowing the program that made it.

        Raises:
          CheckpointError: The step is unreadable. Digests are the caller's to compare (``find_damage``).
        """
        self._check_files(step)
        one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        with _own_words(f"checkpoint {self.path(step)} is unreadable"):
            stored = ocp.checkpointables_metadata(str(self.path(step))).metadata[_STATE]
            abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one_device), stored)
            state = ocp.load_checkpointables(str(self.path(step)), {_STATE: abstract})[_STATE]
        return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}

    def restore_latest(
        self, abstract_state: Any, *, base_hash: str | None = None, set_aside: bool = False
    ) -> Restored | None:
        """Loads the newest checkpoint that verifies, warning in one line about each newer one that does not.

        Args:
          abstract_state: As for ``restore``.
          base_hash: As for ``restore``.
          set_aside: Whether a broken step is renamed to ``<step>.broken`` (so that the run can save that step again)
            and unfinished saves are deleted. Only the run that owns the folder may ask for it.

        Returns:
          The checkpoint, or None when there never was one.

        Raises:
          ConfigError: As ``restore``.
          CheckpointError: There are checkpoints but none verifies.
        """
        if set_aside:
            self._drop_partial()
        steps = self.steps
        for step in reversed(steps):
            restored, problem = self._try_restore(step, abstract_state, base_hash)
            if restored is not None:
                return restored
            older = [other for other in steps if other < step]
            logging.warning("%s; %s", problem, f"falling back to step {older[-1]}" if older else "no older one is left")
            if set_aside:
                self._set_aside(step)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} in {self.directory} can be trusted; restore the folder from a backup "
                "or start again in another --workdir"
            )
        return None

    def _check_files(self, step: int) -> None:
        """Raises ``CheckpointError`` on every process if a file of ``step`` is not what was written.

        Only then may Orbax read it: where one process of several stumbles, the others would wait for it for minutes.
        """
        problem: CheckpointError | None = None
        try:
            broken = find_broken_files(self.path(step), share=jax.process_index(), num_shares=jax.process_count())
        except CheckpointError as error:
            problem = error
        else:
            if broken:
                problem = CheckpointError(
                    f"checkpoint {self.path(step)} is damaged: {broken[0]} is missing or not what was written"
                    + (f", and {len(broken) - 1} more files" if broken[1:] else "")
                )
        if not _is_true_everywhere(problem is None):
            raise problem or CheckpointError(f"checkpoint {self.path(step)} is damaged: seen by another process")

    def _try_restore(self, step: int, abstract_state: Any, base_hash: str | None) -> tuple[Restored | None, str]:
        """Returns the checkpoint, or None and the problem; all processes return the same way."""
        restored, problem = None, ""
        try:
            restored = self.restore(step, abstract_state, base_hash=base_hash)
        except CheckpointError as error:
            problem = str(error)
        if not _is_true_everywhere(restored is not None):  # what one process cannot read is unusable for all
            problem = problem or f"checkpoint {self.path(step)} is damaged: seen by another process"
            restored = None
        return restored, problem

    def _drop_partial(self) -> None:
        """Deletes what a killed save left behind, naming it."""
        for path in self.partial_steps:
            step = path.name.split(".", 1)[0]
            logging.warning("checkpoint %s was half written when the run ended; deleted", self.directory / step)
            if jax.process_index() == 0:
                shutil.rmtree(path)
        _barrier("partial checkpoints deleted")

    def _set_aside(self, step: int) -> None:
        """Renames a broken step so that nothing takes it for a checkpoint, and nothing is lost."""
        if jax.process_index() == 0:
            target = self.path(step).with_name(f"{step}{_BROKEN_SUFFIX}")
            count = 1
            while target.exists():
                target = target.with_name(f"{step}{_BROKEN_SUFFIX}-{count}")
                count += 1
            self.path(step).rename(target)
        _barrier(f"broken checkpoint {step} set aside")

    def _free_partial(self, step: int) -> None:
        """Deletes what the failed save of ``step`` wrote, as far as possible: the next start deletes the rest.

        One writer failed, others may still be at work and make the folder again: it must stay away for a moment.
        """
        quiet = 0
        for _ in range(_FREE_ATTEMPTS):
            partial = list(self.directory.glob(f"{step}{_PARTIAL_MARK}*"))
            for path in partial:
                shutil.rmtree(path, ignore_errors=True)  # the reason of the failure matters more
            quiet = 0 if partial else quiet + 1
            if quiet == 2:
                return
            time.sleep(0.1)

    def _failed_save(self, step: int, error: Exception) -> CheckpointError:
        """Returns the error to raise for a failed save, having freed what the save had written."""
        if jax.process_index() == 0:
            self._free_partial(step)
        last = self.steps[-1] if self.steps else None
        return CheckpointError(
            f"checkpoint of step {step} could not be written to {self.directory} ({_one_line(error)}); "
            + (f"the last good checkpoint is step {last}" if last is not None else "there is no earlier checkpoint")
        )


def find_damage(record: CheckpointRecord, state: Any) -> list[str]:
    """Returns the paths of the arrays of ``state`` that are not what ``record`` says they were when saved."""
    digests = digest_arrays(state)
    return [path for path in sorted({*digests, *record.digests}) if digests.get(path) != record.digests.get(path)]


def _is_not_from_failed_writer(record: stdlib_logging.LogRecord) -> bool:
    """Returns False for the tracebacks of Orbax's writing threads: their error is raised too, and told in one line."""
    return not (record.levelno >= stdlib_logging.ERROR and record.exc_info and "orbax" in record.pathname)


def _saving_options() -> ocp.Context:
    """Returns how Orbax writes: only large replicated arrays are shared out among the replicas that could write them.

    Sharing out slices each array on its device, one small program per shape: dear for the many small arrays.
    """
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = _MIN_SLICE_BYTES
    return context


def _loading_options(is_part: bool) -> ocp.Context:
    """Returns how Orbax reads: everything, or what is asked for alone."""
    context = ocp.Context()
    context.pytree.loading.partial_load = is_part
    return context


def _delete_step(path: Path) -> None:
    """Deletes a complete step so that no reader ever takes a half-deleted folder for a checkpoint."""
    doomed = path.with_name(f"{path.name}.deleting")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _is_true_everywhere(value: bool) -> bool:
    """Returns whether every process says so."""
    return value if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(value)).all())


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def _own_words(problem: str) -> Iterator[None]:
    """Turns what Orbax, tensorstore, zstd or the JSON parser raise on damaged files into one ``CheckpointError``.

    Their reading tasks log pages of tracebacks as well, some only when they are garbage collected: those are muted,
    since the one line says what matters and the folder stays for whoever wants to look.
    """
    noisy = [stdlib_logging.getLogger(name) for name in ("asyncio", "absl")]
    levels = [logger.level for logger in noisy]
    try:
        for logger in noisy:
            logger.setLevel(stdlib_logging.CRITICAL)
        try:
            yield
        except Exception as error:
            reason = _one_line(error)
        else:
            return
        raise CheckpointError(f"{problem}: {reason}")
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def _one_line(error: BaseException) -> str:
    """Returns kind and message of the innermost cause of ``error``, on one line of some 200 characters.

    Long ones lose their middle: they begin with a kind and end with what the system said.
    """
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:80]} ... {text[-115:]}"
