"""Array-level evaluation: how wrong predicted actions and frames are, and whether the policy looks.

Everything here takes host arrays of one batch and returns one value per window (or per window and dim), NaN where a
window holds nothing to score. Which windows, which predictions and which interval is the caller's business
(``training.intervals`` turns the values into figures).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from skimage.metrics import structural_similarity

from wamjax.batch import WamBatch
from wamjax.config.schema import DataConfig

PEAK = 255.0
# A perfect prediction in real numbers still differs from 8-bit frames by rounding, whose variance is 1/12 of a grey
# level. Below it PSNR says nothing (and identical frames would give infinity), so squared error is floored there.
ROUNDING_VARIANCE = 1.0 / 12.0


def action_mask(batch: WamBatch) -> np.ndarray:
    """Returns bool ``[b a u]``: the action values that were really executed by dims the embodiment has."""
    steps = batch.action_mask & batch.has_action[:, None]
    return steps[:, :, None] & batch.action_dim_mask[:, None, :]


def masked_mean(values: np.ndarray, mask: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Returns the mean of ``values`` where ``mask`` holds, over ``axis``; NaN where it holds nowhere."""
    mask = np.broadcast_to(mask, values.shape)
    count = mask.sum(axis=axis)
    total = np.where(mask, values, 0.0).sum(axis=axis, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def action_error(predicted: np.ndarray, true: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the mean absolute error of each window: mean over its scored steps and dims of ``|predicted - true|``.

    Args:
      predicted: float ``[b a u]``, normalised units (anything that broadcasts to ``true``).
      true: float32 ``[b a u]``, normalised units.
      mask: bool ``[b a u]`` of ``action_mask``.

    Returns:
      float64 ``[b]``, in normalised units (2 is the full range of a dim).
    """
    return masked_mean(np.abs(predicted - true), mask, axis=(1, 2))


def action_error_by_dim(predicted: np.ndarray, true: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns ``action_error`` for every action dim alone: float64 ``[b u]``."""
    return masked_mean(np.abs(predicted - true), mask, axis=1)


def repeat_last_action(before: np.ndarray, actions_per_block: int) -> np.ndarray:
    """Returns the baseline that keeps doing what the robot did last: float32 ``[b a u]``.

    Each block repeats the action before its first. Like the model it sees the true past of every block, never a
    predicted one.

    Args:
      before: float32 ``[b i u]``: the action executed before each block, normalised as the block's actions are.
      actions_per_block: Actions of one block.
    """
    return np.repeat(before, actions_per_block, axis=1)


def copy_last_frame(video: np.ndarray, frames_per_block: int) -> np.ndarray:
    """Returns the baseline that repeats the last true frame before each block.

    Args:
      video: uint8 ``[b f H W 3]``, the first frame followed by whole blocks.
      frames_per_block: Frames of one block.

    Returns:
      uint8 ``[b f-1 H W 3]``: a guess for every frame after the first.
    """
    return np.repeat(video[:, :-1:frames_per_block], frames_per_block, axis=1)


def visible_pixels(config: DataConfig, view_mask: np.ndarray) -> np.ndarray:
    """Returns bool ``[b H W]``: the canvas pixels that a present camera view covers.

    What no view covers is black in truth and prediction alike, and would only flatter the figures.
    """
    height, width = config.canvas
    if not config.views:
        return np.ones((len(view_mask), height, width), np.bool_)
    covered = np.zeros((len(view_mask), height, width), np.bool_)
    for column, (_, top, left, rows, columns) in enumerate(config.views):
        covered[:, top : top + rows, left : left + columns] |= view_mask[:, column, None, None]
    return covered


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameScores:
    """How close guessed frames come to true ones, frame by frame; NaN where the frame is padding.

    Attributes:
      squared_error: float64 ``[b f]``: mean over visible pixels and channels, in grey levels squared.
      ssim: float64 ``[b f]``: structural similarity, mean over visible pixels.
    """

    squared_error: np.ndarray
    ssim: np.ndarray

    def psnr(self) -> np.ndarray:
        """Returns PSNR in dB of each window: ``10 log10(255^2 / squared error over all its frames)``, ``[b]``.

        The mean is over squared errors, not over decibels: averaging decibels lets a few frames in which nothing
        moves outweigh all those that are hard to predict.
        """
        scored = np.isfinite(self.squared_error)
        return _psnr(masked_mean(np.where(scored, self.squared_error, 0.0), scored, axis=1))

    def psnr_by_frame(self) -> np.ndarray:
        """Returns PSNR in dB of each frame, ``[b f]``."""
        return _psnr(self.squared_error)

    def mean_ssim(self) -> np.ndarray:
        """Returns the mean structural similarity of each window, ``[b]``."""
        scored = np.isfinite(self.ssim)
        return masked_mean(np.where(scored, self.ssim, 0.0), scored, axis=1)


def score_frames(guess: np.ndarray, true: np.ndarray, frame_mask: np.ndarray, pixels: np.ndarray) -> FrameScores:
    """Compares guessed with true frames.

    Args:
      guess: uint8 ``[b f H W 3]``.
      true: uint8 ``[b f H W 3]``.
      frame_mask: bool ``[b f]``: False where the true frame is padding.
      pixels: bool ``[b H W]`` of ``visible_pixels``.

    Returns:
      The scores of every frame.

    Source:
      Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), by
      ``skimage.metrics.structural_similarity`` with its 7 x 7 window, over the three colour channels.
    """
    batch, frames = frame_mask.shape
    squared = np.full((batch, frames), np.nan)
    ssim = np.full((batch, frames), np.nan)
    for row, frame in zip(*np.nonzero(frame_mask), strict=True):
        visible = pixels[row]
        if not visible.any():
            continue
        a, b = guess[row, frame], true[row, frame]
        squared[row, frame] = np.square(a[visible].astype(np.float64) - b[visible]).mean()
        similarity = structural_similarity(a, b, channel_axis=-1, data_range=PEAK, full=True)[1]
        ssim[row, frame] = np.asarray(similarity)[visible].mean()
    return FrameScores(squared_error=squared, ssim=ssim)


def choose_donors(episodes: np.ndarray, prompts: np.ndarray, starts: np.ndarray) -> np.ndarray | None:
    """Chooses for every window another sample to exchange actions or observations with.

    The donor comes from another episode, of the same task where there is one, and is as far into its episode as the
    window is into its own: what then differs is what the robot sees there, not how far along it is. Ties are broken
    in turn, so that all donors get used.

    Args:
      episodes: int ``[windows]``.
      prompts: int ``[windows]``: the task.
      starts: int ``[windows]``: first dataset step of the window within its episode.

    Returns:
      int ``[windows]``: a window each, or None when all windows are of one episode.
    """
    if np.unique(episodes).size < 2:
        return None
    index = np.arange(len(episodes))
    donors = np.empty_like(index)
    for row in index:
        other = episodes != episodes[row]
        same_task = other & (prompts == prompts[row])
        candidates = index[same_task if same_task.any() else other]
        turn = (candidates - row) % len(index)
        distance = np.abs(starts[candidates] - starts[row])
        donors[row] = candidates[np.lexsort((turn, distance))[0]]
    return donors


def with_actions_of(batch: WamBatch, donor: WamBatch) -> WamBatch:
    """Returns ``batch`` with the actions of ``donor``, everything else its own."""
    return dataclasses.replace(
        batch,
        actions=donor.actions,
        action_mask=donor.action_mask,
        action_dim_mask=donor.action_dim_mask,
        has_action=donor.has_action,
    )


def _psnr(squared_error: np.ndarray) -> np.ndarray:
    """Returns ``10 log10(255^2 / max(squared_error, rounding variance))`` in dB; NaN stays NaN."""
    return 10.0 * np.log10(PEAK**2 / np.maximum(squared_error, ROUNDING_VARIANCE))
