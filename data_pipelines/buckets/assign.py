"""Which bucket each window goes to: a pure function of the dataset and the configuration.

Owns the rule. Of the canvases that no camera would have to be enlarged for, a window goes to those of the nearest
aspect and among them to the largest; on that canvas, to the longest bucket whose every frame the episode still has,
or, close to the end of the episode, to the shortest (the rest is masked, as without buckets). There it is judged: of
the bucket's own length, no more than ``config.data.filters.max_idle`` may be idle.

A window's bucket depends on nothing but its own episode, so that another order, host count or mixture changes nothing.
What is kept are runs of neighbouring windows, not windows: a few numbers per episode.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.filters import check_filters, find_idle_steps, is_moving
from data_pipelines.index import WindowTable
from data_pipelines.sources.source import EpisodeRecord, Source, VideoSource
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import RunConfig
from wamjax.config.sources import ViewPlacement
from wamjax.errors import ConfigError

_SAME_ASPECT = 1e-6  # difference of logarithms of aspects that is none
CameraSizes = tuple[tuple[str, int, int], ...]  # (camera, height, width)


class RowRuns:
    """An ascending choice of rows, kept as runs of neighbouring ones."""

    def __init__(self, runs: Sequence[tuple[int, int]]) -> None:
        """Keeps runs (first row, number of rows), ascending; those that touch become one."""
        joined: list[list[int]] = []
        for first, count in runs:
            if joined and joined[-1][0] + joined[-1][1] == first:
                joined[-1][1] += count
            elif count:
                joined.append([first, count])
        pairs = np.array(joined, np.int64).reshape(-1, 2)
        self._firsts, self._ends = pairs[:, 0], np.cumsum(pairs[:, 1])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, numbers: Any) -> npt.NDArray[np.int64]:
        """Returns the rows with these positions in the choice."""
        numbers = np.asarray(numbers, np.int64)
        run = np.searchsorted(self._ends, numbers, side="right")
        before = np.where(run > 0, self._ends[run - 1], 0)
        return self._firsts[run] + numbers - before


class Chosen:
    """Random access to some of the samples of a reader (Grain's ``RandomAccessDataSource``)."""

    def __init__(self, reader: Any, rows: RowRuns) -> None:
        """Wraps a ``WindowReader``."""
        self._reader, self._rows = reader, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        """Returns chosen sample ``index`` as the reader does."""
        return self._reader[int(self._rows.locate(index))]

    def read(self, indices: Sequence[int]) -> list[Any]:
        """Returns several, in order."""
        return self._reader.read(self._rows.locate(indices))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """Where the windows of one split go.

    Attributes:
      rows: Of each bucket, rows of the window table.
      unfit: Reason by episode for episodes whose windows fit no bucket.
      num_unfit: Windows of them.
      num_idle: Windows that are left out because too much of what their bucket would show is idle.
    """

    rows: dict[str, RowRuns]
    unfit: dict[int, str]
    num_unfit: int
    num_idle: int


def assign_windows(
    source: Source,
    episodes: Sequence[EpisodeRecord],
    windows: WindowTable,
    configs: Mapping[str, RunConfig],
    *,
    upsample: bool,
    whole_clips: bool = False,
) -> Assignment:
    """Assigns windows to buckets.

    Args:
      source: The dataset, for the sizes of its cameras.
      episodes: Those that ``windows`` are of, by ascending index.
      windows: Ordered by episode and start.
      configs: The run in each bucket, on pixels.
      upsample: See ``BucketsConfig``.
      whole_clips: Whether a window must have every frame: what has too few for the shortest bucket of its canvas fits
        none. Else that bucket takes it, and masks the rest.

    Raises:
      ConfigError: A size of a camera is not known before its frames are decoded, or the idle filter has no state to
        look at.
    """
    data = next(iter(configs.values())).data
    check_filters(source, data)
    steps = {name: derive_geometry(config).window_steps for name, config in configs.items()}
    views = {name: config.data.views for name, config in configs.items()}
    areas = {name: math.prod(config.data.canvas) for name, config in configs.items()}
    runs: dict[str, list[tuple[int, int]]] = {name: [] for name in configs}
    unfit: dict[int, str] = {}
    num_unfit = num_idle = 0
    fits: dict[CameraSizes, tuple[str, ...] | str] = {}
    for (begin, end), record in zip(_ranges(windows, episodes), episodes, strict=True):
        if begin == end:
            continue
        sizes = tuple(_camera_sizes(source, record.index, next(iter(views.values()))))
        if sizes not in fits:
            fits[sizes] = choose_canvas(sizes, views, areas, upsample=upsample)
        names = fits[sizes]
        if isinstance(names, str):
            unfit[record.index], num_unfit = names, num_unfit + end - begin
            continue
        longest_first = sorted(names, key=lambda name: -steps[name])
        starts = np.asarray(windows.starts[begin:end])
        last_starts = {name: record.length - 1 - steps[name] for name in longest_first}
        if not whole_clips:
            last_starts[longest_first[-1]] = record.length
        is_idle = find_idle_steps(source, record, data)
        first = 0
        for name, last_start in last_starts.items():
            stop = max(first, int(np.searchsorted(starts, last_start, side="right")))
            kept = [(first, stop - first)]
            if is_idle is not None:
                limits = {"window_steps": steps[name], "max_idle": data.filters.max_idle}
                kept = _runs_of(is_moving(starts[first:stop], is_idle, **limits), first)
                num_idle += stop - first - sum(count for _, count in kept)
            runs[name] += [(begin + row, count) for row, count in kept]
            first = stop
        if first < end - begin:
            unfit[record.index] = f"too few frames for {longest_first[-1]}, the shortest bucket of its canvas"
            num_unfit += end - begin - first
    rows = {name: RowRuns(own) for name, own in runs.items()}
    return Assignment(rows=rows, unfit=unfit, num_unfit=num_unfit, num_idle=num_idle)


def choose_canvas(
    sizes: CameraSizes,
    views: Mapping[str, Sequence[ViewPlacement]],
    areas: Mapping[str, int],
    *,
    upsample: bool,
) -> tuple[str, ...] | str:
    """Returns the buckets, all of one canvas, that show cameras of these sizes; or why there is none.

    Args:
      sizes: Cameras of a window.
      views: Places of the views on each bucket's canvas.
      areas: Pixels of each bucket's canvas.
      upsample: Whether cameras may be enlarged where every bucket would do so.
    """
    cameras = {key: (height, width) for key, height, width in sizes}

    def misfit(name: str) -> float:
        """Mean distance of the views' aspects from their cameras', in logarithms."""
        found = [
            abs(math.log(cameras[key][0] * columns / (cameras[key][1] * rows)))
            for key, _, _, rows, columns in views[name]
            if key in cameras
        ]
        return sum(found) / len(found) if found else 0.0

    def enlarges(name: str) -> bool:
        shown = [(cameras[key], (rows, columns)) for key, _, _, rows, columns in views[name] if key in cameras]
        return any(rows > height or columns > width for (height, width), (rows, columns) in shown)

    whole = [name for name in views if not enlarges(name)]
    if not whole and not upsample:
        listed = ", ".join(f"{key} of {height}x{width}" for key, height, width in sizes)
        return f"every bucket is larger than its cameras ({listed}; config.data.buckets.upsample)"
    candidates = whole or list(views)
    nearest = min(misfit(name) for name in candidates)
    candidates = [name for name in candidates if misfit(name) <= nearest + _SAME_ASPECT]
    # On equal areas, the first by name of its canvas: a choice, but always the same one.
    chosen = (max if whole else min)(candidates, key=lambda name: areas[name])
    return tuple(name for name in candidates if views[name] == views[chosen] and areas[name] == areas[chosen])


def _runs_of(is_chosen: npt.NDArray[np.bool_], first: int) -> list[tuple[int, int]]:
    """Returns the runs (first, number) of chosen places, which are counted from ``first``."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_chosen, [False]]).astype(np.int8)))
    return [(first + int(begin), int(end - begin)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def _ranges(windows: WindowTable, episodes: Sequence[EpisodeRecord]) -> Iterator[tuple[int, int]]:
    """Yields the rows of each episode's windows."""
    indices = np.array([record.index for record in episodes], np.int64)
    owners = np.asarray(windows.episodes)
    begins, ends = np.searchsorted(owners, indices, side="left"), np.searchsorted(owners, indices, side="right")
    yield from zip(begins.tolist(), ends.tolist(), strict=True)


def _camera_sizes(source: Source, episode: int, views: Sequence[ViewPlacement]) -> Iterator[tuple[str, int, int]]:
    """Yields the cameras that an episode's views show with their height and width."""
    for key in dict.fromkeys(view[0] for view in views):
        if key not in source.cameras:
            continue
        shape = source.features[key].shape
        if len(shape) == 3 and all(shape):
            yield key, shape[0], shape[1]
            continue
        found = source.find_video(key, episode) if isinstance(source, VideoSource) else None
        if found is None:
            raise ConfigError(
                f"camera {key!r} of {source.path} declares no size, which config.data.buckets choose by: leave "
                "config.data.buckets.sets empty for this dataset"
            )
        yield key, found[0].height, found[0].width
