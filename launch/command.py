"""What the command line needs to know of a verb or subcommand: its text, its flags, what it runs."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
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


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command in a module of its own, imported when it is chosen: the module and one line of help."""

    module: str
    summary: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandTable:
    """A command with subcommands.

    Attributes:
      own: What runs when none of them is named; None if one must be.
      table: Name -> subcommand.
    """

    own: Command | None
    table: Mapping[str, Command | Verb]


def load_verb(verb: Verb) -> Command | CommandTable:
    """Imports a verb's module and returns what it implements.

    The module has ``define_flags`` and ``run``, or a table ``SUBCOMMANDS``, or both.
    """
    module = importlib.import_module(verb.module)
    own = _own_command(module, verb.summary) if hasattr(module, "run") else None
    if hasattr(module, "SUBCOMMANDS"):
        return CommandTable(own=own, table=module.SUBCOMMANDS)
    assert own is not None, f"{verb.module} has neither run nor SUBCOMMANDS"
    return own


def load_subcommand(entry: Command | Verb) -> Command:
    """Returns a subcommand, imported if it is a module's."""
    if isinstance(entry, Command):
        return entry
    return _own_command(importlib.import_module(entry.module), entry.summary)


def _own_command(module: ModuleType, summary: str) -> Command:
    return Command(summary=summary, description=module.__doc__ or "", define_flags=module.define_flags, run=module.run)
