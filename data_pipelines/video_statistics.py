"""Mean canvas and spread of the training frames, for the codec's normalisation.

Computed from a fixed number of windows, evenly spread over the training split, so that it costs seconds on any
dataset and is the same on every host.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.stream import Samples
from wamjax.batch import VideoStatistics

NUM_WINDOWS = 256  # windows read; the mean of a static scene settles long before
MIN_STD = 1.0  # pixel levels; a set of identical frames must not be divided by zero


def compute_video_statistics(windows: Samples) -> VideoStatistics:
    """Returns the statistics over the real frames (not the repeated last ones) of evenly spread windows."""
    count = min(NUM_WINDOWS, len(windows))
    total: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0
    num_frames = 0
    for index in np.linspace(0, len(windows) - 1, count).astype(int):
        sample = windows[int(index)]
        frames = sample.video[sample.frame_mask].astype(np.float64)
        total, squares = total + frames.sum(axis=0), squares + np.square(frames).sum(axis=0)
        num_frames += len(frames)
    mean = np.asarray(total) / num_frames
    variance = np.mean(np.asarray(squares) / num_frames - np.square(mean))
    return VideoStatistics(mean=mean.astype(np.float32), std=max(float(np.sqrt(variance)), MIN_STD))
