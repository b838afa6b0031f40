"""Roll call: the processes of a run find each other and compare what they are about to do, before JAX starts.

Owns the exchange and its refusals. JAX has a rendezvous of its own, but ends the process, with a stack trace, where
somebody is missing; and processes of another version or configuration would meet in it, and wait for each other later.

How: process 0 listens at the coordinator's address; each other process connects and sends one line of JSON, its number
and its facts; when all have, or time is up, process 0 closes the port (JAX's coordinator takes it next) and answers
each with one line: what is wrong, or nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Mapping, Sequence

from wamjax.errors import ConfigError

Facts = Mapping[str, str]

_MAX_LINE_BYTES = 2**20
_LINE_TIMEOUT_S = 5.0  # for a line that was promised: a stranger who sends none must not hold the roll call up
_RETRY_S = 0.2
_SHOWN_CHARS = 60
_SHOWN = 3  # differences in one message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where and when the processes meet.

    Attributes:
      address: ``HOST:PORT`` of process 0.
      num_processes: How many there are.
      timeout_s: How long they wait for each other.
    """

    address: str
    num_processes: int
    timeout_s: float

    @property
    def host_port(self) -> tuple[str, int]:
        """The two parts of the address.

        Raises:
          ConfigError: It is none.
        """
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"--coordinator_address={self.address} is not HOST:PORT")
        return host, int(port)


def call_roll(meeting: Meeting, facts: Facts) -> None:
    """Waits, as process 0, for all others and compares their facts with its own.

    Raises:
      ConfigError: One is missing or differs; all others raise the same.
    """
    others: dict[int, Facts] = {}
    waiting: list[socket.socket] = []
    deadline, problem = time.monotonic() + meeting.timeout_s, ""
    with contextlib.ExitStack() as stack:
        with _listening(meeting) as server:
            while len(others) < meeting.num_processes - 1 and not problem:
                server.settimeout(_left(deadline))
                try:
                    connection = stack.enter_context(server.accept()[0])
                except TimeoutError:
                    problem = _missing(meeting, others)
                    break
                number, said = _read_answer(connection)
                if number is None:
                    continue  # a stranger
                if number in others or not 0 < number < meeting.num_processes:
                    problem = f"two processes have --process_id={number} of --num_processes={meeting.num_processes}"
                others[number] = said
                waiting.append(connection)
        problem = problem or describe_difference([facts, *(others[number] for number in sorted(others))])
        for connection in waiting:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
                connection.recv(1)  # until it has closed: who closes first keeps the port busy for a while
    if problem:
        raise ConfigError(problem)


def answer_roll(meeting: Meeting, process_id: int, facts: Facts) -> None:
    """Reports, as process ``process_id``, to process 0 and waits for its answer.

    Raises:
      ConfigError: Process 0 does not answer in time, or says what is wrong.
    """
    deadline = time.monotonic() + meeting.timeout_s
    with _connected(meeting, deadline) as connection:
        line = json.dumps({"process": process_id, "facts": dict(facts)}).encode() + b"\n"
        try:
            connection.sendall(line)
            # Process 0 may have started waiting just before this one did: it needs as long, and then answers.
            answer = _read_line(connection, meeting.timeout_s + _LINE_TIMEOUT_S)
            problem = json.loads(answer)["problem"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"process 0 at --coordinator_address={meeting.address} ended, or is no process of this run: it gave no "
                "answer; see its own output"
            ) from error
    if problem:
        raise ConfigError(problem)


def describe_difference(facts: Sequence[Facts]) -> str:
    """Returns how the facts of the first process that differs from process 0 do; "" if none does."""
    first = facts[0]
    for number, other in enumerate(facts):
        names = [name for name in dict.fromkeys([*first, *other]) if first.get(name) != other.get(name)]
        if names:
            shown = "; ".join(f"{name} is {_short(other, name)}, not {_short(first, name)}" for name in names[:_SHOWN])
            more = f" (and {len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
            return (
                f"process {number} differs from process 0: {shown}{more}; start all processes with the same flags, "
                "files and versions"
            )
    return ""


def _short(facts: Facts, name: str) -> str:
    value = facts.get(name, "absent")
    return value if len(value) <= _SHOWN_CHARS else f"{value[: _SHOWN_CHARS - 3]}..."


def _missing(meeting: Meeting, present: Mapping[int, object]) -> str:
    absent = [str(number) for number in range(1, meeting.num_processes) if number not in present]
    return (
        f"process {', '.join(absent)} of {meeting.num_processes} did not appear at --coordinator_address="
        f"{meeting.address} within {meeting.timeout_s:g} s (--connect_timeout_s); start it, or correct its address"
    )


def _listening(meeting: Meeting) -> socket.socket:
    """Returns a listening socket at the meeting's port, on all interfaces, as JAX's coordinator will."""
    _, port = meeting.host_port
    try:
        return socket.create_server(("", port), backlog=meeting.num_processes)
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen at --coordinator_address={meeting.address}: {error.strerror}; choose a free port"
        ) from error


def _connected(meeting: Meeting, deadline: float) -> socket.socket:
    """Returns a connection to process 0, trying until the deadline."""
    host_port = meeting.host_port
    while True:
        try:
            return socket.create_connection(host_port, timeout=2)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"no process 0 answers at --coordinator_address={meeting.address} after {meeting.timeout_s:g} s "
                    f"(--connect_timeout_s): {error}; start it, or correct the address"
                ) from error
        time.sleep(_RETRY_S)


def _read_answer(connection: socket.socket) -> tuple[int | None, Facts]:
    """Returns number and facts of the process at the other end; None for somebody who is none."""
    try:
        answer = json.loads(_read_line(connection, _LINE_TIMEOUT_S))
        return int(answer["process"]), dict(answer["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, {}


def _read_line(connection: socket.socket, timeout_s: float) -> bytes:
    connection.settimeout(timeout_s)
    with connection.makefile("rb") as file:
        return file.readline(_MAX_LINE_BYTES)


def _left(deadline: float) -> float:
    """Returns the seconds left; never 0, which would mean not to wait at all."""
    return max(1e-3, deadline - time.monotonic())
