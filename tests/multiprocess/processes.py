"""Flags of a run of several processes on this machine."""

import socket


def process_flags(port: int, process: int, count: int) -> list[str]:
    """Returns the flags of one of ``count`` processes that have 8 devices between them."""
    flags = [f"--cpu_devices={8 // count}"]
    if count > 1:
        flags += [f"--coordinator_address=localhost:{port}", f"--num_processes={count}", f"--process_id={process}"]
    return flags


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
