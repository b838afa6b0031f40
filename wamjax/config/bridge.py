"""Between the typed configuration and its edges: ``ConfigDict``, command-line text, JSON.

Owns every conversion to and from ``RunConfig``; each key, type and value is checked here once, so that code below
never asks again. Does not read files or flags (``launch``) and derives no sizes (``config.geometry``).

A key that is absent takes the default of the schema: that is what a dataclass means by a default, and it lets a run
recorded before a knob existed be read after it was added. A key that the schema does not have is always refused.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from ml_collections import config_dict

from wamjax.config.schema import RunConfig
from wamjax.config.validation import check_values
from wamjax.errors import ConfigError

_TRUE = frozenset({"true", "1", "yes"})
_FALSE = frozenset({"false", "0", "no"})


def to_config_dict(config: RunConfig) -> config_dict.ConfigDict:
    """Returns a locked ``ConfigDict`` with the keys and values of ``config``: new keys and other types are refused."""
    return config_dict.ConfigDict(dataclasses.asdict(config)).lock()


def from_config_dict(values: config_dict.ConfigDict | Mapping[str, Any]) -> RunConfig:
    """Returns the ``RunConfig`` that ``values`` describe, every key, type and value checked.

    Args:
      values: Nested mapping with the keys of ``RunConfig``; lists are taken for tuples and whole numbers for floats
        (JSON has no others), but a bool is never taken for a number.

    Raises:
      ConfigError: A key is unknown (names the nearest one), or a value has another type or lies outside its range.
    """
    nested = values.to_dict() if isinstance(values, config_dict.ConfigDict) else dict(values)
    config = _build(RunConfig, nested, "config")
    check_values(config)
    return config


def to_json(config: RunConfig) -> str:
    """Returns ``config`` as indented JSON with sorted keys, equal for equal configurations."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def from_json(text: str) -> RunConfig:
    """Returns the ``RunConfig`` written by ``to_json``.

    Raises:
      ConfigError: The text is not JSON, or not a configuration (see ``from_config_dict``).
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"configuration is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"configuration is a JSON {type(values).__name__}; expected an object with sections")
    return from_config_dict(values)


def diff_configs(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """Returns ``(dotted key, old value, new value)`` of every field in which two configurations differ.

    Keys are relative to the configuration (``train.num_steps``) and sorted.
    """
    before, after = dict(iterate_fields(old)), dict(iterate_fields(new))
    # A section that may be None is one field or many.
    keys = sorted(before.keys() | after.keys())
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def iterate_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ``(dotted key, value)`` of every leaf field of a nested configuration dataclass."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from iterate_fields(value, f"{prefix}{field.name}.")
        elif isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            for position, item in enumerate(value):
                yield from iterate_fields(item, f"{prefix}{field.name}[{position}].")
        else:
            yield f"{prefix}{field.name}", value


def apply_overrides(config: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """Returns ``config`` with command-line overrides applied in order (the last one wins).

    Args:
      config: Where the overrides start from.
      overrides: ``dotted.key=value`` each, the value as typed on a command line. Tuples are written ``4,1`` or
        ``(4, 1)``, an empty tuple ``()``.

    Raises:
      ConfigError: The key is unknown or is a section, or the value cannot be read as the field's type.
    """
    nested = dataclasses.asdict(config)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"config.{key} has no value; write --config.{key}=VALUE")
        kind, holder = _find_field(key, nested)
        holder[key.rpartition(".")[2]] = _parse(kind, text, f"config.{key}")
    return from_config_dict(nested)


def _find_field(key: str, nested: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the type of the field ``key`` and the innermost mapping of ``nested`` that holds it."""
    kind: Any = RunConfig
    holder = nested
    path = "config"
    for depth, name in enumerate(parts := key.split(".")):
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(f"{path} is a value, not a section, so it has no key {name!r}")
        hints = typing.get_type_hints(kind)
        if name not in hints:
            raise ConfigError(_unknown_key(name, hints, path))
        kind, path = _section_or_kind(hints[name]), f"{path}.{name}"
        if depth < len(parts) - 1 and dataclasses.is_dataclass(kind):
            if holder[name] is None:
                raise ConfigError(
                    f"{path} is none here, so {path}.{parts[depth + 1]} cannot be set; set it in the file"
                )
            holder = holder[name]
    if dataclasses.is_dataclass(kind):
        raise ConfigError(f"{path} is a section; set one of its keys: {', '.join(typing.get_type_hints(kind))}")
    return kind, holder


def _section_or_kind(kind: Any) -> Any:
    """Returns the section of an annotation ``Section | None``, any other annotation as it is."""
    sections = [option for option in typing.get_args(kind) if dataclasses.is_dataclass(option)]
    return sections[0] if sections and typing.get_origin(kind) in (typing.Union, types.UnionType) else kind


