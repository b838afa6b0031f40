"""Figures with confidence intervals: what an evaluation reports.

Owns the resampling. Two windows of one episode are not two independent observations, so every interval resamples
*episodes*: windows are averaged within their episode first, and ``n`` counts episodes. Knows nothing of what the
values mean.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A mean with its 95 % confidence interval.

    Attributes:
      mean: Mean over episodes of the episode means.
      low: Lower end of the interval; None where one episode gives no interval.
      high: Upper end of the interval; None where ``low`` is.
      n: Number of episodes.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """Returns ``{"mean", "low", "high", "n"}``."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuccessRate:
    """Successes of repeated trials with their Wilson score interval.

    Attributes:
      successes: Trials that succeeded.
      trials: All trials.
      rate: ``successes / trials``.
      low: Lower end of the 95 % Wilson interval.
      high: Upper end of it.
    """

    successes: int
    trials: int
    rate: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | int]:
        """Returns ``{"successes", "trials", "rate", "low", "high"}``."""
        return dataclasses.asdict(self)


def episode_means(values: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Returns the mean of ``values`` within each episode, in ascending order of episode.

    Args:
      values: ``[windows]``; NaN marks a window in which nothing could be scored, and is left out.
      episodes: int ``[windows]``: the episode each window was cut from.

    Returns:
      float64 ``[episodes that have a scored window]``.
    """
    scored = np.isfinite(values)
    values, episodes = np.asarray(values, np.float64)[scored], np.asarray(episodes)[scored]
    _, row = np.unique(episodes, return_inverse=True)
    return np.bincount(row, weights=values) / np.bincount(row)


def figure_over_episodes(values: np.ndarray, episodes: np.ndarray, *, resamples: int, seed: int = 0) -> Figure | None:
    """Returns the mean over episodes with its bootstrap interval (bias-corrected and accelerated).

    Args:
      values: ``[windows]``, NaN where nothing could be scored.
      episodes: int ``[windows]``.
      resamples: Bootstrap resamples of the episodes.
      seed: Seed of the resampling.

    Returns:
      The figure, or None when no window could be scored.

    Source:
      Efron, "Better bootstrap confidence intervals" (1987), as in ``scipy.stats.bootstrap``; the resampled unit is
      the episode (a cluster of windows), not the window.
    """
    means = episode_means(values, episodes)
    if means.size == 0:
        return None
    mean = float(means.mean())
    if means.size == 1:
        return Figure(mean=mean, low=None, high=None, n=1)
    if np.ptp(means) == 0.0:  # every resample gives the same mean: the interval is that point
        return Figure(mean=mean, low=mean, high=mean, n=means.size)
    interval = scipy.stats.bootstrap(
        (means,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Figure(mean=mean, low=float(interval.low), high=float(interval.high), n=means.size)


def success_rate(successes: int, trials: int) -> SuccessRate:
    """Returns the success rate of ``trials`` with its Wilson score interval.

    Source:
      Wilson, "Probable inference, the law of succession, and statistical inference" (1927), as in
      ``scipy.stats.binomtest``.
    """
    interval = scipy.stats.binomtest(successes, trials).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return SuccessRate(
        successes=successes,
        trials=trials,
        rate=successes / trials,
        low=float(interval.low),
        high=float(interval.high),
    )
