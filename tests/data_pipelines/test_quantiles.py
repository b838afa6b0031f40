import numpy as np
import pytest

from data_pipelines import quantiles
from data_pipelines.quantiles import Spread, measure_spread

SHARES = (0.01, 0.99)


def measure(values: np.ndarray, piece: int = 37) -> Spread:
    rows = values.astype(np.float32)
    return measure_spread(lambda: (rows[i : i + piece] for i in range(0, len(rows), piece)), rows.shape[1], SHARES)


def draw(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    if kind == "ties":
        return rng.integers(-2, 3, (count, 3)).astype(np.float32)
    if kind == "tails":  # one value a billion times larger than the others
        values = rng.normal(size=(count, 3)) * 1e-3
        values[count // 2] = [1e6, -1e6, 0.0]
        return values.astype(np.float32)
    if kind == "zeros":
        return np.where(rng.random((count, 3)) < 0.5, -0.0, 0.0).astype(np.float32)
    return (rng.normal(size=(count, 3)) * [1.0, 1e-20, 1e20] + [5.0, 0.0, 0.0]).astype(np.float32)


@pytest.mark.parametrize("kind", ["scales", "ties", "tails", "zeros"])
@pytest.mark.parametrize("count", [1, 2, 101, 5000])
def test_streamed_statistics_equal_numpy_on_all_rows(kind: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiles, "_BATCH_ROWS", 256)  # several batches
    rows = draw(kind, count)
    exact, found = rows.astype(np.float64), measure(rows)
    np.testing.assert_array_equal(found.quantiles, np.quantile(exact, SHARES, axis=0))  # to the last bit
    np.testing.assert_array_equal(found.minimum, exact.min(axis=0))
    np.testing.assert_array_equal(found.maximum, exact.max(axis=0))
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12, atol=1e-12 * np.abs(exact).max())
    np.testing.assert_allclose(found.std, exact.std(axis=0), rtol=1e-9)
    assert found.count == count
    for row, quantile in enumerate(found.quantiles):
        np.testing.assert_array_equal(found.below[row], (exact < quantile).sum(axis=0))
        np.testing.assert_array_equal(found.above[row], (exact > quantile).sum(axis=0))


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        measure(np.zeros((0, 2)))
