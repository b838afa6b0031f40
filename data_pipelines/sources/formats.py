"""Which reader a dataset folder needs, told from its files alone.

Owns the detection; each reader owns its format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipelines.sources.hdf5 import Hdf5Dataset, find_hdf5_files
from data_pipelines.sources.lerobot import LeRobotDataset
from data_pipelines.sources.lerobot_tables import INFO_PATH
from data_pipelines.sources.remote import dataset_path
from data_pipelines.sources.rlds import FEATURES_FILE, INFO_FILE, RldsDataset, find_rlds
from data_pipelines.sources.source import Source
from data_pipelines.sources.video_folder import find_videos, open_video_folder
from data_pipelines.sources.webdataset import find_shards, open_webdataset
from wamjax.errors import DataError

# What a folder of each format holds, as a message says it, a test for it, and its reader.
_FORMATS: tuple[tuple[str, Callable[[Path], bool], Callable[..., Source]], ...] = (
    (f"{INFO_PATH} (LeRobot)", lambda path: (path / INFO_PATH).is_file(), LeRobotDataset),
    (f"{FEATURES_FILE} and {INFO_FILE} (RLDS)", lambda path: bool(find_rlds(path)), RldsDataset),
    ("*.hdf5, *.h5 (LIBERO HDF5)", lambda path: bool(find_hdf5_files(path)), Hdf5Dataset),
    ("*.tar (WebDataset)", lambda path: bool(find_shards(path)), open_webdataset),
    (
        "*.mp4, *.webm, *.mkv (video folder)",
        # The videos of a LeRobot dataset are its own.
        lambda path: not (path / INFO_PATH).is_file() and bool(find_videos(path)),
        open_video_folder,
    ),
)


def open_source(
    path: str | Path,
    *,
    cameras: Sequence[str] | None = None,
    optional_cameras: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    keep_bytes: int = 0,
    num_threads: int = 4,
    part: range | None = None,
) -> Source:
    """Opens a dataset of any supported format.

    Args:
      path: Its folder, here or elsewhere (``remote``).
      cameras: Cameras that will be read; None for all.
      optional_cameras: Read as well where the dataset has them; those it lacks are said.
      columns: Numeric features that will be read; None for all floating-point ones.
      keep_bytes: Largest size of all decoded frames together at which they are kept in memory.
      num_threads: Files read at once while opening.
      part: Positions of the episodes that will be read, of a format that ``opens_in_parts``; None for all.

    Raises:
      DataError: The folder does not exist, is of no known format or of two at once, or its reader refuses it.
    """
    path = dataset_path(path)
    reader = _find_reader(path)
    options = {} if part is None else {"part": part}
    return reader(
        path,
        cameras=cameras,
        optional_cameras=optional_cameras,
        columns=columns,
        keep_bytes=keep_bytes,
        num_threads=num_threads,
        **options,
    )


def opens_in_parts(path: str | Path) -> bool:
    """Returns whether some episodes of a dataset can be read without opening the files of the others.

    Raises:
      DataError: As ``open_source``.
    """
    return _find_reader(dataset_path(path)) is LeRobotDataset


def _find_reader(path: Path) -> Callable[..., Source]:
    """Returns the reader of a dataset's format."""
    if not path.exists():
        raise DataError(f"dataset {path} does not exist (config.data.path): expected the folder of a dataset")
    if not path.is_dir():
        raise DataError(f"dataset {path} is a file (config.data.path): expected the folder of a dataset")
    found = [(name, reader) for name, holds, reader in _FORMATS if holds(path)]
    if not found:
        looked_for = ", ".join(name for name, _, _ in _FORMATS)
        raise DataError(f"dataset {path} is of no known format (config.data.path): looked for {looked_for}")
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise DataError(f"dataset {path} is of more than one format: it holds {names}; keep one of them in a folder")
    return found[0][1]
