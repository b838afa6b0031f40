from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines.pipeline import build_pipeline
from data_pipelines.sources.lerobot import LeRobotDataset
from data_pipelines.windows import WindowReader
from tests.data_pipelines.conftest import LENGTHS, TASKS, make_episode
from wamjax.config.schema import LayoutConfig, RunConfig

MakeConfig = Callable[..., RunConfig]

LAYOUTS = {
    "two-blocks": (LayoutConfig(num_blocks=2, frames_per_block=2, actions_per_block=4), 2),
    "action-per-step": (LayoutConfig(num_blocks=3, frames_per_block=1, actions_per_block=3), 3),
    "one-action": (LayoutConfig(num_blocks=1, frames_per_block=4, actions_per_block=1), 2),
    "state-history": (LayoutConfig(num_blocks=2, frames_per_block=2, actions_per_block=2, states_per_block=3), 2),
}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_samples_equal_a_loop_over_dataset_steps(dataset_path: Path, make_config: MakeConfig, name: str) -> None:
    layout, frame_stride = LAYOUTS[name]
    config = make_config(dataset_path, layout=layout, frame_stride=frame_stride, validation_fraction=0.5)
    pipeline = build_pipeline(config, workdir=None)
    windows = pipeline.validation_windows()
    batch = windows.batch(range(len(windows)))
    steps_per_block = layout.frames_per_block * frame_stride
    stride = steps_per_block // layout.actions_per_block
    for row in range(len(windows)):
        dataset, episode, start = batch.provenance[row].tolist()
        assert (dataset, episode, start) == (0, windows.episodes[row], windows.starts[row])
        length = LENGTHS[episode]
        recorded = make_episode(episode, length)
        assert pipeline.prompts[batch.prompt_id[row]] == TASKS[episode % 2]
        assert batch.has_action[row]

        action = state = 0
        for block in range(layout.num_blocks):
            block_start = start + block * steps_per_block
            for k in range(layout.actions_per_block):
                step = block_start + k * stride
                assert batch.action_mask[row, action] == (step < length)
                expected = recorded.actions[min(step, length - 1)]
                np.testing.assert_array_equal(
                    batch.actions[row, action, :2], pipeline.normalisation.normalise_actions(expected)
                )
                action += 1
            for back in reversed(range(layout.states_per_block)):
                step = block_start - back * stride
                assert step <= block_start
                is_real = 0 <= step < length
                np.testing.assert_array_equal(batch.state_mask[row, state], [is_real, is_real, is_real, False])
                expected = recorded.state[min(max(step, 0), length - 1)]
                np.testing.assert_array_equal(
                    batch.state[row, state, :3], pipeline.normalisation.normalise_state(expected)
                )
                state += 1
        assert (action, state) == (batch.actions.shape[1], batch.state.shape[1])

        for frame in range(1 + layout.num_blocks * layout.frames_per_block):
            step = start + frame * frame_stride
            assert batch.frame_mask[row, frame] == (step < length)
            for left, camera in ((0, "left"), (32, "right")):
                shown = batch.video[row, frame, :, left : left + 32]
                original = recorded.images[camera][min(step, length - 1)]
                # Neighbouring steps are 6 apart in red, episodes 25 in green, cameras 90 in blue.
                np.testing.assert_allclose(shown.mean((0, 1)), original.mean((0, 1)), atol=2.9)


def test_padded_dims_are_zero_and_masked(dataset_path: Path, make_config: MakeConfig) -> None:
    config = make_config(dataset_path, action_dim=5, state_dim=6)
    batch = build_pipeline(config, workdir=None).validation_windows().batch([0, 5])
    np.testing.assert_array_equal(batch.action_dim_mask, [[True, True, False, False, False]] * 2)
    assert (batch.actions[..., 2:] == 0).all()
    assert (batch.state[..., 3:] == 0).all()
    assert not batch.state_mask[..., 3:].any()


def test_camera_names_decide_the_place_on_the_canvas(dataset_path: Path, make_config: MakeConfig) -> None:
    swapped = (("observation.images.right", 0, 0, 32, 32), ("observation.images.left", 0, 32, 32, 32))
    usual = build_pipeline(make_config(dataset_path), workdir=None).validation_windows().batch([3])
    other = build_pipeline(make_config(dataset_path, views=swapped), workdir=None).validation_windows().batch([3])
    np.testing.assert_array_equal(usual.video[..., :32, :], other.video[..., 32:, :])


def test_windows_of_one_episode_are_decoded_in_one_pass(
    dataset_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = build_pipeline(make_config(dataset_path, decoded_frames_mib=0), workdir=None)
    reader = pipeline.training_windows()
    assert isinstance(reader, WindowReader)
    first, last = reader.windows.episodes[0], reader.windows.episodes[-1]
    assert first != last
    wanted = [3, len(reader) - 1, 0, 3, 1]
    alone = [reader[index] for index in wanted]
    passes: list[tuple[int, str]] = []
    read = LeRobotDataset._read

    def count(self: LeRobotDataset, camera: str, episode: int, *rest: Any) -> np.ndarray:
        passes.append((episode, camera))
        return read(self, camera, episode, *rest)

    monkeypatch.setattr(LeRobotDataset, "_read", count)
    jax.tree.map(np.testing.assert_array_equal, reader.read(wanted), alone)
    assert len(passes) == len(set(passes)) == 4  # two episodes, two cameras
