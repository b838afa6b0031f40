"""RLDS datasets (Open-X Embodiment, DROID) in TFRecord or ArrayRecord, without TensorFlow.

Owns the reading of the format: an episode is one record whose ``steps`` hold, under any nesting, numeric arrays
(columns, named by their path: ``observation/state``), encoded images (cameras) and the instruction. Opening decodes
every record once without its images, for lengths, tasks and columns; frames are decoded one by one when asked for.

The format records no frame rate. Rates are known for the datasets of ``CONTROL_RATE_HZ`` and None for the others.

Source of the format: google-research/rlds, README, "Dataset Format"; tensorflow/datasets 4.9.
"""

from __future__ import annotations

import collections
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.sources.parquet_images import ImageError, decode_image
from data_pipelines.sources.records import ArrayRecordFile, RecordError, RecordFile, TfRecordFile
from data_pipelines.sources.source import EpisodeRecord, Feature, OpenedSource, check_choice, first_line
from wamjax.errors import DataError

FEATURES_FILE, INFO_FILE = "features.json", "dataset_info.json"
# Names of the instruction in Open-X Embodiment sets (google-deepmind/open_x_embodiment, dataset schemas).
TASK_NAMES = ("language_instruction", "natural_language_instruction")
# Steps per second by the name in dataset_info.json.
CONTROL_RATE_HZ = {
    "droid": 15.0,  # Khazatsky et al. 2024, arXiv:2403.12945, section III
    "droid_100": 15.0,
    "bridge": 5.0,  # Walke et al. 2023, arXiv:2308.12952, section 3
    "bridge_dataset": 5.0,
    "fractal20220817_data": 3.0,  # Brohan et al. 2022, arXiv:2212.06817, section 5
}
MAX_KEPT_EPISODES = 2  # decoded records one thread keeps: the windows of a batch are of many episodes
_DECODE_ERRORS = (RecordError, ValueError, KeyError, TypeError, IndexError, OSError)


class RldsDataset(OpenedSource):
    """An RLDS folder, or one that holds a single version of it. Implements ``Source``."""

    def __init__(
        self,
        path: Path,
        *,
        cameras: Sequence[str] | None = None,
        optional_cameras: Sequence[str] = (),
        columns: Sequence[str] | None = None,
        keep_bytes: int = 0,
        num_threads: int = 1,
    ) -> None:
        """Opens the dataset.

        Args:
          path: The folder with features.json, or the one above it.
          cameras: Images that will be read; None for all.
          optional_cameras: Read as well where the dataset has them.
          columns: Numeric arrays that will be read; None for all floating-point ones.
          keep_bytes: Unused: decoded frames are not kept.
          num_threads: Unused: records are decoded by Python code.

        Raises:
          DataError: The metadata cannot be read, there is no episode, or a feature is missing.
        """
        del keep_bytes, num_threads
        super().__init__(path)
        self._local = threading.local()
        builder = _open_builder(path)
        self._name, self._decoder = str(builder.info.name), builder.info.features
        self._kind = str(builder.info.file_format.value)
        self._steps = _flatten(_step_features(path, self._decoder))
        self.features = {name: _describe(feature) for name, feature in self._steps.items()}
        vectors = [n for n, f in self.features.items() if f.dtype.startswith("float")]
        self._cameras, self.columns = check_choice(
            path,
            cameras=cameras,
            optional_cameras=optional_cameras,
            columns=columns,
            source=self,
            vectors=vectors,
        )
        self._places: list[tuple[str, RecordFile | None, int]] = []  # (file, its records, number of the record)
        episodes: list[EpisodeRecord] = []
        for name, records, number, problem in _list_records(builder, find_rlds(path)[0]):
            index = len(episodes)
            length, task = 0, ""
            self._places.append((name, records, number))
            if problem is None:
                try:
                    length, task = self._read_steps(index)
                except _DECODE_ERRORS as error:
                    problem = f"{name}: record {number} cannot be decoded: {first_line(error)}"
            if problem is not None:
                self._broken.note(index, problem)
            episodes.append(EpisodeRecord(index=index, length=length, task=task))
        if not any(episode.length for episode in episodes):
            reasons = list(self._broken.first_reasons().values()) or [f"{INFO_FILE} declares none"]
            raise DataError(f"dataset {path} has no episode: {reasons[0]}")
        self.episodes = tuple(episodes)

    @property
    def format(self) -> str:
        """``RLDS`` and the kind of its files."""
        return f"RLDS {self._kind}"

    @property
    def fps(self) -> float | None:
        """Steps per second, or None where ``CONTROL_RATE_HZ`` does not know the dataset."""
        return CONTROL_RATE_HZ.get(self._name)

    def frames(self, camera: str, episode: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Returns the camera's frames ``[len(steps), h, w, 3]`` at ascending, distinct ``steps`` of an episode.

        Raises:
          DataError: The record or an image cannot be read.
        """
        try:
            decoded = self._decode(episode)
            return np.stack([decode_image(_pick(decoded[int(step)], camera)) for step in steps])
        except (ImageError, *_DECODE_ERRORS) as error:
            place = f"{self._places[episode][0]}: {camera}: {first_line(error)}"
            raise DataError(f"dataset {self.path}: episode {episode}: {place}") from error

    def fingerprint(self) -> str:
        """Returns a hash of the features, the episodes and the column values (16 hex digits)."""
        digest = hashlib.sha256(repr((self.format, self._name, sorted(self.features.items()))).encode())
        for episode in self.episodes:
            digest.update(repr((episode, self._places[episode.index][0])).encode())
            for values in self._values.get(episode.index, {}).values():
                digest.update(values.tobytes())
        return digest.hexdigest()[:16]

    def _read_steps(self, index: int) -> tuple[int, str]:
        """Reads an episode's columns; returns its length and instruction."""
        steps = list(self._decode(index))
        columns = {
            key: np.array([np.asarray(_pick(step, key), np.float32).reshape(-1) for step in steps])
            for key in self.columns
        }
        self._values[index] = columns
        name = next((name for name in self._steps if name.rpartition("/")[2] in TASK_NAMES), None)
        text = _pick(steps[0], name) if name and steps else b""
        return len(steps), " ".join(text.decode("utf-8").split() if isinstance(text, bytes) else [])

    def _decode(self, index: int) -> Any:
        """Returns the steps of an episode, images still encoded; each thread keeps the last few."""
        from google.protobuf.message import DecodeError

        kept: collections.OrderedDict[int, Any] | None = getattr(self._local, "kept", None)
        if kept is None:
            kept = self._local.kept = collections.OrderedDict()
        if index not in kept:
            _, records, number = self._places[index]
            if records is None:
                raise RecordError("it could not be read when the dataset was opened")
            try:
                example = self._decoder.deserialize_example_np(
                    records.read(number), decoders={"steps": self._skip_images()}
                )
            except DecodeError as error:
                raise RecordError(first_line(error)) from error
            kept[index] = example["steps"]
            while len(kept) > MAX_KEPT_EPISODES:
                kept.popitem(last=False)
        kept.move_to_end(index)
        return kept[index]

    def _skip_images(self) -> dict[str, Any]:
        """Returns the decoders that leave images as bytes."""
        import tensorflow_datasets as tfds

        decoders: dict[str, Any] = {}
        for camera in self.cameras:
            *folders, name = camera.split("/")
            inner = decoders
            for folder in folders:
                inner = inner.setdefault(folder, {})
            inner[name] = tfds.decode.SkipDecoding()
        return decoders


def find_rlds(path: Path) -> list[Path]:
    """Returns the version folders of an RLDS dataset: ``path`` itself, or those directly in it."""
    return [
        folder
        for folder in [path, *sorted(child for child in path.iterdir() if child.is_dir())]
        if (folder / FEATURES_FILE).is_file() and (folder / INFO_FILE).is_file()
    ]


def _open_builder(path: Path) -> Any:
    """Opens the metadata.

    Raises:
      DataError: There are several versions, or the metadata cannot be read.
    """
    import tensorflow_datasets as tfds  # two seconds of start-up that datasets of other formats do not need

    folders = find_rlds(path)
    if len(folders) != 1:
        names = ", ".join(folder.name for folder in folders) or "none"
        raise DataError(f"dataset {path} holds versions {names}: name the folder of one of them (config.data.path)")
    try:
        # The package reads them by name: both copies, of a dataset elsewhere, lie in one folder.
        local = [Path(os.fspath(folders[0] / name)).parent for name in (FEATURES_FILE, INFO_FILE)]
        return tfds.builder_from_directory(local[0])
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, AssertionError) as error:
        raise DataError(f"dataset {path}: its metadata cannot be read: {first_line(error)}") from error


