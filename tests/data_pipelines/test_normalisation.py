import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.normalisation import Normalisation, Scale
from data_pipelines.sources.lerobot import LeRobotDataset
from data_pipelines.vector_statistics import compute_normalisation
from data_pipelines.vectors import build_layout
from tests.data_pipelines.conftest import LENGTHS, make_episode
from wamjax.config.schema import DataConfig, RunConfig
from wamjax.errors import DataError


def compute(
    path: Path, kind: Any, episodes: tuple[int, ...] = (0, 3, 4), source: LeRobotDataset | None = None
) -> Normalisation:
    source = source or LeRobotDataset(path, cameras=(), columns=("action", "observation.state"))
    config = RunConfig(data=DataConfig(normalisation=kind))
    layout = build_layout(config.data, lambda key: source.column(key, 0).shape[1])
    return compute_normalisation(source, episodes, layout, config, fingerprint="abc")


@pytest.fixture
def normalisation(dataset_path: Path) -> Normalisation:
    return compute(dataset_path, "quantile")


def sorted_quantile(values: np.ndarray, share: float) -> float:
    """Linear interpolation between order statistics, written out."""
    ordered = sorted(values.tolist())
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def test_statistics_cover_the_given_episodes_and_no_others(normalisation: Normalisation) -> None:
    actions = np.concatenate([make_episode(i, LENGTHS[i]).actions for i in (0, 3, 4)])
    for dim in range(2):
        assert normalisation.actions.low[dim] == pytest.approx(sorted_quantile(actions[:, dim], 0.01))
        assert normalisation.actions.high[dim] == pytest.approx(sorted_quantile(actions[:, dim], 0.99))
        assert normalisation.actions.mean[dim] == pytest.approx(sum(actions[:, dim].tolist()) / len(actions))
    assert (normalisation.episodes, normalisation.steps) == (3, len(actions))


def test_quantiles_map_to_the_ends_and_beyond_is_clamped() -> None:
    scale = Scale(low=(-2.0,), high=(6.0,), mean=(0.0,), clamped=(0.0,), outliers=(0,))
    values = np.array([[-9.0], [-2.0], [2.0], [6.0], [7.0]])
    np.testing.assert_allclose(scale.normalise(values)[:, 0], [-1, -1, 0, 1, 1])


def test_denormalise_inverts_normalise_within_the_quantiles() -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(size=5) * 10
    high = low + rng.uniform(0.1, 20, size=5)
    scale = Scale(low=tuple(low), high=tuple(high), mean=tuple(low), clamped=(0.0,) * 5, outliers=(0,) * 5)
    values = rng.uniform(low, high, size=(3, 7, 5))
    padded = np.concatenate([scale.normalise(values), np.zeros((3, 7, 2), np.float32)], axis=-1)
    np.testing.assert_allclose(scale.denormalise(padded), values, rtol=1e-5, atol=1e-5)


def test_mean_and_deviation_map_to_zero_and_one_and_nothing_is_clamped(dataset_path: Path) -> None:
    scale = compute(dataset_path, "mean_std").actions
    actions = np.concatenate([make_episode(i, LENGTHS[i]).actions for i in (0, 3, 4)]).astype(np.float64)
    scaled = scale.normalise(actions)
    np.testing.assert_allclose(scaled, (actions - actions.mean(axis=0)) / actions.std(axis=0), atol=1e-5)
    np.testing.assert_allclose(scale.denormalise(scale.normalise(1e3 * actions)), 1e3 * actions, rtol=1e-4, atol=1e-2)


def test_ends_map_to_minus_one_and_one(dataset_path: Path) -> None:
    scale = compute(dataset_path, "min_max").actions
    actions = np.concatenate([make_episode(i, LENGTHS[i]).actions for i in (0, 3, 4)])
    scaled = scale.normalise(actions)
    np.testing.assert_allclose([scaled.min(axis=0), scaled.max(axis=0)], [[-1, -1], [1, 1]], atol=1e-6)
    assert scale.clamped == (0.0, 0.0)


def test_values_far_outside_are_counted_and_the_first_is_named(
    dataset_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = LeRobotDataset(dataset_path, cameras=(), columns=("action", "observation.state"))
    column = LeRobotDataset.column

    def slipped(self: LeRobotDataset, key: str, episode: int) -> np.ndarray:
        values = column(self, key, episode).copy()
        if key == "action" and episode == 3:
            values[5:7, 1] = 500.0
        return values

    monkeypatch.setattr(LeRobotDataset, "column", slipped)
    # Two of 222 values: fewer than what lies beyond the 99 % quantile.
    normalisation = compute(dataset_path, "quantile", (0, 1, 2, 3, 4, 5, 6, 7), source)
    assert normalisation.actions.outliers == (0, 2)
    assert normalisation.state.outliers == (0, 0, 0)
    assert "action 'action', slot 1: 2 values lie beyond" in caplog.text
    assert "the first (500) in episode 3" in caplog.text


@pytest.mark.parametrize("constant", [0.0, 1.0, -250.0])
def test_dim_without_spread_maps_to_zero_and_back(constant: float) -> None:
    scale = Scale(low=(constant,), high=(constant,), mean=(constant,), clamped=(0.0,), outliers=(0,))
    np.testing.assert_array_equal(scale.normalise(np.full((4, 1), constant)), np.zeros((4, 1)))
    np.testing.assert_allclose(scale.denormalise(np.zeros((4, 1))), constant)
    assert np.isfinite(scale.normalise(np.array([[constant + 1e9]]))).all()


def test_share_of_clamped_values_is_recorded(normalisation: Normalisation) -> None:
    actions = np.concatenate([make_episode(i, LENGTHS[i]).actions for i in (0, 3, 4)]).astype(np.float64)
    outside = [
        np.mean([not low <= value <= high for value in column])
        for column, low, high in zip(actions.T, normalisation.actions.low, normalisation.actions.high, strict=True)
    ]
    np.testing.assert_allclose(normalisation.actions.clamped, outside)
    assert 0 < outside[0] < 0.05


def test_saved_normalisation_loads_equal(normalisation: Normalisation, tmp_path: Path) -> None:
    normalisation.save(tmp_path / "normalisation.json")
    assert Normalisation.load(tmp_path / "normalisation.json") == normalisation
    assert [path.name for path in tmp_path.iterdir()] == ["normalisation.json"]


def test_edited_normalisation_is_refused(normalisation: Normalisation, tmp_path: Path) -> None:
    path = tmp_path / "normalisation.json"
    normalisation.save(path)
    content = json.loads(path.read_text())
    content["actions"]["high"][0] += 1e-9
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"normalisation\.json does not match its digest"):
        Normalisation.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"digest": "x", "actions": 3}'])
def test_unreadable_normalisation_is_refused_on_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "normalisation.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"normalisation\.json cannot be read") as caught:
        Normalisation.load(path)
    assert "\n" not in str(caught.value)
