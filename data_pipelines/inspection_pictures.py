"""Pictures of a dataset to look at before training: frames of some episodes, and histograms of their values.

Owns the drawing. What is drawn is what ``Source`` gives: frames as decoded, values in their own units.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from data_pipelines.sources.source import EpisodeRecord, Source

SHEET_EPISODES = 6  # rows of a contact sheet
SHEET_FRAMES = 6  # columns: frames evenly spread over the episode, first and last among them
TILE = 128  # longer side of a frame in a contact sheet, pixels
REPLAY_FRAMES = 8  # frames above the curves of an episode
MAX_DIMS = 24  # dims of a feature that are drawn


def contact_sheet(source: Source, camera: str, episodes: Sequence[EpisodeRecord]) -> bytes:
    """Returns a PNG with one row of frames for each of some evenly spread episodes."""
    tiles = []
    for episode in spread(episodes, SHEET_EPISODES):
        steps = np.unique(np.linspace(0, episode.length - 1, SHEET_FRAMES).round().astype(np.int64))
        row = [_shrink(frame) for frame in source.frames(camera, episode.index, steps)]
        tiles.append(row + [np.zeros_like(row[0])] * (SHEET_FRAMES - len(row)))
    height, width = (max(row[0].shape[axis] for row in tiles) for axis in (0, 1))
    sheet = np.zeros((len(tiles) * height, SHEET_FRAMES * width, 3), np.uint8)
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            sheet[y * height : y * height + tile.shape[0], x * width : x * width + tile.shape[1]] = tile
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG")
    return buffer.getvalue()


def histograms(source: Source, name: str, episodes: Sequence[EpisodeRecord]) -> bytes:
    """Returns a PNG with one histogram for each of the first dims of a numeric feature."""
    values = np.concatenate([source.column(name, episode.index) for episode in episodes])[:, :MAX_DIMS]
    columns = min(6, values.shape[1])
    rows = -(-values.shape[1] // columns)
    figure = Figure(figsize=(1.9 * columns, 1.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for dim, axis in enumerate(axes):
        axis.set_visible(dim < values.shape[1])
        if dim < values.shape[1]:
            axis.hist(values[:, dim], bins=40)
            axis.set_title(f"{name}[{dim}]", fontsize=7)
            axis.tick_params(labelsize=6)
            axis.set_yticks([])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def replay(source: Source, camera: str, episode: EpisodeRecord) -> bytes:
    """Returns a PNG of an episode: frames, and below them what was commanded and measured, on one axis of steps.

    Where an action and what is seen do not fit (a gripper that opens while its command closes, a shift of some steps),
    it shows here.
    """
    steps = np.unique(np.linspace(0, episode.length - 1, REPLAY_FRAMES).round().astype(np.int64))
    frames = source.frames(camera, episode.index, steps)
    names = [name for name in source.columns if source.column(name, episode.index).shape[1] <= MAX_DIMS]
    figure = Figure(figsize=(12, 1.6 + 1.5 * max(1, len(names))), layout="constrained")
    grid = figure.add_gridspec(1 + len(names), len(steps))
    for column, (step, frame) in enumerate(zip(steps, frames, strict=True)):
        axis = figure.add_subplot(grid[0, column])
        axis.imshow(_shrink(frame))
        axis.set_title(f"step {step}", fontsize=7)
        axis.set_axis_off()
    for row, name in enumerate(names, 1):
        axis = figure.add_subplot(grid[row, :])
        axis.plot(source.column(name, episode.index), linewidth=0.8)
        for step in steps:
            axis.axvline(float(step), color="0.85", linewidth=0.6, zorder=0)
        axis.set_title(name, fontsize=7, loc="left")
        axis.set_xlim(0, max(1, episode.length - 1))
        axis.tick_params(labelsize=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def spread(episodes: Sequence[EpisodeRecord], count: int) -> list[EpisodeRecord]:
    """Returns at most ``count`` evenly spread episodes, first and last among them."""
    chosen = {int(i) for i in np.linspace(0, len(episodes) - 1, min(count, len(episodes)))}
    return [episodes[i] for i in sorted(chosen)]


def _shrink(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Returns a frame with a longer side of ``TILE`` pixels."""
    scale = TILE / max(frame.shape[:2])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    return np.asarray(Image.fromarray(frame).resize(size))
