"""Per-feature statistics in the form LeRobot v3.0 stores them.

Owns min, max, mean, standard deviation, count and five quantiles of vector and image features, exact (LeRobot's own
writer approximates quantiles with histograms and samples the frames). Does not own where they are written.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATISTICS = ("min", "max", "mean", "std", "count", *QUANTILES)

FeatureStatistics = dict[str, npt.NDArray[np.number]]

_NUM_LEVELS = 256  # of a uint8 channel


def vector_statistics(values: npt.NDArray[np.number | np.bool_]) -> FeatureStatistics:
    """Statistics over time of a vector or scalar feature.

    Args:
        values: [f, d] or [f]; a scalar feature counts as d = 1. f is at least 1.

    Returns:
        float64 [d] for each statistic, and `count` int64 [1] = f.
    """
    matrix = np.asarray(values, np.float64).reshape(len(values), -1)
    return {
        "min": matrix.min(axis=0),
        "max": matrix.max(axis=0),
        "mean": matrix.mean(axis=0),
        "std": matrix.std(axis=0),
        "count": np.array([len(matrix)], np.int64),
        **{name: np.quantile(matrix, q, axis=0) for name, q in QUANTILES.items()},
    }


def channel_histogram(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Counts of each pixel level per channel: frames [f, h, w, c] -> [c, 256]. Histograms of clips add up."""
    num_channels = frames.shape[-1]
    return np.stack([np.bincount(frames[..., c].ravel(), minlength=_NUM_LEVELS) for c in range(num_channels)])


def image_statistics(histogram: npt.NDArray[np.int64], *, num_frames: int) -> FeatureStatistics:
    """Statistics of an image feature from its pixel histogram, in LeRobot's 0..1 range.

    A quantile is the smallest level at or below which that share of the pixels lies (no interpolation).

    Args:
        histogram: [c, 256] as `channel_histogram` returns it, every channel with at least one pixel.
        num_frames: Number of frames it was taken from.

    Returns:
        float64 [c, 1, 1] for each statistic, and `count` int64 [1] = num_frames.
    """
    levels = np.arange(_NUM_LEVELS)
    share = histogram / histogram.sum(axis=1, keepdims=True)
    cumulative = np.cumsum(histogram, axis=1)
    totals = cumulative[:, -1:]
    mean = share @ levels
    per_channel = {
        "min": np.argmax(histogram > 0, axis=1),
        "max": _NUM_LEVELS - 1 - np.argmax(histogram[:, ::-1] > 0, axis=1),
        "mean": mean,
        "std": np.sqrt(((levels[None] - mean[:, None]) ** 2 * share).sum(axis=1)),
        **{name: np.argmax(cumulative >= q * totals, axis=1) for name, q in QUANTILES.items()},
    }
    scaled = {name: (value / (_NUM_LEVELS - 1)).reshape(-1, 1, 1) for name, value in per_channel.items()}
    return {**scaled, "count": np.array([num_frames], np.int64)}
