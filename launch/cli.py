"""The console command ``wamjax``: picks a verb, parses its flags, turns errors into one line and an exit status.

Owns the table of verbs and the mapping from exception to exit status. Imports no verb until it is chosen, so that
nothing touches JAX before a verb has handled ``--cpu_devices``.

A verb is a module with ``define_flags() -> None`` (absl flags) and ``run(argv: list[str]) -> int``, where ``argv``
holds the positional arguments without the program's name; or with ``SUBCOMMANDS``, a table of such pairs; or with both.

Exit status: 0 done, 1 a comparison or verification failed, 2 bad flag or configuration, 3 bad data, 4 diverged,
42 restart me (preempted with a checkpoint saved), 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from absl import flags

import wamjax
from launch.command import Command, CommandTable, Verb, load_subcommand, load_verb
from launch.experiment import OVERRIDE_FLAG, rewrite_overrides
from wamjax.config.bridge import nearest_name
from wamjax.errors import ConfigError, WamjaxError

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


VERBS = {
    "train": Verb("launch.train_command", "train a model, or resume the run in a work directory"),
    "eval": Verb("launch.eval_command", "evaluate a work directory's model and write its report"),
    "compare": Verb("launch.compare_command", "train several systems with equal FLOPs and set them side by side"),
    "plan": Verb("launch.plan_command", "say what a run needs and costs; compile its step for TPUs that are not there"),
    "data": Verb("launch.data_command", "record, inspect and summarise datasets"),
    "sample": Verb("launch.sample_command", "generate a clip with a pretrained video backbone"),
    "weights": Verb("launch.weights_command", "import, export and verify checkpoints of other libraries"),
    "ledger": Verb("launch.ledger_command", "add up what the runs of a campaign have cost"),
    "checkpoint": Verb("launch.checkpoint_command", "inspect, verify and compare checkpoints"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
      argv: Arguments without the program's name; None takes the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_describe_table("wamjax", {name: verb.summary for name, verb in VERBS.items()}))
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
    title = f"wamjax {name}"
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        command, table = load_verb(VERBS[name]), {}
        if isinstance(command, CommandTable):
            table = {key: entry.summary for key, entry in command.table.items()}
            if command.own is None and (not arguments or arguments[0] in ("-h", "--help")):
                print(_describe_table(title, table))
                return 0 if arguments else ConfigError.exit_status
            if command.own is None or (arguments and not arguments[0].startswith("-")):
                chosen, *arguments = arguments
                command, table, title = _pick(chosen, command.table, title), {}, f"{title} {chosen}"
            else:
                command = command.own
        with _defined_flags(command) as own_flags:
            before_separator = arguments[: arguments.index("--")] if "--" in arguments else arguments
            if any(argument in ("-h", "--help") for argument in before_separator):
                print(_describe_flags(title, command, own_flags, table))
                return 0
            status = command.run(_parse_flags(title, rewrite_overrides(arguments), own_flags))
            sys.stdout.flush()  # a closed pipe shows here, where it is caught
            return status
    except WamjaxError as error:
        return _fail(title, str(error), error.exit_status)
    except KeyboardInterrupt:
        return _fail(title, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away (`wamjax data inspect DIR | head`). Python would complain once more
        # when it flushes at exit, so the descriptor is pointed at nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _pick(name: str, table: Mapping[str, Command | Verb], title: str) -> Command:
    """Returns the entry ``name`` of a verb's table of subcommands."""
    if name not in table:
        nearest = nearest_name(name, table)
        hint = f"did you mean {nearest}?" if nearest else f"expected one of {', '.join(table)}"
        raise ConfigError(f"{name!r} is not a subcommand of {title}; {hint}")
    return load_subcommand(table[name])


@contextmanager
def _defined_flags(command: Command) -> Iterator[list[str]]:
    """Defines the command's flags and yields their names; removes them at the end, so that a process may run many."""
    known = set(flags.FLAGS)
    command.define_flags()
    own = [name for name in flags.FLAGS if name not in known]
    try:
        yield own
    finally:
        for name in own:
            delattr(flags.FLAGS, name)


def _parse_flags(title: str, arguments: list[str], own_flags: Sequence[str]) -> list[str]:
    """Parses ``arguments`` into absl's flags and returns what is positional.

    Raises:
      ConfigError: A flag is unknown (names the nearest), lacks its value, or has one of another type.
    """
    try:
        return flags.FLAGS([title, *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        if error.flagname == OVERRIDE_FLAG:
            raise ConfigError(f"{title} takes no --config.KEY: it reads the work directory's configuration") from error
        nearest = nearest_name(error.flagname, own_flags)
        hint = f"did you mean --{nearest}?" if nearest else f"see {title} --help"
        raise ConfigError(f"unknown flag --{error.flagname}; {hint}") from error
    except flags.IllegalFlagValueError as error:
        missing = [name for name in own_flags if flags.FLAGS[name].value is None and f"--{name}=None:" in str(error)]
        if missing:
            raise ConfigError(f"missing --{' and --'.join(missing)} (see {title} --help)") from error
        message = " ".join(str(error).split()).removeprefix("flag ")
        raise ConfigError(f"{message} (see {title} --help)") from error
    except flags.Error as error:
        message = " ".join(str(error).split()).removeprefix("flag ")
        raise ConfigError(f"{message} (see {title} --help)") from error


def _describe_table(title: str, summaries: Mapping[str, str]) -> str:
    """Returns the help text of a table of commands."""
    rows = [f"  {name:<12}{summary}" for name, summary in summaries.items()]
    usage = f"usage: {title} COMMAND [--flag=value ...]"
    return "\n".join([usage, "", "commands:", *rows, "", f"{title} COMMAND --help says more."])


def _describe_flags(title: str, command: Command, own_flags: Sequence[str], table: Mapping[str, str]) -> str:
    """Returns the help text of one command: what it does, its subcommands if it has any, and its own flags."""
    lines = [f"{title}: {command.summary}", "", command.description.strip(), ""]
    if table:
        lines += ["subcommands:", *(f"  {name:<12}{summary}" for name, summary in table.items()), ""]
    lines.append("flags:")
    for name in sorted(set(own_flags) - {OVERRIDE_FLAG}):
        flag = flags.FLAGS[name]
        default = flag.default_as_str if isinstance(flag.default, list) else flag.default
        lines.append(f"  --{name}" + ("" if flag.default in (None, [], "") else f" (default {default})"))
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
