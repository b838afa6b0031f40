"""Open-loop evaluation: which windows are scored, against what, and that figures follow the predictions."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines.normalisation import Scale
from launch.open_loop import Model, evaluate_open_loop, score_batch, spread_windows
from wamjax.batch import WamBatch, fake_batch
from wamjax.config.schema import DataConfig, EvaluateConfig, LayoutConfig, RunConfig, TrainConfig
from wamjax.training.intervals import Figure

VIEWS = (("observation.images.front", 0, 0, 32, 32),)
CONFIG = RunConfig(
    data=DataConfig(canvas=(32, 32), views=VIEWS, action_dim=3, state_dim=2),
    layout=LayoutConfig(num_blocks=2),
    train=TrainConfig(global_batch_size=4),
    evaluate=EvaluateConfig(num_windows=10, bootstrap=200),
)
SCALE = Scale(low=(-2.0, -1.0), high=(2.0, 3.0), mean=(0.5, 1.0), clamped=(0.0, 0.0), outliers=(0, 0))
PROMPTS = ("reach", "press")


class FakeWindows:
    """30 windows of 5 episodes, all content real; two tasks."""

    def __init__(self) -> None:
        self.episodes = np.repeat(np.array([3, 5, 8, 13, 21]), 6)
        self.starts = np.tile(np.arange(6) * 8, 5)
        content = fake_batch(CONFIG, 30)
        masks = {
            field.name: np.ones_like(getattr(content, field.name))
            for field in dataclasses.fields(content)
            if field.name.endswith("_mask") or field.name == "has_action"
        }
        dims = np.tile(np.array([True, True, False]), (30, 1))  # the embodiment has two of the three dims
        provenance = np.stack([np.zeros(30), self.episodes, self.starts], axis=1).astype(np.int32)
        prompts = (self.episodes > 8).astype(np.int32)
        self.content = dataclasses.replace(
            content, **{**masks, "action_dim_mask": dims}, provenance=provenance, prompt_id=prompts
        )

    def __len__(self) -> int:
        return 30

    def batch(self, indices) -> WamBatch:
        return jax.tree.map(lambda rows: rows[np.asarray(indices)], self.content)


@dataclasses.dataclass
class FakePrediction:
    video: np.ndarray | None
    actions: np.ndarray


def perfect(batch: WamBatch, key: jax.Array) -> FakePrediction:
    return FakePrediction(video=batch.video[:, 1:], actions=batch.actions)


def losses_when_looking(windows: FakeWindows):
    """Losses of a policy that looks: the action loss is higher when what it is shown is of another window."""
    acted_in = {row.tobytes(): i for i, row in enumerate(windows.content.actions)}
    seen_in = {row.tobytes(): i for i, row in enumerate(windows.content.video)}

    def losses(batch: WamBatch, observed: WamBatch, draw: int) -> dict[str, np.ndarray]:
        acted = np.array([acted_in[row.tobytes()] for row in batch.actions])
        seen = np.array([seen_in[row.tobytes()] for row in observed.video])
        return {"video": np.full(len(seen), 2.0 + draw), "action": np.where(acted == seen, 1.0, 1.5) + draw}

    return losses


def known(figure: Figure | None) -> dict[str, Any]:
    assert figure is not None
    return figure.to_json()


def evaluate(model: Model, windows: FakeWindows, config: RunConfig = CONFIG):
    return evaluate_open_loop(
        windows,
        model,
        config=config,
        prompts=PROMPTS,
        scale=SCALE,
        action_before=lambda episode, start: np.zeros((CONFIG.layout.num_blocks, 3), np.float32),
    )


@pytest.mark.parametrize("count", [1, 3, 5, 7, 10, 30, 100])
def test_spread_windows_shares_evenly_and_stays_within_the_episodes(count):
    episodes = np.repeat(np.arange(5), [6, 1, 9, 6, 8])
    chosen = spread_windows(episodes, count)
    assert len(np.unique(chosen)) == len(chosen) <= count
    assert (np.diff(chosen) > 0).all()
    _, shares = np.unique(episodes[chosen], return_counts=True)
    if count >= 5:
        assert len(shares) == 5  # every episode is heard
        lengths = np.bincount(episodes)
        assert max(shares) - min(np.where(shares == lengths, max(shares), shares)) <= 1
    else:
        assert len(chosen) == count


def test_spread_windows_reaches_from_the_first_to_the_last_window_of_an_episode():
    np.testing.assert_array_equal(spread_windows(np.zeros(11, int), 3), [0, 5, 10])


def test_evaluate_with_a_perfect_model_beats_every_baseline():
    windows = FakeWindows()
    result = evaluate(Model(predict=perfect, sample_losses=losses_when_looking(windows)), windows)
    assert result.num_windows == 10
    assert known(result.figures["action_error"])["mean"] == 0.0
    assert known(result.figures["video_ssim"])["mean"] == pytest.approx(1.0)
    assert all(known(gain)["low"] > 0 for gain in result.gains.values())
    assert set(result.by_task) == set(PROMPTS)
    assert known(result.figures["action_error"])["n"] == 5


def test_evaluate_sees_that_a_policy_looks_and_that_its_video_ignores_actions():
    windows = FakeWindows()
    result = evaluate(Model(predict=perfect, sample_losses=losses_when_looking(windows)), windows)
    # Every window was given a donor's observation, and the draw's own level cancels: exactly 0.5 everywhere.
    assert known(result.figures["action_sensitivity"]) == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 5}
    assert known(result.figures["video_sensitivity"])["mean"] == 0.0


def test_evaluate_with_a_full_and_a_partial_last_batch_gives_the_same_figures():
    windows = FakeWindows()
    model = Model(predict=perfect, sample_losses=losses_when_looking(windows))
    whole = evaluate(model, windows, dataclasses.replace(CONFIG, train=TrainConfig(global_batch_size=10)))
    parts = evaluate(model, windows)  # batches of 4: the last one holds 2 windows and 2 repeats
    assert whole.figures == parts.figures
    assert whole.by_dim == parts.by_dim


def test_evaluate_of_one_episode_leaves_sensitivity_unmeasured():
    windows = FakeWindows()
    windows.episodes = np.full(30, 3)
    windows.content = dataclasses.replace(windows.content, prompt_id=np.zeros(30, np.int32))
    result = evaluate(Model(predict=perfect, sample_losses=losses_when_looking(windows)), windows)
    assert result.figures["action_sensitivity"] is None
    assert known(result.figures["action_error"])["low"] is None


def test_evaluate_without_video_scores_actions_alone():
    windows = FakeWindows()
    looking = losses_when_looking(windows)

    def of_actions(batch: WamBatch, observed: WamBatch, draw: int) -> dict[str, np.ndarray]:
        return {"action": looking(batch, observed, draw)["action"]}

    def blind(batch: WamBatch, key: jax.Array) -> Any:
        return dataclasses.replace(perfect(batch, key), video=None)

    result = evaluate(Model(predict=blind, sample_losses=of_actions), windows)
    assert known(result.figures["action_error"])["mean"] == 0
    assert known(result.figures["action_sensitivity"])["mean"] > 0
    for name in ("video_psnr", "video_psnr_copy", "video_ssim", "video_sensitivity"):
        assert result.figures[name] is None
    assert result.examples[0].frames.given.all()  # nothing was predicted


def test_score_batch_of_the_baselines_predicting_themselves_is_zero():
    batch = FakeWindows().batch(np.arange(4))
    mean = np.zeros(3, np.float32)
    mean[:2] = SCALE.normalise(np.array(SCALE.mean))
    still = dataclasses.replace(batch, actions=np.broadcast_to(mean, batch.actions.shape).copy())
    values = score_batch(
        still, batch.video[:, 1:], still.actions, before=np.tile(mean, (4, 2, 1)), config=CONFIG, scale=SCALE
    )
    for name in ("action_error", "action_error_mean_baseline", "action_error_repeat_baseline"):
        np.testing.assert_array_equal(values[name], 0.0)
    zero = SCALE.normalise(np.zeros(2))
    np.testing.assert_allclose(values["action_error_zero_baseline"], np.abs(mean[:2] - zero).mean(), rtol=1e-6)


def test_examples_show_given_and_predicted_frames_and_hide_masked_actions():
    windows = FakeWindows()
    result = evaluate(Model(predict=perfect, sample_losses=losses_when_looking(windows)), windows)
    example = result.examples[0]
    np.testing.assert_array_equal(example.frames.given, [True, False, False, False, False])
    np.testing.assert_array_equal(example.frames.predicted, example.frames.true)
    assert np.isnan(example.true_actions[:, 2]).all()
    assert np.isfinite(example.predicted_actions[:, :2]).all()
