"""What must happen before the first device is touched, and what is said when it cannot."""

import os
import signal
import socket

import jax
import pytest

from launch.distributed import check_same_everywhere, run_on_first_process, start_devices, start_processes
from launch.preemption import StopRequest
from wamjax.errors import ConfigError, DataError


def test_cpu_devices_after_jax_started_is_refused_naming_what_runs() -> None:
    assert len(jax.devices()) == 8
    with pytest.raises(ConfigError, match=r"--cpu_devices=3 came too late: JAX already runs on 8 cpu device"):
        start_devices(3)
    start_devices(8)  # what runs already is what was asked for
    start_devices(None)


@pytest.mark.parametrize(
    ("address", "count", "index", "message"),
    [
        ("localhost:1", None, None, "--num_processes and --process_id missing"),
        (None, 2, 0, "--coordinator_address missing"),
        ("localhost:1", 2, 2, r"--process_id=2 is not below --num_processes=2"),
        ("localhost", 2, 1, "--coordinator_address=localhost is not HOST:PORT"),
    ],
)
def test_flags_of_processes_that_do_not_fit_together_are_refused(
    address: str | None, count: int | None, index: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        start_processes(address, count, index, timeout_s=1)


def test_coordinator_that_does_not_answer_is_named() -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConfigError, match=f"no process 0 answers at --coordinator_address=localhost:{port} after 1 s"):
        start_processes(f"localhost:{port}", 2, 1, timeout_s=1)


def test_single_process_needs_no_coordinator_and_agrees_with_itself() -> None:
    start_processes(None, None, None, timeout_s=1)
    check_same_everywhere({"configuration": "abc"})
    assert run_on_first_process(lambda: 5) == 5

    def fail() -> None:
        raise DataError("no data")

    with pytest.raises(DataError, match="no data"):
        run_on_first_process(fail)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_becomes_a_request_and_handlers_are_put_back(number: signal.Signals) -> None:
    former = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening():
        assert not stop.is_requested(1)
        os.kill(os.getpid(), number)
        assert stop.is_requested(2)
    assert signal.getsignal(number) is former


def test_second_interrupt_interrupts_at_once() -> None:
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
