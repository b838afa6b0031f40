"""Intervals: resampled by episode, honest about what cannot be known, and covering as often as they claim."""

from __future__ import annotations

import numpy as np
import pytest

from wamjax.training.intervals import episode_means, figure_over_episodes, success_rate


def test_episode_means_with_unequal_windows_weighs_episodes_equally():
    values = np.array([1.0, 1.0, 1.0, 5.0])
    means = episode_means(values, np.array([7, 7, 7, 2]))
    np.testing.assert_allclose(means, [5.0, 1.0])  # ascending episode: 2, then 7


def test_figure_of_repeated_windows_is_no_more_certain():
    rng = np.random.default_rng(0)
    values, episodes = rng.normal(size=8), np.arange(8)
    once = figure_over_episodes(values, episodes, resamples=500)
    tenfold = figure_over_episodes(np.tile(values, 10), np.tile(episodes, 10), resamples=500)
    assert once is not None
    assert tenfold is not None
    assert tenfold.n == once.n == 8
    # Equal up to ties of the resampled means, which rounding breaks one way or the other.
    assert tenfold.low == pytest.approx(once.low, abs=0.02)
    assert tenfold.high == pytest.approx(once.high, abs=0.02)


def test_figure_interval_covers_the_truth_about_as_often_as_it_claims():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        figure = figure_over_episodes(rng.normal(2.0, 1.0, size=20), np.arange(20), resamples=300, seed=trial)
        assert figure is not None
        assert figure.low is not None
        assert figure.high is not None
        covered += figure.low <= 2.0 <= figure.high
    # Binomial(200, 0.95) lies in this range with probability > 0.999; bootstrap of 20 values is a little narrow.
    assert 0.86 <= covered / 200 <= 1.0


def test_figure_with_unscored_windows_ignores_them():
    values = np.array([1.0, np.nan, 3.0, np.nan])
    figure = figure_over_episodes(values, np.array([0, 0, 1, 2]), resamples=100)
    assert figure is not None
    assert (figure.mean, figure.n) == (2.0, 2)


def test_figure_of_nothing_is_none():
    assert figure_over_episodes(np.array([np.nan]), np.array([0]), resamples=10) is None


def test_figure_of_one_episode_has_no_interval():
    figure = figure_over_episodes(np.array([1.0, 2.0]), np.array([4, 4]), resamples=10)
    assert figure is not None
    assert figure.to_json() == {"mean": 1.5, "low": None, "high": None, "n": 1}


def test_figure_of_equal_episodes_is_a_point():
    figure = figure_over_episodes(np.full(3, 0.25), np.arange(3), resamples=10)
    assert figure is not None
    assert figure.low == figure.high == figure.mean == 0.25


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_success_rate_matches_published_wilson_intervals(successes: int, trials: int, low: float, high: float):
    rate = success_rate(successes, trials)
    assert rate.rate == successes / trials
    np.testing.assert_allclose([rate.low, rate.high], [low, high], atol=5e-5)
