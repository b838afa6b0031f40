"""What a folder of cached latents holds, and what it was made from.

Owns the names of the folder's files, the settings that the content depends on, and the refusal of a folder that was
made with others: a causal autoencoder's first latent depends on where the window starts, so nothing may be taken for
nearly the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.embodiments.apply import fingerprint
from data_pipelines.embodiments.spec import load_embodiment
from data_pipelines.index import EpisodeIndex
from data_pipelines.normalisation import write_json
from wamjax.batch import batch_spec
from wamjax.config import bridge
from wamjax.config.schema import RunConfig
from wamjax.config.sources import FilterConfig
from wamjax.errors import ConfigError, DataError

MANIFEST_FILE = "latents.json"
TEXT_FOLDER = "text"
VERSION = 1
TRAIN, VALIDATION = "train", "validation"

# What of a run's configuration its windows and their encodings depend on, whatever the formulation.
_SETTINGS = (
    "clip.num_frames",
    "clip.height",
    "clip.width",
    "clip.stride",
    "clip.text_tokens",
    "data.canvas",
    "data.views",
    "data.frame_stride",
    "data.window_stride",
    "data.validation_fraction",
    "data.split_seed",
    "layout.formulation",
)
_ACTION_SETTINGS = (
    "data.state_key",
    "data.action_key",
    "data.normalisation",
    "layout.num_blocks",
    "layout.frames_per_block",
    "layout.actions_per_block",
    "layout.states_per_block",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One array of a record.

    Attributes:
      name: Field of ``WamBatch``.
      dtype: Its dtype, as NumPy and ml_dtypes name it.
      shape: Its shape, without the batch dim.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Windows of one split.

    Attributes:
      windows: How many there are.
      episodes: How many episodes they come from.
    """

    windows: int
    episodes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of a folder of cached latents.

    Attributes:
      version: Of the folder's format.
      dataset: Path, fingerprint, fps, episodes and steps of the dataset, and why episodes were left out.
      settings: Dotted keys of the configuration -> values that decide what a record holds.
      encoders: Hash of weights and configuration of each frozen encoder: ``vae``, ``text``, ``image``.
      fields: The arrays of a record, in the order of its bytes.
      splits: ``train`` and ``validation``.
      shard_windows: Windows of a shard; the last of a split may have fewer.
      prompts: Task strings; a record's ``prompt_id`` is a position here.
      made_with: Where the encoders of what is seen lay and how they ran, for who evaluates a run: ``vae``,
        ``image_encoder``, ``chunk_frames``, ``dtype``. Empty without encoders. No part of the fingerprint.
    """

    version: int = VERSION
    dataset: dict[str, Any]
    settings: dict[str, Any]
    encoders: dict[str, str]
    fields: tuple[Field, ...]
    splits: dict[str, Split]
    shard_windows: int
    prompts: tuple[str, ...]
    made_with: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of all that the records depend on. Where dataset and encoders lie is not part of it."""
        content = dataclasses.asdict(self)
        del content["dataset"]["path"], content["made_with"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def record_bytes(self) -> int:
        """Size of every record."""
        return sum(np.dtype(field.dtype).itemsize * int(np.prod(field.shape)) for field in self.fields)

    def shards(self, split: str) -> list[tuple[str, range]]:
        """Returns file name and windows of each shard of a split."""
        total, size = self.splits[split].windows, self.shard_windows
        count = -(-total // size)
        return [
            (f"{split}-{i:05d}-of-{count:05d}.array_record", range(i * size, min(total, (i + 1) * size)))
            for i in range(count)
        ]

    def save(self, folder: Path) -> None:
        """Writes the manifest of ``folder``, whole or not at all."""
        write_json(folder / MANIFEST_FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads the manifest of ``folder``.

        Raises:
          DataError: There is none, it is damaged, or of another version.
        """
        path = folder / MANIFEST_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f"{folder} has no {MANIFEST_FILE}; expected a folder made by wamjax data cache") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        try:
            if content["version"] != VERSION:
                raise DataError(f"{path} has version {content['version']}, this wamjax reads {VERSION}: make it again")
            fields = tuple(Field(**{**field, "shape": tuple(field["shape"])}) for field in content.pop("fields"))
            splits = {name: Split(**split) for name, split in content.pop("splits").items()}
            _check_made_with(path, content.get("made_with", {}))
            return cls(**{**content, "prompts": tuple(content["prompts"])}, fields=fields, splits=splits)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged: {type(error).__name__} {error}") from error


def _check_made_with(path: Path, made: object) -> None:
    texts, numbers = ("vae", "image_encoder", "dtype"), ("chunk_frames",)
    if not isinstance(made, dict):
        raise DataError(f"{path} is damaged: made_with is {made!r}; expected an object")
    for name, value in made.items():
        is_right = isinstance(value, str) if name in texts else value is None or type(value) is int
        if name not in (*texts, *numbers) or not is_right:
            raise DataError(
                f"{path} is damaged: made_with has {name}={value!r}; expected {', '.join(texts)} (texts) and "
                f"{', '.join(numbers)} (a number or null)"
            )


def describe(
    config: RunConfig,
    index: EpisodeIndex,
    *,
    dataset: Mapping[str, Any],
    encoders: Mapping[str, str],
    shard_windows: int,
    prompts: tuple[str, ...],
    made_with: Mapping[str, Any] | None = None,
) -> Manifest:
    """Returns the manifest of the latents that ``config`` reads, of the windows in ``index``."""
    return Manifest(
        dataset=dict(dataset),
        settings=cache_settings(config),
        encoders=dict(encoders),
        fields=record_fields(config),
        splits={
            TRAIN: Split(windows=len(index.train), episodes=len(index.train_episodes)),
            VALIDATION: Split(windows=len(index.validation), episodes=len(index.validation_episodes)),
        },
        shard_windows=shard_windows,
        prompts=prompts,
        made_with=dict(made_with or {}),
    )


def cache_settings(config: RunConfig) -> dict[str, Any]:
    """Returns what of ``config`` its latents depend on, by dotted key, in JSON types."""
    keys = _SETTINGS if config.layout.formulation == "video" else (*_SETTINGS, *_ACTION_SETTINGS)
    values = dict(bridge.iterate_fields(config))
    name = config.data.embodiment
    # What a specification says decides the records, not where it lies.
    settings: dict[str, Any] = {"data.embodiment": fingerprint(load_embodiment(name)) if name else ""}
    if config.data.filters != FilterConfig():  # they decide which windows there are
        settings["data.filters"] = dataclasses.asdict(config.data.filters)
    if config.data.buckets.sets:  # which windows go to one bucket depends on all of them
        settings["data.buckets.sets"] = [dataclasses.asdict(bucket) for bucket in config.data.buckets.sets]
        settings["data.buckets.upsample"] = config.data.buckets.upsample
    return json.loads(json.dumps(settings | {key: values[key] for key in keys}))


def record_fields(config: RunConfig) -> tuple[Field, ...]:
    """Returns the arrays of one record: those of a sample, with the prompt's row in place of its embedding.

    The widest dtypes come first, so that every array is aligned.
    """
    spec = dataclasses.replace(batch_spec(config, 1), text=None, prompt_id=jax.ShapeDtypeStruct((1,), np.int32))
    arrays = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    fields = [
        Field(name=name, dtype=np.dtype(array.dtype).name, shape=tuple(array.shape[1:]))
        for name, array in arrays.items()
        if array is not None
    ]
    return tuple(sorted(fields, key=lambda field: (-np.dtype(field.dtype).itemsize, field.name)))


def check_begun(found: Manifest, config: RunConfig, shard_windows: int, folder: Path) -> None:
    """Raises ``ConfigError`` where ``folder`` was begun with other settings: what is known before anything is read."""
    wanted = cache_settings(config)
    keys = sorted(found.settings.keys() | wanted.keys())
    pairs = [(f"config.{key}", found.settings.get(key), wanted.get(key)) for key in keys]
    pairs.append(("--shard_windows", found.shard_windows, shard_windows))
    pairs += [(f"record field {name}", a, b) for name, a, b in _different_fields(found.fields, record_fields(config))]
    _refuse_difference(pairs, folder)


def check_same(found: Manifest, wanted: Manifest, folder: Path) -> None:
    """Raises ``ConfigError`` unless the latents begun in ``folder`` are those of ``wanted``; names the difference."""
    pairs: list[tuple[str, Any, Any]] = [
        ("the dataset's fingerprint", found.dataset["fingerprint"], wanted.dataset["fingerprint"])
    ]
    kinds = sorted(found.encoders.keys() | wanted.encoders.keys())
    pairs += [(f"the fingerprint of the {k} encoder", found.encoders.get(k), wanted.encoders.get(k)) for k in kinds]
    pairs.append(("what is read of the dataset", found.fingerprint, wanted.fingerprint))
    _refuse_difference(pairs, folder)


def _refuse_difference(pairs: list[tuple[str, Any, Any]], folder: Path) -> None:
    for what, old, new in pairs:
        if old != new:
            raise ConfigError(
                f"--out={folder} holds latents made with other settings: {what} was {old!r} and is {new!r}; choose "
                "another --out, or go back to what it was"
            )


def check_readable(found: Manifest, config: RunConfig, folder: Path) -> None:
    """Raises ``ConfigError`` unless the latents of ``folder`` are what ``config`` reads; names the difference."""
    wanted = cache_settings(config)
    for key in sorted(found.settings.keys() | wanted.keys()):
        old, new = found.settings.get(key), wanted.get(key)
        if old != new:
            raise ConfigError(
                f"latents {folder} were made with config.{key}={old!r} and this run has {new!r}: "
                f"change config.{key}, or make others with wamjax data cache and name them in config.data.latents"
            )
    for name, old, new in _different_fields(found.fields, record_fields(config)):
        raise ConfigError(
            f"latents {folder} hold {name} as {old} and the model reads {new} (config.backbone, config.clip, "
            "config.data): they are of another model; name others in config.data.latents"
        )


def _different_fields(found: tuple[Field, ...], wanted: tuple[Field, ...]) -> list[tuple[str, str, str]]:
    """Returns (name, found, wanted) of each array that differs."""
    old, new = ({field.name: f"{field.dtype}{list(field.shape)}" for field in fields} for fields in (found, wanted))
    return [
        (name, old.get(name, "nothing"), new.get(name, "nothing"))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
