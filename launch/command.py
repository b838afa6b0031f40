"""``Command``: what the command line needs to know of one verb or subcommand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
      summary: One line for a table of commands.
      description: Paragraphs for its own help.
      define_flags: Defines its absl flags; called only when the command was chosen.
      run: Takes the positional arguments and returns the exit status.
    """

    summary: str
    description: str
    define_flags: Callable[[], None]
    run: Callable[[list[str]], int]


def command_of_module(module: ModuleType, summary: str) -> Command | dict[str, Command]:
    """Returns the command a verb's module implements, or its table of subcommands."""
    if hasattr(module, "SUBCOMMANDS"):
        return module.SUBCOMMANDS
    return Command(summary=summary, description=module.__doc__ or "", define_flags=module.define_flags, run=module.run)
