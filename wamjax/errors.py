"""Errors a user can cause, each with the exit status the command line gives it.

Owns the mapping from kind of mistake to exit status; does not own the command line that catches them.
"""

from __future__ import annotations


class WamjaxError(ValueError):
    """A mistake outside the program: one line naming the value, what was expected and where to change it."""

    exit_status: int = 2


class ConfigError(WamjaxError):
    """A wrong flag, key, type or value, or a combination that cannot be built (exit 2)."""

    exit_status = 2


class DataError(WamjaxError):
    """A dataset that is missing, damaged or inconsistent (exit 3)."""

    exit_status = 3


class DivergedError(WamjaxError):
    """Training went on producing losses or gradients that are not finite (exit 4)."""

    exit_status = 4
