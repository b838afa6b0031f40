"""Array-level evaluation: what is masked must not count, baselines must see only the true past."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from wamjax.batch import fake_batch
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import DataConfig, LayoutConfig, RunConfig
from wamjax.training import evaluate


@pytest.fixture
def config() -> RunConfig:
    views = (("observation.images.left", 0, 0, 32, 32), ("observation.images.right", 0, 32, 32, 32))
    data = DataConfig(canvas=(32, 64), views=views, action_dim=3, state_dim=2)
    return RunConfig(data=data, layout=LayoutConfig(num_blocks=3))


def test_action_error_of_masked_values_does_not_depend_on_them(config):
    batch = fake_batch(config, 6)
    mask = evaluate.action_mask(batch)
    predicted = np.zeros_like(batch.actions)
    spoiled = np.where(mask, predicted, 1e6)
    np.testing.assert_array_equal(
        evaluate.action_error(predicted, batch.actions, mask), evaluate.action_error(spoiled, batch.actions, mask)
    )


def test_action_error_with_a_constant_offset_is_that_offset(config):
    batch = dataclasses.replace(fake_batch(config, 4), has_action=np.array([True, True, False, True]))
    error = evaluate.action_error(batch.actions + 0.25, batch.actions, evaluate.action_mask(batch))
    np.testing.assert_allclose(error[[0, 1, 3]], 0.25, rtol=1e-6)
    assert np.isnan(error[2])  # action-free video has no action to be wrong about


def test_action_error_by_dim_averages_to_the_whole_when_nothing_is_masked(config):
    rng = np.random.default_rng(0)
    true, guess = rng.uniform(-1, 1, (2, 5, 24, 3))
    everything = np.ones(true.shape, bool)
    by_dim = evaluate.action_error_by_dim(guess, true, everything)
    np.testing.assert_allclose(by_dim.mean(axis=1), evaluate.action_error(guess, true, everything))


def test_repeat_last_action_equals_a_walk_through_the_blocks():
    rng = np.random.default_rng(1)
    before = rng.normal(size=(2, 3, 3))
    expected = np.empty((2, 12, 3))
    for row in range(2):
        for step in range(12):
            expected[row, step] = before[row, step // 4]
    np.testing.assert_array_equal(evaluate.repeat_last_action(before, actions_per_block=4), expected)


def test_copy_last_frame_shows_each_block_the_frame_before_it():
    video = np.arange(7, dtype=np.uint8)[None, :, None, None, None] * np.ones((1, 1, 2, 2, 3), np.uint8)
    copied = evaluate.copy_last_frame(video, frames_per_block=2)
    np.testing.assert_array_equal(copied[0, :, 0, 0, 0], [0, 0, 2, 2, 4, 4])


def test_visible_pixels_of_a_missing_view_are_left_out(config):
    pixels = evaluate.visible_pixels(config.data, np.array([[True, False], [True, True]]))
    assert pixels[0, :, :32].all()
    assert not pixels[0, :, 32:].any()
    assert pixels[1].all()


def test_psnr_of_known_noise_matches_its_definition():
    true = np.full((1, 2, 16, 16, 3), 100, np.uint8)
    guess = true.copy()
    guess[0, 0] += 10  # squared error 100
    guess[0, 1] += 20  # squared error 400
    scores = evaluate.score_frames(guess, true, np.ones((1, 2), bool), np.ones((1, 16, 16), bool))
    np.testing.assert_allclose(scores.psnr_by_frame()[0], 10 * np.log10(255**2 / np.array([100.0, 400.0])))
    np.testing.assert_allclose(scores.psnr()[0], 10 * np.log10(255**2 / 250.0))


def test_score_frames_of_identical_frames_is_finite_and_best():
    true = np.random.default_rng(2).integers(0, 256, (1, 1, 16, 16, 3), dtype=np.uint8)
    scores = evaluate.score_frames(true, true, np.ones((1, 1), bool), np.ones((1, 16, 16), bool))
    np.testing.assert_allclose(scores.psnr(), 10 * np.log10(255**2 * 12))
    np.testing.assert_allclose(scores.mean_ssim(), 1.0)


def test_score_frames_ignores_padding_frames_and_hidden_pixels():
    rng = np.random.default_rng(3)
    true = rng.integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    guess = rng.integers(0, 256, true.shape, dtype=np.uint8)
    frame_mask = np.array([[True, True, False], [False, False, False]])
    pixels = np.zeros((2, 16, 16), bool)
    pixels[:, :, :8] = True
    before = evaluate.score_frames(guess, true, frame_mask, pixels)
    spoiled = guess.copy()
    spoiled[0, 2] = 0
    spoiled[:, :, :, 12:] = 0  # beyond the 7 x 7 window's reach from column 7
    after = evaluate.score_frames(spoiled, true, frame_mask, pixels)
    np.testing.assert_array_equal(before.psnr(), after.psnr())
    np.testing.assert_array_equal(before.mean_ssim(), after.mean_ssim())
    assert np.isnan(before.psnr()[1])
    assert np.isnan(before.mean_ssim()[1])


def test_choose_donors_prefers_another_episode_of_the_task_at_the_same_time():
    episodes = np.array([0, 0, 1, 1, 2, 2])
    prompts = np.array([0, 0, 0, 0, 1, 1])
    starts = np.array([0, 40, 2, 44, 0, 40])
    donors = evaluate.choose_donors(episodes, prompts, starts)
    assert donors is not None
    np.testing.assert_array_equal(donors[:4], [2, 3, 0, 1])  # the task's other episode, nearest in time
    assert (episodes[donors] != episodes).all()  # episode 2 is alone in its task: any other episode


def test_choose_donors_spreads_over_equally_good_donors():
    episodes = np.arange(6)
    donors = evaluate.choose_donors(episodes, np.zeros(6, int), np.zeros(6, int))
    assert donors is not None
    assert sorted(donors) == list(range(6))


def test_choose_donors_of_one_episode_is_none():
    assert evaluate.choose_donors(np.zeros(3, int), np.zeros(3, int), np.arange(3)) is None


def test_with_actions_of_replaces_the_actions_and_their_masks_alone(config):
    own, other = fake_batch(config, 2, seed=1), fake_batch(config, 2, seed=2)
    mixed = evaluate.with_actions_of(own, other)
    taken = {"actions", "action_mask", "action_dim_mask", "has_action"}
    for field in dataclasses.fields(own):
        source = other if field.name in taken else own
        assert getattr(mixed, field.name) is getattr(source, field.name), field.name


def test_action_mask_of_geometry_has_every_action(config):
    assert evaluate.action_mask(fake_batch(config, 2)).shape == (2, derive_geometry(config).num_actions, 3)
