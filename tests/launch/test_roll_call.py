"""The processes of a run find each other or say who is missing and who differs, before JAX starts."""

import socket
import threading
from collections.abc import Callable

import pytest

from launch.roll_call import Facts, Meeting, answer_roll, call_roll, describe_difference
from wamjax.errors import ConfigError

FACTS = {"config.train.seed": "0", "jaxlib": "0.10.2"}


@pytest.fixture
def meeting() -> Meeting:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return Meeting(address=f"localhost:{probe.getsockname()[1]}", num_processes=3, timeout_s=10)


def outcomes(*processes: Callable[[], None]) -> list[str]:
    """Runs all at once; returns the error of each, "" for none."""
    found = [""] * len(processes)

    def run(index: int) -> None:
        try:
            processes[index]()
        except ConfigError as error:
            found[index] = str(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def roll(meeting: Meeting, facts: Facts = FACTS) -> Callable[[], None]:
    return lambda: call_roll(meeting, facts)


def answer(meeting: Meeting, process: int, facts: Facts = FACTS) -> Callable[[], None]:
    return lambda: answer_roll(meeting, process, facts)


def test_processes_that_agree_go_on_and_leave_the_port_free(meeting: Meeting) -> None:
    assert outcomes(answer(meeting, 2), answer(meeting, 1), roll(meeting)) == ["", "", ""]
    with socket.create_server(meeting.host_port):
        pass


def test_a_process_that_differs_is_named_with_both_values_by_all(meeting: Meeting) -> None:
    other: Facts = {**FACTS, "config.train.seed": "7"}
    found = outcomes(roll(meeting), answer(meeting, 1), answer(meeting, 2, other))
    assert len(set(found)) == 1
    assert found[0] == (
        "process 2 differs from process 0: config.train.seed is 7, not 0; start all processes with the same flags, "
        "files and versions"
    )


def test_a_process_that_is_missing_is_named_to_those_that_came(meeting: Meeting) -> None:
    meeting = Meeting(address=meeting.address, num_processes=3, timeout_s=1)
    found = outcomes(roll(meeting), answer(meeting, 1))
    expected = f"process 2 of 3 did not appear at --coordinator_address={meeting.address} within 1 s"
    assert [message[: len(expected)] for message in found] == [expected, expected]


def test_two_processes_of_one_number_are_refused(meeting: Meeting) -> None:
    found = outcomes(roll(meeting), answer(meeting, 1), answer(meeting, 1))
    assert set(found) == {"two processes have --process_id=1 of --num_processes=3"}


def test_strangers_at_the_port_are_ignored(meeting: Meeting) -> None:
    def strangers() -> None:
        for line in (b"GET / HTTP/1.1\r\n\r\n", b"[1, 2]\n", b""):
            with _knock(meeting) as connection:
                connection.sendall(line)

    pair = Meeting(address=meeting.address, num_processes=2, timeout_s=10)

    def late() -> None:
        strangers()
        answer_roll(pair, 1, FACTS)

    assert outcomes(roll(pair), late) == ["", ""]


def test_a_port_that_is_taken_is_named(meeting: Meeting) -> None:
    with (
        socket.create_server(("", meeting.host_port[1])),
        pytest.raises(ConfigError, match=r"process 0 cannot listen at --coordinator_address=localhost:\d+: Address"),
    ):
        call_roll(meeting, FACTS)


def test_something_else_at_the_address_is_named(meeting: Meeting) -> None:
    with socket.create_server(meeting.host_port) as server:
        threading.Thread(target=lambda: server.accept()[0].close()).start()
        with pytest.raises(ConfigError, match=r"ended, or is no process of this run"):
            answer_roll(meeting, 1, FACTS)


def test_differences_beyond_three_are_counted_and_long_values_cut() -> None:
    first = dict.fromkeys("abcde", "0")
    message = describe_difference([first, {**first, "a": "x" * 100}, dict.fromkeys("abcde", "1")])
    assert message.startswith(f"process 1 differs from process 0: a is {'x' * 57}..., not 0; start")
    message = describe_difference([first, dict.fromkeys("abcd", "1")])
    assert "a is 1, not 0; b is 1, not 0; c is 1, not 0 (and 2 more)" in message
    assert describe_difference([{}, {"git": "1"}]).startswith("process 1 differs from process 0: git is 1, not absent")


def _knock(meeting: Meeting) -> socket.socket:
    """Returns a connection as soon as somebody listens."""
    while True:
        try:
            return socket.create_connection(meeting.host_port, timeout=5)
        except ConnectionRefusedError:
            continue
