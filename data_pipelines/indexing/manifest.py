"""``index.json``: what an index was made from and with, and whether a run may use it.

Owns the fingerprints and the refusals. An index belongs to one dataset (content), one set of settings that decide which
windows there are (``index_settings``) and one version of its own format.

A dataset is recognised as git recognises files: while names, sizes and modification times of all its files are as they
were, nothing is read; where one of them differs, the content is hashed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.embodiments.apply import optional_cameras
from data_pipelines.filters import data_columns, state_keys
from data_pipelines.normalisation import write_json
from data_pipelines.sources.remote import RemotePath, list_remote
from wamjax.config.buckets import BucketsConfig
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import DataConfig, RunConfig
from wamjax.config.sources import AugmentationConfig
from wamjax.errors import ConfigError, DataError

MANIFEST_FILE = "index.json"
# Raised whenever other windows come out of the same dataset and settings, or the files of an index change.
VERSION = 2
_BLOCK = "steps of a block (config.layout.frames_per_block x config.data.frame_stride)"
_WINDOW = "steps of a window (config.layout.num_blocks blocks)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """What an index was made from.

    Attributes:
      dataset: ``path``, ``format``, ``fps``, ``fingerprint`` of the content, ``stamp`` of the files, ``cameras`` and
        ``columns`` that were looked at, ``features`` (dtype and shape by name), ``tasks`` in the dataset's order.
      settings: See ``index_settings``.
      counts: ``episodes`` declared, ``steps`` of those read, ``episodes`` and ``windows`` by split, ``idle_windows``
        that are left out, and ``tasks`` as ``EpisodeIndex.task_episodes``.
      quarantined: Reason by episode index.
      unwanted: Reason by episode index.
      too_short: Length by episode index.
      version: Of the format.
    """

    dataset: dict[str, Any]
    settings: dict[str, Any]
    counts: dict[str, Any]
    quarantined: dict[int, str]
    unwanted: dict[int, str]
    too_short: dict[int, int]
    version: int = VERSION

    @property
    def fingerprint(self) -> str:
        """Hash of dataset, settings and version (16 hex digits)."""
        return index_fingerprint(self.dataset["fingerprint"], self.settings, self.version)

    def save(self, folder: Path) -> None:
        """Writes the manifest of ``folder``, whole or not at all."""
        write_json(folder / MANIFEST_FILE, {"fingerprint": self.fingerprint, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> IndexManifest:
        """Reads the manifest of ``folder``.

        Raises:
          DataError: There is none, it is damaged, or of another version.
        """
        path = folder / MANIFEST_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(
                f"{folder} has no {MANIFEST_FILE} (config.data.index): expected a folder that wamjax data index "
                "completed"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        try:
            if content["version"] != VERSION:
                raise DataError(
                    f"{path} has format version {content['version']}, this wamjax reads {VERSION}: make it again with "
                    "wamjax data index"
                )
            del content["fingerprint"]
            for name in ("quarantined", "unwanted", "too_short"):
                content[name] = {int(index): value for index, value in content[name].items()}
            return cls(**content)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path} is damaged: {type(error).__name__} {error}") from error


def index_settings(config: RunConfig) -> dict[str, Any]:
    """Returns what of ``config`` the windows depend on, beside the dataset, by the words of a message.

    Cameras and columns are not among them: an index may hold more of them than a run reads.
    """
    geometry, data = derive_geometry(config), config.data
    has_idle_filter = data.filters.max_idle < 1
    values = {
        _BLOCK: geometry.steps_per_block,
        _WINDOW: geometry.window_steps if has_idle_filter else None,
        "features of the state (config.data.state_key)": list(state_keys(data)) if has_idle_filter else None,
    }
    for name in ("window_stride", "validation_fraction", "split_seed", "broken_budget"):
        values[f"config.data.{name}"] = getattr(data, name)
    for field in dataclasses.fields(data.filters):
        values[f"config.data.filters.{field.name}"] = getattr(data.filters, field.name)
    return values


def index_fingerprint(dataset: str, settings: dict[str, Any], version: int = VERSION) -> str:
    """Returns the hash of an index (16 hex digits) over the dataset's fingerprint, settings and version."""
    content = json.dumps([version, dataset, settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def folder_stamp(path: Path) -> str:
    """Returns a hash of names, sizes and modification times of all files of a folder (16 hex digits)."""
    digest = hashlib.sha256()
    files = list_remote(path) if isinstance(path, RemotePath) else _list_files(str(path), "")
    for name, size, time_ns in sorted(files):
        digest.update(f"{name}\0{size}\0{time_ns}\0".encode())
    return digest.hexdigest()[:16]


def _list_files(folder: str, prefix: str) -> Iterator[tuple[str, int, int]]:
    """Yields name within the dataset, size and modification time of every file below ``folder``."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _list_files(entry.path, f"{prefix}{entry.name}/")
            else:
                status = entry.stat()
                yield f"{prefix}{entry.name}", status.st_size, status.st_mtime_ns


def camera_features(config: DataConfig) -> tuple[str, ...]:
    """Returns the cameras of ``config.views``, each once."""
    return tuple(dict.fromkeys(key for key, *_ in config.views))


def check_settings(found: IndexManifest, config: RunConfig, folder: Path) -> None:
    """Raises ``ConfigError`` unless ``config`` reads the windows of the index in ``folder``; names the difference."""
    for name, value in index_settings(config).items():
        if found.settings.get(name) != value:
            raise ConfigError(
                f"index {folder} was made with {name}={found.settings.get(name)!r} and this run has {value!r}: go back "
                "to that, or make another with wamjax data index and name it in config.data.index"
            )
    lacked = [key for key in optional_cameras(config.data) if key not in found.dataset["features"]]
    cameras = [key for key in camera_features(config.data) if key not in lacked]
    wanted = {"camera": (cameras, "cameras"), "feature": (data_columns(config.data), "columns")}
    for kind, (names, key) in wanted.items():
        missing = [name for name in names if name not in found.dataset[key]]
        if missing:
            raise ConfigError(
                f"index {folder} does not hold {kind} {missing[0]!r}, only {', '.join(found.dataset[key]) or 'none'}: "
                "make another with wamjax data index and name it in config.data.index"
            )


def normalisation_file(config: RunConfig, vectors: str) -> str:
    """Returns the name under which an index keeps the scales of ``config`` and of the vectors of that fingerprint.

    Named by every key that is not known to leave them alone, so that a key that is added later is never overlooked.
    """
    neutral = {
        "path": "",
        "latents": "",
        "index": "",
        "shuffle_seed": 0,
        "augmentation": AugmentationConfig(),
        "buckets": BucketsConfig(),
        "num_threads": 1,
        "prefetch": 0,
        "decoded_frames_mib": 0,
    }
    parts = [dataclasses.replace(config.data, **neutral), config.layout]
    content = json.dumps([vectors, *(dataclasses.asdict(part) for part in parts)], sort_keys=True)
    return f"normalisation-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
