"""The ``--config`` flag: an experiment file and the overrides on the command line become one ``RunConfig``.

Owns running an experiment file and telling the user where it failed. Does not know any verb.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_dict

from data_pipelines.embodiments.apply import apply_embodiment
from data_pipelines.mixtures.settings import resolve_mixture, source_config
from wamjax.config import bridge
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError

OVERRIDE_FLAG = "config_override"
_OVERRIDE_PREFIX = "--config."


def define_config_flag(*, required: bool = True) -> None:
    """Defines ``--config``, and the flag that ``--config.a.b=v`` becomes (see ``rewrite_overrides``)."""
    flags.DEFINE_string(
        "config",
        None,
        "Experiment file defining get_config(), such as experiments/quickstart.py; FILE:TEXT passes TEXT to it. "
        "Any key is overridden by --config.SECTION.KEY=VALUE (keys: wamjax/config/schema.py).",
        required=required,
    )
    define_override_flag()


def define_override_flag() -> None:
    """Defines the flag that ``--config.a.b=v`` becomes, for verbs whose configuration comes from a work directory."""
    flags.DEFINE_multi_string(OVERRIDE_FLAG, [], "One override, KEY=VALUE; the same as --config.KEY=VALUE.")


def define_source_flag() -> None:
    """Defines ``--source``, for verbs that take one dataset at a time (see ``select_source``)."""
    flags.DEFINE_string("source", None, "Which source of config.data.mixture, by name.")


def select_source(config: RunConfig) -> RunConfig:
    """Returns the configuration of the source that ``--source`` names; ``config`` where it is no mixture.

    Raises:
      ConfigError: The mixture has no such source, none is named, or one is and there is no mixture.
    """
    name, sources = flags.FLAGS.source, config.data.mixture.sources
    if not sources and name is None:
        return config
    found = [source for source in sources if source.name == name]
    if not found:
        known = ", ".join(source.name for source in sources)
        expected = f"expected one of {known}" if known else "config.data.mixture has no sources; leave it away"
        raise ConfigError(f"--source={name}: one dataset at a time; {expected}")
    return source_config(config, found[0])


def rewrite_overrides(argv: Sequence[str]) -> list[str]:
    """Returns ``argv`` with ``--config.a.b=v`` (or ``--config.a.b v``) written as ``--config_override=a.b=v``.

    Absl must know a flag's name beforehand; the keys of a configuration are known only to its schema.

    Raises:
      ConfigError: An override has no value.
    """
    rewritten: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*rewritten, argument, *rest]
        if argument.startswith(_OVERRIDE_PREFIX):
            key, equals, value = argument.removeprefix(_OVERRIDE_PREFIX).partition("=")
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise ConfigError(f"config.{key} has no value; write --config.{key}=VALUE")
                value = rest.pop(0)
            argument = f"--{OVERRIDE_FLAG}={key}={value}"
        rewritten.append(argument)
    return rewritten


def config_from_flags() -> RunConfig:
    """Returns the configuration named by ``--config`` with the overrides of the command line.

    Raises:
      ConfigError: See ``load_experiment``, ``wamjax.config.bridge.apply_overrides``, ``apply_embodiment`` and
        ``resolve_mixture``.
    """
    config = load_experiment(flags.FLAGS.config)
    config = apply_embodiment(bridge.apply_overrides(config, flags.FLAGS[OVERRIDE_FLAG].value or ()))
    return resolve_mixture(config)


def load_experiment(name: str) -> RunConfig:
    """Returns the configuration that the experiment file's ``get_config()`` gives.

    Args:
      name: Path of a Python file, or ``path:text`` to call ``get_config(text)``.

    Raises:
      ConfigError: The file is missing, raises (the message names the line), defines no ``get_config``, or
        ``get_config`` returns something else than a configuration.
    """
    path, argument = _split_argument(name)
    if not path.is_file():
        raise ConfigError(f"--config={name}: no file {path}; expected an experiment such as experiments/quickstart.py")
    module = _run(path, lambda: _execute(path))
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{path} defines no get_config(); an experiment returns its configuration from one")
    arguments = () if argument is None else (argument,)
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        raise ConfigError(f"--config={name}: get_config() of {path} does not take that: {error}") from error
    result = _run(path, lambda: get_config(*arguments))
    if isinstance(result, RunConfig):
        result = bridge.to_config_dict(result)
    if not isinstance(result, config_dict.ConfigDict):
        raise ConfigError(f"get_config() of {path} returned {type(result).__name__}; expected a ConfigDict")
    return bridge.from_config_dict(result)


def load_members(name: str) -> dict[str, dict[str, float]]:
    """Returns the runs of each member of an experiment file, and what share of the member's budget each has.

    ``MEMBERS`` are the texts that its ``get_config(text)`` takes, each one run; a member of two has its second in
    ``SECOND_STAGES``: {member: (text, share of the budget)}.

    Raises:
      ConfigError: The file is missing, raises, or has none, or a share is none.
    """
    path, _ = _split_argument(name)
    if not path.is_file():
        raise ConfigError(f"--config={name}: no file {path}; expected one such as experiments/sweeps/formulations.py")
    module = _run(path, lambda: _execute(path))
    members, seconds = getattr(module, "MEMBERS", ()), getattr(module, "SECOND_STAGES", {})
    if not members:
        raise ConfigError(f"{path} has no MEMBERS to compare; expected the names that its get_config(name) takes")
    runs: dict[str, dict[str, float]] = {member: {member: 1.0} for member in members}
    for member, stage in seconds.items():
        if not _is_second_stage(member, stage, runs):
            raise ConfigError(
                f"{path}: SECOND_STAGES has {member!r}: {stage!r}; expected a name of MEMBERS, and a pair: the name of "
                "another run, and a share of the budget between 0 and 1"
            )
        second, share = stage
        runs[member] = {member: 1.0 - share, second: share}
    return runs


def _is_second_stage(member: str, stage: object, members: Container[str]) -> bool:
    if member not in members or not isinstance(stage, tuple) or len(stage) != 2:
        return False
    second, share = stage
    return isinstance(second, str) and second != member and isinstance(share, float) and 0 < share < 1


def _split_argument(name: str) -> tuple[Path, str | None]:
    """Splits ``file.py:text``; a colon elsewhere (a drive letter) belongs to the path."""
    head, separator, tail = name.partition(".py:")
    return (Path(f"{head}.py"), tail) if separator else (Path(name), None)


def _execute(path: Path) -> ModuleType:
    """Runs ``path`` as a module of its own and returns it."""
    spec = importlib.util.spec_from_file_location(f"wamjax_experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; expected an experiment such as experiments/quickstart.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles inside the file look themselves up here
    spec.loader.exec_module(module)
    return module


def _run(path: Path, call: Callable[[], Any]) -> Any:
    """Returns ``call()``; whatever the experiment file raises becomes one line with the file's own line number."""
    try:
        return call()
    except ConfigError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno}: SyntaxError: {error.msg}") from error
    except Exception as error:  # the file is the user's: anything may come out of it
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if os.path.realpath(frame.filename) == os.path.realpath(path)]
        where = f", line {lines[-1]}" if lines else ""
        message = " ".join(str(error).split())
        raise ConfigError(f"{path}{where}: {type(error).__name__}: {message}") from error
