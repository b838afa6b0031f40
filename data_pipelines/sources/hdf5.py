"""LIBERO-style HDF5 (the layout of robomimic): one file per task, one group per demonstration, frames uncompressed.

Owns the reading of the format. ``data/demo_i/actions`` and numeric arrays under ``data/demo_i/obs`` are columns of
these names (``actions``, ``obs/ee_states``), ``uint8`` images under ``obs`` are cameras (``obs/agentview_rgb``). The
instruction is ``language_instruction`` of the attribute ``problem_info``, the rate ``control_freq`` of ``env_args``.

Frames are returned top row first: robosuite's ``opengl`` convention, which a file states in
``macros_image_convention``, stores the bottom row first. (Others turn such images by 180 degrees, which mirrors them.)

Source of the format: Lifelong-Robot-Learning/LIBERO, scripts/create_dataset.py; the convention:
ARISE-Initiative/robosuite, robosuite/macros.py (IMAGE_CONVENTION).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.sources.retry import retry_read
from data_pipelines.sources.source import EpisodeRecord, Feature, OpenedSource, check_choice, first_line
from wamjax.errors import DataError

HDF5_SUFFIXES = (".hdf5", ".h5")
ACTIONS = "actions"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Demo:
    """Where an episode lies: file within the dataset and group; whether rows are stored bottom first."""

    file: str
    group: str
    is_flipped: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FileInfo:
    """What the attributes of a file say."""

    task: str
    fps: float
    is_flipped: bool


class Hdf5Dataset(OpenedSource):
    """A folder tree of LIBERO-style HDF5 files. Implements ``Source``.

    Opening reads the attributes and shapes of every file and the asked-for columns. A file that cannot be read is one
    episode of length 0, because how many demonstrations it held nothing tells.
    """

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
          path: Its folder.
          cameras: Image arrays that will be read; None for all.
          optional_cameras: Read as well where the dataset has them.
          columns: Numeric arrays that will be read; None for all floating-point ones.
          keep_bytes: Unused: frames lie uncompressed in the files, and the operating system keeps those it read.
          num_threads: Unused: the HDF5 library reads on one thread at a time.

        Raises:
          DataError: There is no demonstration, no file can be read, two files run at different rates, or a feature
            is missing.
        """
        del keep_bytes, num_threads
        super().__init__(path)
        self._demos: list[_Demo] = []
        self._files: list[Path] = find_hdf5_files(path)
        episodes: list[EpisodeRecord] = []
        rates: dict[float, str] = {}
        for file in self._files:
            name = file.relative_to(path).as_posix()
            try:
                with _open(file) as opened:
                    info = _read_attributes(opened)
                    rates.setdefault(info.fps, name)
                    for group in sorted(opened["data"], key=_natural_order):
                        self._declare(opened["data"][group])
                        length = _length(opened["data"][group])
                        episodes.append(EpisodeRecord(index=len(episodes), length=length, task=info.task))
                        self._demos.append(_Demo(file=name, group=group, is_flipped=info.is_flipped))
            except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
                self._broken.note(len(episodes), f"{name} cannot be read: {first_line(error)}")
                episodes.append(EpisodeRecord(index=len(episodes), length=0, task=""))
                self._demos.append(_Demo(file=name, group="", is_flipped=False))
        if not rates or not self.features:
            reasons = list(self._broken.first_reasons().values()) or ["no file has a demonstration"]
            raise DataError(f"dataset {path} has no episode: {reasons[0]}")
        if len(rates) > 1:
            listed = ", ".join(f"{rate:g} in {name}" for rate, name in rates.items())
            raise DataError(f"dataset {path} has files of different control rates: {listed}; keep one rate in a folder")
        (self._fps,) = rates
        self.episodes = tuple(episodes)
        vectors = [n for n, f in self.features.items() if f.dtype.startswith("float")]
        self._cameras, self.columns = check_choice(
            path,
            cameras=cameras,
            optional_cameras=optional_cameras,
            columns=columns,
            source=self,
            vectors=vectors,
        )
        self._read_columns()

    @property
    def format(self) -> str:
        """Name of the format."""
        return "LIBERO HDF5"

    @property
    def fps(self) -> float:
        """Control rate in steps per second."""
        return self._fps

    def frames(self, camera: str, episode: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Returns the camera's frames ``[len(steps), h, w, 3]`` at ascending, distinct ``steps``, top row first.

        Raises:
          DataError: The file can no longer be read as it was when the dataset was opened.
        """
        demo = self._demos[episode]

        def read() -> npt.NDArray[np.uint8]:
            with _open(self.path / demo.file) as opened:
                return opened["data"][demo.group][camera][steps]

        try:
            frames = retry_read(read, f"dataset {self.path}: {demo.file}")
        except (OSError, RuntimeError, KeyError) as error:
            raise DataError(f"dataset {self.path}: episode {episode}: {demo.file}: {first_line(error)}") from error
        return np.ascontiguousarray(frames[:, ::-1]) if demo.is_flipped else frames

    def fingerprint(self) -> str:
        """Returns a hash of names, sizes, lengths, tasks and column values (16 hex digits)."""
        digest = hashlib.sha256(self.format.encode())
        for file in self._files:
            digest.update(f"{file.relative_to(self.path)}:{file.stat().st_size}".encode())
        for episode, demo in zip(self.episodes, self._demos, strict=True):
            digest.update(repr((demo, episode)).encode())
            for values in self._values.get(episode.index, {}).values():
                digest.update(values.tobytes())
        return digest.hexdigest()[:16]

    def _declare(self, demo: Any) -> None:
        """Adds the arrays of a demonstration to the features."""
        for name, array in _step_arrays(demo).items():
            is_image = array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3
            dtype = "image" if is_image else str(array.dtype)
            self.features.setdefault(name, Feature(dtype=dtype, shape=array.shape[1:]))

    def _read_columns(self) -> None:
        """Reads the asked-for columns; notes the demonstrations that lack an array or have one of another length."""
        for episode, demo in zip(self.episodes, self._demos, strict=True):
            if not demo.group:
                continue
            place = f"{demo.file}:data/{demo.group}"
            try:
                with _open(self.path / demo.file) as opened:
                    arrays = _step_arrays(opened["data"][demo.group])
                    problem = _find_problem(arrays, (*self._cameras, *self.columns), episode.length)
                    if not problem and not episode.task:
                        problem = "has no language_instruction in the attribute problem_info of its file"
                    if problem:
                        self._broken.note(episode.index, f"{place} {problem}")
                        continue
                    self._values[episode.index] = {
                        key: np.asarray(arrays[key], np.float32).reshape(episode.length, -1) for key in self.columns
                    }
            except (OSError, RuntimeError, KeyError) as error:
                self._broken.note(episode.index, f"{place} cannot be read: {first_line(error)}")


def _open(file: Path) -> Any:
    """Opens a file for reading."""
    import h5py  # 0.1 s of every command's start that datasets of other formats do not need

    return retry_read(lambda: h5py.File(file, "r"), str(file))


def find_hdf5_files(path: Path) -> list[Path]:
    """Returns all HDF5 files under ``path``, sorted."""
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in HDF5_SUFFIXES and file.is_file())


def _find_problem(arrays: dict[str, Any], names: Sequence[str], length: int) -> str | None:
    """Returns which array is missing or of another length than the actions, or None."""
    if not length:
        return f"has no {ACTIONS}"
    for name in names:
        if name not in arrays:
            return f"has no array {name!r}"
        if len(arrays[name]) != length:
            return f"has {len(arrays[name])} steps of {name} and {length} of {ACTIONS}"
    return None


def _step_arrays(demo: Any) -> dict[str, Any]:
    """Returns the arrays of a demonstration that have one value per step, by column name."""
    arrays = {ACTIONS: demo[ACTIONS]} if ACTIONS in demo else {}
    arrays |= {f"obs/{name}": array for name, array in demo.get("obs", {}).items()}
    return {name: array for name, array in arrays.items() if getattr(array, "ndim", 0)}


def _length(demo: Any) -> int:
    return len(demo[ACTIONS]) if ACTIONS in demo else 0


def _read_attributes(opened: Any) -> _FileInfo:
    """Returns task, rate and image convention.

    Raises:
      ValueError: An attribute is missing or is not the JSON it should be.
    """
    if "data" not in opened:
        raise ValueError("it has no group 'data'")
    attributes = opened["data"].attrs
    for name in ("problem_info", "env_args"):
        if name not in attributes:
            raise ValueError(f"its group data has no attribute {name!r}")
    rate = json.loads(attributes["env_args"]).get("env_kwargs", {}).get("control_freq")
    if not isinstance(rate, int | float) or rate <= 0:
        raise ValueError(f"env_args declares control_freq {rate!r}: expected a positive number")
    return _FileInfo(
        task=" ".join(str(json.loads(attributes["problem_info"]).get("language_instruction", "")).split()),
        fps=float(rate),
        is_flipped=attributes.get("macros_image_convention") == "opengl",
    )


def _natural_order(name: str) -> tuple[int, str]:
    """Sorts demo_2 before demo_10."""
    number = re.search(r"\d+$", name)
    return (int(number.group()) if number else -1, name)
