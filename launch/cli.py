"""The console command ``wamjax``: picks a verb, parses its flags, turns errors into one line and an exit status.

Owns the table of verbs and the mapping from exception to exit status. Imports no verb until it is chosen, so that
nothing touches JAX before a verb has handled ``--cpu_devices``.

A verb is a module with ``define_flags() -> None`` (absl flags; a module without flags defines none) and
``run(argv: list[str]) -> int``, where ``argv`` holds the positional arguments (without the program's name).

Exit status: 0 done, 1 a comparison or verification failed, 2 bad flag or configuration, 3 bad data, 4 diverged,
42 restart me (preempted with a checkpoint saved), 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from absl import flags

import wamjax
from launch.experiment import OVERRIDE_FLAG, rewrite_overrides
from wamjax.config.bridge import nearest_name
from wamjax.errors import ConfigError, WamjaxError

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


@dataclasses.dataclass(frozen=True)
class Verb:
    """One subcommand: the module that implements it and one line of help."""

    module: str
    summary: str


VERBS = {
    "train": Verb("launch.train_command", "train a model, or resume the run in a work directory"),
    "eval": Verb("launch.eval_command", "evaluate a work directory's model and write its report"),
    "data": Verb("launch.data_command", "record, inspect and summarise datasets"),
    "checkpoint": Verb("launch.checkpoint_command", "inspect, verify and compare checkpoints"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
      argv: Arguments without the program's name; None takes the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_describe_verbs())
        return 0 if arguments else ConfigError.exit_status
    if arguments[0] == "--version":
        print(f"wamjax {wamjax.__version__}")
        return 0
    name, *rest = arguments
    if name not in VERBS:
        nearest = nearest_name(name, VERBS)
        hint = f"did you mean {nearest}?" if nearest else f"the commands are {', '.join(VERBS)}"
        return _fail("wamjax", f"{name!r} is not a command; {hint}", ConfigError.exit_status)
    return _run_verb(name, rest)


def _run_verb(name: str, arguments: list[str]) -> int:
    """Runs the verb ``name``; what it raises becomes one line on stderr and an exit status."""
    command = f"wamjax {name}"
    try:
        module = importlib.import_module(VERBS[name].module)
        with _defined_flags(module) as own_flags:
            before_separator = arguments[: arguments.index("--")] if "--" in arguments else arguments
            if any(argument in ("-h", "--help") for argument in before_separator):
                print(_describe_flags(name, module, own_flags))
                return 0
            positional = _parse_flags(command, rewrite_overrides(arguments), own_flags)
            return module.run(positional)
    except WamjaxError as error:
        return _fail(command, str(error), error.exit_status)
    except KeyboardInterrupt:
        return _fail(command, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away (`wamjax data inspect DIR | head`). Python would complain once more
        # when it flushes at exit, so the descriptor is pointed at nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def _defined_flags(module: ModuleType) -> Iterator[list[str]]:
    """Defines the verb's flags and yields their names; removes them afterwards, so that one process may run many."""
    known = set(flags.FLAGS)
    module.define_flags()
    own = [name for name in flags.FLAGS if name not in known]
    try:
        yield own
    finally:
        for name in own:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def _parse_flags(command: str, arguments: list[str], own_flags: Sequence[str]) -> list[str]:
    """Parses ``arguments`` into absl's flags and returns what is positional.

    Raises:
      ConfigError: A flag is unknown (names the nearest), lacks its value, or has one of another type.
    """
    try:
        return flags.FLAGS([command, *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        if error.flagname == OVERRIDE_FLAG:
            raise ConfigError(
                f"{command} takes no --config.KEY: it reads the work directory's configuration"
            ) from error
        nearest = nearest_name(error.flagname, own_flags)
        hint = f"did you mean --{nearest}?" if nearest else f"see {command} --help"
        raise ConfigError(f"unknown flag --{error.flagname}; {hint}") from error
    except flags.IllegalFlagValueError as error:
        missing = [name for name in own_flags if flags.FLAGS[name].value is None and f"--{name}=None:" in str(error)]
        if missing:
            raise ConfigError(f"missing --{' and --'.join(missing)} (see {command} --help)") from error
        message = " ".join(str(error).split()).removeprefix("flag ")
        raise ConfigError(f"{message} (see {command} --help)") from error
    except flags.Error as error:
        message = " ".join(str(error).split()).removeprefix("flag ")
        raise ConfigError(f"{message} (see {command} --help)") from error


def _describe_verbs() -> str:
    """Returns the text of ``wamjax --help``."""
    rows = [f"  {name:<12}{verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        ["usage: wamjax COMMAND [--flag=value ...]", "", "commands:", *rows, "", "wamjax COMMAND --help says more."]
    )


def _describe_flags(name: str, module: ModuleType, own_flags: Sequence[str]) -> str:
    """Returns the text of ``wamjax VERB --help``: the module's docstring and the verb's own flags."""
    lines = [f"wamjax {name}: {VERBS[name].summary}", "", (module.__doc__ or "").strip(), "", "flags:"]
    for flag_name in sorted(set(own_flags) - {OVERRIDE_FLAG}):
        flag = flags.FLAGS[flag_name]
        default = "" if flag.default is None else f" (default {flag.default})"
        lines.append(f"  --{flag_name}{default}")
        lines.extend(textwrap.wrap(flag.help or "", width=100, initial_indent=" " * 6, subsequent_indent=" " * 6))
    if OVERRIDE_FLAG in own_flags:
        lines.extend(["  --config.SECTION.KEY=VALUE", "      Overrides one key of the configuration; may be repeated."])
    return "\n".join(lines)


def _fail(command: str, message: str, status: int) -> int:
    """Prints ``message`` as one line on stderr and returns ``status``."""
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
