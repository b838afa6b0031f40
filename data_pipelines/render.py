"""A picture of a batch as the model will see it: looked at before training, it shows most data mistakes at once.

Owns the drawing of host batches. Values are drawn as they are in the batch (normalised, masked), not as recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wamjax.batch import WamBatch

_FRAMES_SHOWN = 6


def render_batch(batch: WamBatch, path: Path, *, prompts: Sequence[str], num_samples: int = 4) -> None:
    """Draws the first samples of a host batch into a PNG, one row each: frames, actions, state.

    Frames beyond the episode's end are framed in red and dimmed; masked actions and states are dotted; masked dims are
    not drawn. The row's title is the prompt and the provenance.

    Args:
      batch: Host arrays, batch-first.
      path: PNG to write.
      prompts: Prompt table; ``batch.prompt_id`` indexes it.
      num_samples: Rows, at most.
    """
    rows = min(num_samples, len(batch.prompt_id))
    height, width = batch.video.shape[2:4]
    strip_inches = min(9.0, 1.3 * width / height * min(_FRAMES_SHOWN, batch.video.shape[1]))
    figure = Figure(figsize=(strip_inches + 7.0, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False, width_ratios=(strip_inches, 3.5, 3.5))
    for row in range(rows):
        _draw_frames(axes[row, 0], batch, row)
        dataset, episode, start = (int(value) for value in batch.provenance[row])
        axes[row, 0].set_title(
            f"“{prompts[int(batch.prompt_id[row])]}”   dataset {dataset}, episode {episode}, step {start}",
            loc="left",
            fontsize=8,
        )
        step_mask = batch.action_mask[row] & batch.has_action[row]
        _draw_values(axes[row, 1], batch.actions[row], step_mask[:, None] & batch.action_dim_mask[row], name="actions")
        _draw_values(axes[row, 2], batch.state[row], batch.state_mask[row], name="state")
    for column in (1, 2):
        if axes[0, column].get_legend_handles_labels()[0]:  # video without actions has no values to name
            axes[0, column].legend(fontsize=6, ncols=4, loc="upper right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def render_latents(batch: WamBatch, path: Path, *, num_samples: int = 4) -> None:
    """Draws the first samples of a host batch of latents into a PNG: three channels as red, green and blue.

    What moved in the frames moves here too; a row's title is its provenance.

    Args:
      batch: Host arrays, batch-first.
      path: PNG to write.
      num_samples: Rows, at most.
    """
    rows = min(num_samples, len(batch.provenance))
    figure = Figure(figsize=(9.0, 1.9 * rows), layout="constrained")
    for row, axes in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        shown = np.asarray(batch.latents[row], np.float32)[..., :3]
        shown = np.pad(shown, ((0, 0),) * 3 + ((0, 3 - shown.shape[-1]),))
        low, high = np.quantile(shown, (0.01, 0.99))
        levels = np.clip((shown - low) / max(high - low, 1e-6), 0.0, 1.0)
        axes.imshow(np.concatenate(np.pad(levels, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=1.0), axis=1))
        dataset, episode, start = (int(value) for value in batch.provenance[row])
        axes.set_title(f"latents   dataset {dataset}, episode {episode}, step {start}", loc="left", fontsize=8)
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def render_pictures(batch: WamBatch, path: Path, *, num_samples: int = 4) -> None:
    """Draws the first samples of a host batch of pictures into a PNG: cameras, or frames, side by side.

    Args:
      batch: Host arrays, batch-first, with ``images`` or ``video``.
      path: PNG to write.
      num_samples: Rows, at most.
    """
    shown = batch.video if batch.images is None else batch.images
    rows = min(num_samples, len(batch.provenance))
    figure = Figure(figsize=(9.0, 1.9 * rows), layout="constrained")
    for row, axes in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        tiles = np.pad(shown[row], ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
        axes.imshow(np.concatenate(tiles, axis=1), interpolation="nearest")
        dataset, episode, start = (int(value) for value in batch.provenance[row])
        axes.set_title(f"pictures   dataset {dataset}, episode {episode}, step {start}", loc="left", fontsize=8)
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_frames(axes: Axes, batch: WamBatch, row: int) -> None:
    """Lays evenly chosen frames of a sample side by side."""
    chosen = np.unique(np.linspace(0, batch.video.shape[1] - 1, _FRAMES_SHOWN).round().astype(int))
    tiles = []
    for frame in chosen:
        tile = np.pad(batch.video[row, frame], ((2, 2), (2, 2), (0, 0)), constant_values=255)
        if not batch.frame_mask[row, frame]:
            tile = tile // 2
            tile[[0, 1, -2, -1]] = tile[:, [0, 1, -2, -1]] = (220, 40, 40)
        tiles.append(tile)
    axes.imshow(np.concatenate(tiles, axis=1), interpolation="nearest", aspect="equal")
    width = tiles[0].shape[1]
    axes.set_xticks([width * (i + 0.5) for i in range(len(chosen))], [f"frame {frame}" for frame in chosen], fontsize=7)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_values(axes: Axes, values: Any, mask: Any, *, name: str) -> None:
    """Plots each dim of ``values`` ``[steps, dims]`` that is not masked altogether."""
    steps = np.arange(len(values))
    for dim in np.flatnonzero(mask.any(axis=0)):
        (line,) = axes.plot(steps, np.where(mask[:, dim], values[:, dim], np.nan), ".-", linewidth=1, markersize=3)
        axes.plot(steps, values[:, dim], ":", linewidth=0.8, color=line.get_color(), label=f"dim {dim}")
    axes.set_ylim(-1.1, 1.1)
    axes.set_title(f"{name}, normalised", fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
