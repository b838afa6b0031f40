"""Starting JAX: simulated CPU devices, the processes of one run, and agreement between them.

Owns everything that must happen before the first device is touched. Meshes are built in ``wamjax.parallel``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from launch.roll_call import Meeting, answer_roll, call_roll, describe_difference
from wamjax.errors import ConfigError, WamjaxError
from wamjax.parallel.host_memory import keep_freed_memory

T = TypeVar("T")

CONNECT_TIMEOUT_S = 60
_MESSAGE_BYTES = 4096  # room for the one line of an error that crosses processes


def define_device_flags() -> None:
    """Defines ``--cpu_devices``."""
    flags.DEFINE_integer(
        "cpu_devices",
        None,
        "Run on this many simulated CPU devices (per process) instead of the machine's accelerators.",
        lower_bound=1,
    )


def define_process_flags() -> None:
    """Defines the flags of a run of several processes."""
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0, for a run of several processes that no cluster manages."
    )
    flags.DEFINE_integer("num_processes", None, "Processes of the run, with --coordinator_address.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.", lower_bound=0)
    flags.DEFINE_integer(
        "connect_timeout_s", CONNECT_TIMEOUT_S, "Seconds to wait for the other processes to appear.", lower_bound=1
    )


def start_devices(cpu_devices: int | None, *, keep_memory: bool = False) -> None:
    """Makes JAX run on ``cpu_devices`` simulated CPU devices; None leaves the choice to JAX.

    Args:
      cpu_devices: How many.
      keep_memory: Whether the process keeps the memory of a step for the next one: faster, and larger at its peak.

    Raises:
      ConfigError: JAX already runs on other devices.
    """
    if cpu_devices is None:
        return
    try:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
        jax.config.update("jax_platforms", "cpu")
        if keep_memory:
            keep_freed_memory()
    except RuntimeError as error:
        running = jax.devices()
        if running[0].platform == "cpu" and jax.local_device_count() == cpu_devices:
            return  # the very devices that were asked for
        raise ConfigError(
            f"--cpu_devices={cpu_devices} came too late: JAX already runs on {len(running)} {running[0].platform} "
            "device(s) in this process; start a new process"
        ) from error


def prefer_cpu() -> None:
    """Keeps JAX off the accelerators, for commands that only look at arrays; no effect once JAX has started."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")


def start_processes(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout_s: int,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Joins the other processes of the run; does nothing for a run of one process.

    Args:
      coordinator_address: ``HOST:PORT`` of process 0.
      num_processes: How many processes there are.
      process_id: Which of them this one is.
      timeout_s: How long they wait for each other.
      facts: What must be the same in all of them.

    Raises:
      ConfigError: Only some of the first three are given, they contradict each other, the others do not appear in
        time, or one has other facts.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    if all(value is None for value in given.values()):
        return
    missing = [name for name, value in given.items() if value is None]
    if missing or coordinator_address is None or num_processes is None or process_id is None:
        raise ConfigError(f"{' and '.join(missing)} missing; a run of several processes needs {', '.join(given)}")
    if process_id >= num_processes:
        raise ConfigError(f"--process_id={process_id} is not below --num_processes={num_processes}; count from 0")
    meeting = Meeting(address=coordinator_address, num_processes=num_processes, timeout_s=timeout_s)
    facts = {**(facts or {}), "--num_processes": str(num_processes)}
    if process_id == 0:
        call_roll(meeting, facts)
    else:
        answer_roll(meeting, process_id, facts)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id, initialization_timeout=timeout_s)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the {num_processes} processes did not meet at --coordinator_address={coordinator_address} within "
            f"{timeout_s} s (--connect_timeout_s): {' '.join(str(error).split())[:200]}"
        ) from error


def run_on_first_process(action: Callable[[], T]) -> T | None:
    """Runs ``action`` on process 0 while the others wait; an error of it is raised on every process.

    Returns:
      What ``action`` returned on process 0, None elsewhere.

    Raises:
      WamjaxError: Whatever ``action`` raised of that family.
    """
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = action()
        except WamjaxError as raised:
            error = raised
    if jax.process_count() > 1:
        text = "" if error is None else f"{type(error).__name__}:{error.exit_status}:{error}"
        buffer = np.zeros(_MESSAGE_BYTES, np.uint8)
        encoded = text.encode()[:_MESSAGE_BYTES]
        buffer[: len(encoded)] = np.frombuffer(encoded, np.uint8)
        received = (
            bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))).rstrip(b"\0").decode(errors="replace")
        )
        if received and error is None:
            _, status, message = received.split(":", 2)
            error = WamjaxError(message)
            error.exit_status = int(status)
    if error is not None:
        raise error
    return result


def check_same_everywhere(values: Mapping[str, str]) -> None:
    """Checks that every process has the same ``values`` (short hashes), which are known only once JAX runs.

    Raises:
      ConfigError: One differs; names which, and the processes. Raised on every process.
    """
    if jax.process_count() == 1:
        return
    columns = {name: _gather(value) for name, value in values.items()}
    difference = describe_difference(
        [{name: column[process] for name, column in columns.items()} for process in range(jax.process_count())]
    )
    if difference:
        raise ConfigError(difference)


def _gather(text: str) -> list[str]:
    """Returns the short ``text`` of every process."""
    encoded, raw = np.zeros(64, np.uint8), text.encode()[:64]
    encoded[: len(raw)] = np.frombuffer(raw, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(encoded))
    return [bytes(row).rstrip(b"\0").decode() for row in rows]


def wait_for_all(name: str) -> None:
    """Returns once every process has called it with the same ``name``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def stop_processes() -> None:
    """Leaves the run of several processes; does nothing in a run of one."""
    if jax.process_count() > 1:
        with contextlib.suppress(RuntimeError):  # the others may be gone already
            jax.distributed.shutdown()
