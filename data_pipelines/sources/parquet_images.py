"""Images stored as PNG or JPEG bytes in a parquet column, read by row.

Owns reading and decoding of such cells. A row group is read whole (parquet has nothing smaller), so the last few are
kept by each thread: the frames of a window lie next to each other.
"""

from __future__ import annotations

import collections
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from data_pipelines.sources.retry import retry_read
from data_pipelines.sources.source import first_line

MAX_KEPT_GROUPS = 4  # row groups one thread keeps, of all files and columns together


class ImageError(Exception):
    """A cell that cannot be read as an image; the dataset reader adds which episode it was for."""


class ParquetImages:
    """Random access to image cells. Each thread has files and row groups of its own."""

    def __init__(self) -> None:
        self._local = threading.local()

    def decode(self, file: Path, column: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Returns the images ``[len(rows), h, w, 3]`` of ``rows`` in RGB.

        Raises:
          ImageError: The file, the column or a cell cannot be read, or the images differ in size.
        """
        images = []
        try:
            ends = self._group_ends(file)
            for row in rows:
                group = int(np.searchsorted(ends, row, side="right"))
                first = int(ends[group - 1]) if group else 0
                images.append(decode_image(self._group(file, column, group)[int(row) - first].as_py()))
        except (OSError, KeyError, IndexError, pa.ArrowException) as error:
            raise ImageError(f"{file} cannot be read: {first_line(error)}") from error
        except ImageError as error:
            raise ImageError(f"{file}, column {column}, row {int(rows[len(images)])}: {error}") from error
        sizes = {image.shape for image in images}
        if len(sizes) > 1:
            raise ImageError(f"{file}, column {column}: images of sizes {sorted(sizes)} in one episode")
        return np.stack(images)

    def _kept(self) -> collections.OrderedDict[Any, Any]:
        if not hasattr(self._local, "kept"):
            self._local.kept = collections.OrderedDict()
        return self._local.kept

    def _group_ends(self, file: Path) -> npt.NDArray[np.int64]:
        """Returns the row after each row group of a file."""
        key = (file, "ends")
        kept = self._kept()
        if key not in kept:
            metadata = retry_read(lambda: pq.read_metadata(file), str(file))
            kept[key] = np.cumsum([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)])
            self._shrink()
        kept.move_to_end(key)
        return kept[key]

    def _group(self, file: Path, column: str, group: int) -> pa.ChunkedArray:
        key = (file, column, group)
        kept = self._kept()
        if key not in kept:

            def read() -> pa.ChunkedArray:
                with pq.ParquetFile(file) as parquet:
                    return parquet.read_row_group(group, columns=[column])[column]

            kept[key] = retry_read(read, str(file))
            self._shrink()
        kept.move_to_end(key)
        return kept[key]

    def _shrink(self) -> None:
        kept = self._kept()
        while len(kept) > 2 * MAX_KEPT_GROUPS:  # each group has its file's row counts beside it
            kept.popitem(last=False)


def decode_image(cell: Any) -> npt.NDArray[np.uint8]:
    """Returns one cell, the bytes of an image or a struct with ``bytes``, as ``[h, w, 3]`` in RGB.

    Raises:
      ImageError: The cell holds no bytes, or they are no image.
    """
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise ImageError("the cell holds no image bytes")
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:  # PIL raises SyntaxError on broken PNG
        raise ImageError(f"no image: {type(error).__name__}") from error
