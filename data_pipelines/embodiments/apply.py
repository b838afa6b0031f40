"""What an ``Embodiment`` decides of a run, and whether a dataset is the one it describes.

Owns the settings that follow from a specification, and the refusals. A dataset that lacks what a specification names
is refused by name; only a view that is declared optional may be missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable

from data_pipelines.embodiments.spec import Embodiment, load_embodiment
from data_pipelines.sources.source import Source
from wamjax.config.schema import DataConfig, RunConfig
from wamjax.errors import ConfigError, DataError


def apply_embodiment(config: RunConfig) -> RunConfig:
    """Returns ``config`` with what follows from ``config.data.embodiment``; itself where that is empty.

    Raises:
      ConfigError: The specification is wrong, or a key of ``config.data`` that it decides is set to something else.
    """
    if not config.data.embodiment:
        return config
    spec = load_embodiment(config.data.embodiment)
    wanted = {
        "canvas": spec.canvas,
        "views": spec.placements,
        "frame_stride": spec.frame_stride,
        "normalisation": spec.normalisation,
    }
    defaults = {field.name: field.default for field in dataclasses.fields(DataConfig)}
    for name, value in wanted.items():
        found = getattr(config.data, name)
        if found not in (defaults[name], value):
            raise ConfigError(
                f"config.data.{name}={found!r} and embodiment {spec.name} has {value!r}: leave the key at its "
                "default, or name another specification in config.data.embodiment"
            )
    for name in ("state_key", "action_key"):
        if getattr(config.data, name) != defaults[name]:
            raise ConfigError(
                f"config.data.{name}={getattr(config.data, name)!r}, and embodiment {spec.name} says which features "
                "are read: leave the key at its default"
            )
    for name, fields in (("state_dim", spec.states), ("action_dim", spec.actions)):
        needed = 1 + max((slot for field in fields for slot in field.slots), default=-1)
        if getattr(config.data, name) < needed:
            raise ConfigError(
                f"config.data.{name}={getattr(config.data, name)} has no room for the {needed} slots of embodiment "
                f"{spec.name}"
            )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **wanted))


def fingerprint(spec: Embodiment) -> str:
    """Returns a hash of all that decides a sample (16 hex digits): not of the name and the sources cited."""
    content = {key: value for key, value in dataclasses.asdict(spec).items() if key not in ("name", "source")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def optional_cameras(config: DataConfig) -> tuple[str, ...]:
    """Returns the cameras of ``config.views`` that a dataset may lack."""
    if not config.embodiment:
        return ()
    return tuple(dict.fromkeys(v.camera for v in load_embodiment(config.embodiment).views if v.optional))


def prompt_writer(config: DataConfig) -> Callable[[str], str]:
    """Returns the function from a dataset's task to what the model is told; no task stays no task."""
    if not config.embodiment:
        return lambda task: task
    template = load_embodiment(config.embodiment).prompt_template
    return lambda task: template.replace("{task}", task) if task else ""


def check_dataset(spec: Embodiment, source: Source) -> None:
    """Compares a specification with the dataset it is said to describe; reads one episode's columns.

    Raises:
      DataError: The rate or the number of dims of a feature is another one.
    """
    if spec.rate_hz and source.fps is not None and source.fps != spec.rate_hz:
        raise DataError(
            f"dataset {source.path} has {source.fps:g} steps per second, embodiment {spec.name} says "
            f"rate_hz={spec.rate_hz:g}: it describes another dataset; name another one in config.data.embodiment"
        )
    broken = source.find_broken()
    usable = next((episode.index for episode in source.episodes if episode.index not in broken), None)
    if usable is None:
        return
    fields = (*spec.states, *spec.actions)
    for key in sorted({field.key for field in fields}):
        dims = source.column(key, usable).shape[1]
        described = {field.first + dim for field in fields if field.key == key for dim in range(field.num_dims)}
        described |= {unused.first + dim for unused in spec.unused if unused.key == key for dim in range(unused.count)}
        if described != set(range(dims)):
            beyond, missing = sorted(described - set(range(dims))), sorted(set(range(dims)) - described)
            what = f"describes dims {beyond} it does not have" if beyond else f"leaves dims {missing} undescribed"
            raise DataError(f"feature {key!r} of {source.path} has {dims} dims; embodiment {spec.name} {what}")
