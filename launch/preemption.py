"""Leaving in time: SIGTERM and SIGINT become a request that the loop answers by saving and returning.

Owns signal handlers. In a run of several processes JAX's own preemption notice is used instead, which makes all
processes stop at the same step although only one of them may have been told.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import jax
from absl import logging
from jax.experimental import multihost_utils

RESTART_STATUS = 42  # exit status of a run that saved and wants to be started again


class StopRequest:
    """Whether the run was asked to leave; see ``wamjax.training.loop.StopSignal``."""

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None

    def is_requested(self, step: int) -> bool:
        """Returns True once a signal came; with several processes, at a step all of them agree on."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handles SIGTERM and SIGINT while the loop runs. A second SIGINT interrupts at once."""
        if jax.process_count() > 1:  # SIGTERM is JAX's; Ctrl-C is passed on as one
            handlers = {signal.SIGINT: self._forward}
        else:
            handlers = {signal.SIGINT: self._note, signal.SIGTERM: self._note}
        former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)
        logging.warning("%s: saving a checkpoint after this step, then leaving", self._signal.name)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C interrupts at once
        os.kill(os.getpid(), signal.SIGTERM)