def _step_features(path: Path, features: Any) -> Any:
    """Returns the features of a step.

    Raises:
      DataError: The dataset is of another kind: its records have no steps.
    """
    import tensorflow_datasets as tfds

    is_record = isinstance(features, tfds.features.FeaturesDict) and "steps" in features
    steps = features["steps"] if is_record else None
    if not isinstance(steps, tfds.features.Dataset) or not isinstance(steps.feature, tfds.features.FeaturesDict):
        raise DataError(f"dataset {path} is a TFDS dataset without steps: expected RLDS episodes")
    return steps.feature


def _flatten(features: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested features by their path, in alphabetical order: the package's own changes between processes."""
    flat: dict[str, Any] = {}
    for name, feature in sorted(features.items()):
        flat |= _flatten(feature, f"{prefix}{name}/") if hasattr(feature, "items") else {f"{prefix}{name}": feature}
    return flat


def _describe(feature: Any) -> Feature:
    """Returns what one step has of a TFDS feature; depth images and sequences are arrays of their type."""
    import tensorflow_datasets as tfds

    sizes, np_dtype = tuple(feature.shape), feature.np_dtype
    shape = tuple(size or 0 for size in sizes)
    if isinstance(feature, tfds.features.Image) and shape[-1] == 3:
        return Feature(dtype="image", shape=shape)
    if isinstance(feature, tfds.features.Text):
        return Feature(dtype="string", shape=())
    dtype = np.dtype(np_dtype)
    is_numeric = dtype.kind in "fiub" and None not in sizes
    return Feature(dtype=str(dtype) if is_numeric else "string", shape=shape)


def _list_records(builder: Any, folder: Path) -> Iterator[tuple[str, RecordFile | None, int, str | None]]:
    """Yields ``(file, its records, number, problem)`` of every declared record; a problem stands for all of a file."""
    kind = TfRecordFile if builder.info.file_format.value == "tfrecord" else ArrayRecordFile
    for split in builder.info.splits.values():
        for file, declared in zip(split.filepaths, split.shard_lengths, strict=True):
            name = Path(file).name
            try:
                records = kind(folder / name)
            except (OSError, RecordError) as error:
                yield name, None, 0, f"{name} cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
                continue
            for number in range(len(records)):
                yield name, records, number, None
            if records.problem or len(records) != declared:
                found = f"{name} holds {len(records)} records, {INFO_FILE} declares {declared}"
                yield name, None, 0, found + (f": it {records.problem}" if records.problem else "")


def _pick(step: Any, name: str) -> Any:
    """Returns the value of a step under a path."""
    for part in name.split("/"):
        step = step[part]
    return step
