"""The statistics agree with NumPy on the raw values."""

import numpy as np
import numpy.testing as npt
import pytest

from data_pipelines.recording.statistics import (
    QUANTILES,
    STATISTICS,
    channel_histogram,
    image_statistics,
    vector_statistics,
)


def test_vector_statistics_of_random_values_equal_numpy() -> None:
    values = np.random.default_rng(0).normal(size=(101, 3)).astype(np.float32)
    statistics = vector_statistics(values)
    assert set(statistics) == set(STATISTICS)
    wide = values.astype(np.float64)
    npt.assert_array_equal(statistics["min"], wide.min(0))
    npt.assert_array_equal(statistics["max"], wide.max(0))
    npt.assert_allclose(statistics["mean"], wide.mean(0), rtol=1e-12)
    npt.assert_allclose(statistics["std"], wide.std(0), rtol=1e-12)
    # With 101 sorted values the p-th percentile is the value at place p: no interpolation rule enters.
    npt.assert_allclose(statistics["q10"], np.sort(wide, axis=0)[10])
    npt.assert_allclose(statistics["q99"], np.sort(wide, axis=0)[99])
    npt.assert_array_equal(statistics["count"], [101])


@pytest.mark.parametrize("values", [np.array([True, False, True, True]), np.array([3, 1, 2, 2])])
def test_vector_statistics_of_scalar_feature_have_one_dimension(values: np.ndarray) -> None:
    statistics = vector_statistics(values)
    assert all(value.shape == (1,) for value in statistics.values())
    npt.assert_allclose(statistics["mean"], [values.mean()])


def test_image_statistics_from_summed_histograms_equal_numpy_on_all_pixels() -> None:
    generator = np.random.default_rng(1)
    clips = [generator.integers(low, 200, (n, 6, 8, 3), np.uint8) for low, n in ((0, 3), (120, 5))]
    histogram = sum(channel_histogram(clip) for clip in clips)
    statistics = image_statistics(np.asarray(histogram), num_frames=8)
    pixels = np.concatenate(clips).reshape(-1, 3)
    scaled = pixels / 255.0
    for name, expected in {
        "min": scaled.min(0),
        "max": scaled.max(0),
        "mean": scaled.mean(0),
        "std": scaled.std(0),
        **{name: np.quantile(pixels, q, axis=0, method="inverted_cdf") / 255.0 for name, q in QUANTILES.items()},
    }.items():
        assert statistics[name].shape == (3, 1, 1)
        npt.assert_allclose(statistics[name].ravel(), expected, rtol=1e-9, err_msg=name)
    npt.assert_array_equal(statistics["count"], [8])