def _build(kind: Any, value: Any, path: str) -> Any:
    """Returns ``value`` as an instance of the annotation ``kind``, or raises ``ConfigError`` naming ``path``."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _build_section(typing.cast("type", kind), value, path)
    if origin is Literal:
        choices = typing.get_args(kind)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise ConfigError(_not_a_choice(value, choices, path))
        return value
    if origin is tuple:
        return _build_tuple(typing.get_args(kind), value, path)
    if origin in (typing.Union, types.UnionType):
        section = _section_or_kind(kind)
        if isinstance(value, Mapping) and section is not kind:
            return _build_section(section, value, path)  # its own message, not one about alternatives
        return _build_optional(typing.get_args(kind), value, path)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # not isinstance: True must not pass for 1
        raise ConfigError(f"{path} = {value!r} is {_describe_value(value)}; expected {_describe(kind)}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{path} = {value} is not finite; expected a number")
    return value


def _build_section(section: type, value: Any, path: str) -> Any:
    """Returns the dataclass ``section`` built from the mapping ``value``."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} = {value!r} is {_describe_value(value)}; expected a section with keys")
    hints = typing.get_type_hints(section)
    for name in value:
        if name not in hints:
            raise ConfigError(_unknown_key(name, hints, path))
    return section(**{name: _build(hints[name], item, f"{path}.{name}") for name, item in value.items()})


def _build_tuple(kinds: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    """Returns ``value`` as a tuple whose entries have the types ``kinds`` (``(X, ...)`` for any number of X)."""
    if not isinstance(value, tuple | list):
        raise ConfigError(f"{path} = {value!r} is {_describe_value(value)}; expected {_describe(tuple, kinds)}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise ConfigError(f"{path} = {tuple(value)!r} has {len(value)} entries; expected {len(kinds)}")
    return tuple(_build(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _build_optional(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    """Returns ``value`` as the first of several types that takes it."""
    for kind in kinds:
        if kind is type(None):
            if value is None:
                return None
            continue
        try:
            return _build(kind, value, path)
        except ConfigError:
            continue
    expected = " or ".join(_describe(kind) for kind in kinds)
    raise ConfigError(f"{path} = {value!r} is {_describe_value(value)}; expected {expected}")


def _parse(kind: Any, text: str, path: str) -> Any:
    """Returns command-line ``text`` as a value of ``kind``; its range is checked later, by ``from_config_dict``."""
    origin = typing.get_origin(kind)
    if kind is str:
        return text
    if kind is bool:
        if (lowered := text.lower()) in _TRUE | _FALSE:
            return lowered in _TRUE
    elif kind in (int, float):
        try:
            return kind(text)
        except ValueError as error:
            raise ConfigError(f"{path} = {text!r} is not {_describe(kind)}") from error
    elif origin is Literal:
        choices = typing.get_args(kind)
        for choice in choices:
            if text == str(choice):
                return choice
        raise ConfigError(_not_a_choice(text, choices, path))
    elif origin is tuple:
        return _parse_tuple(typing.get_args(kind), text, path)
    elif origin in (typing.Union, types.UnionType):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if text.lower() == "none" else _parse(inner[0], text, path)
    raise ConfigError(f"{path} = {text!r} is not {_describe(kind)}")


def _parse_tuple(kinds: tuple[Any, ...], text: str, path: str) -> Any:
    """Returns ``4,1``, ``(4, 1)`` or ``reach-v3,door-v3`` as a tuple."""
    stripped = text.strip()
    if stripped.startswith(("(", "[")):
        try:
            return ast.literal_eval(stripped)
        except (ValueError, SyntaxError) as error:
            raise ConfigError(f"{path} = {text!r} cannot be read as {_describe(tuple, kinds)}") from error
    if not stripped:
        return ()
    items = [item.strip() for item in stripped.split(",") if item.strip()]
    is_variadic = len(kinds) == 2 and kinds[1] is Ellipsis
    item_kinds = (kinds[0],) * len(items) if is_variadic else kinds
    if len(items) != len(item_kinds):
        raise ConfigError(f"{path} = {text!r} has {len(items)} entries; expected {len(item_kinds)}")
    return tuple(
        _parse(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(item_kinds, items, strict=True))
    )


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """Returns the entry of ``valid`` most like ``name``, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return matches[0] if matches else None


def _unknown_key(name: str, hints: Mapping[str, Any], path: str) -> str:
    """Returns the message for a key that ``path`` does not have, naming the nearest one it has."""
    nearest = nearest_name(name, hints)
    if nearest is None:
        elsewhere = [key for key, _ in iterate_fields(RunConfig()) if key.rpartition(".")[2] == name]
        nearest = None if not elsewhere else f"config.{elsewhere[0]}"
    else:
        nearest = f"{path}.{nearest}"
    hint = f"did you mean {nearest}?" if nearest else f"its keys are {', '.join(hints)}"
    return f"{path}.{name} is not a configuration key; {hint}"


def _not_a_choice(value: Any, choices: tuple[Any, ...], path: str) -> str:
    """Returns the message for a value outside a fixed set of choices."""
    nearest = nearest_name(str(value), [str(choice) for choice in choices])
    hint = f" (did you mean {nearest}?)" if nearest else ""
    return f"{path} = {value!r} is not one of {', '.join(map(str, choices))}{hint}"


def _describe_value(value: Any) -> str:
    """Returns the kind of ``value`` as a noun with its article."""
    return "None" if value is None else _describe(type(value))


def _describe(kind: Any, entries: tuple[Any, ...] = ()) -> str:
    """Returns an annotation in words: ``a whole number``, ``a tuple of 2``."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list"}
    if kind in words:
        return words[kind]
    if kind is tuple or typing.get_origin(kind) is tuple:
        entries = entries or typing.get_args(kind)
        is_variadic = len(entries) == 2 and entries[1] is Ellipsis
        return "a tuple" if is_variadic or not entries else f"a tuple of {len(entries)}"
    if kind is type(None):
        return "none"
    return f"a {getattr(kind, '__name__', str(kind))}"
