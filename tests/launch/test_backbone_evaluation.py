"""Driving policies through recorded windows: what they are shown when, whatever their chunks span."""

from typing import Any

import jax
import numpy as np
import pytest

from launch.canvas_policy import CanvasPolicy
from launch.policy_driver import predict_windows
from tests.flops.steps import vary
from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig
from wamjax.sampling.policy import Chunk

PIXELS = vary(
    RunConfig(), layout={"num_blocks": 5, "frames_per_block": 2, "actions_per_block": 3}, data={"canvas": (4, 2)}
)


class Recorder:
    """Acts with chunks of given numbers of blocks, and remembers what it was shown."""

    def __init__(self, *blocks: int, has_video: bool = True) -> None:
        self.blocks, self.has_video = list(blocks), has_video
        self.shown: list[tuple[list[int], int]] = []

    def reset(self, prompt_id: Any) -> None:
        self.prompt_id = prompt_id

    def observe(self, frames: Any, state: Any) -> None:
        self.shown.append((frames[0, :, 0, 0, 0].tolist(), int(state[0, 0])))

    def act(self, key: jax.Array) -> Chunk:
        count, turn = self.blocks.pop(0), len(self.shown)
        actions = np.full((2, 3 * count, 4), turn, np.float32)
        return Chunk(actions, np.full((2, 2 * count, 4, 2, 3), turn, np.uint8) if self.has_video else None)


def window() -> WamBatch:
    frames = np.broadcast_to(np.arange(11, dtype=np.uint8)[None, :, None, None, None], (2, 11, 4, 2, 3))
    state = np.broadcast_to(np.arange(5, dtype=np.float32)[None, :, None], (2, 5, 4))
    return WamBatch(video=frames, state=state, state_mask=np.ones(state.shape, bool), prompt_id=np.zeros(2, np.int32),
                    provenance=np.zeros((2, 3), np.int32))  # fmt: skip


@pytest.mark.parametrize(
    ("blocks", "shown"),
    [
        ((1, 1, 1, 1, 1), [([0], 0), ([1, 2], 1), ([3, 4], 2), ([5, 6], 3), ([7, 8], 4)]),
        ((1, 2, 2), [([0], 0), ([1, 2], 1), ([3, 4, 5, 6], 3)]),  # as of alternating, whose first chunk is shorter
    ],
)
def test_policy_is_shown_what_happened_during_its_chunk(
    blocks: tuple[int, ...], shown: list[tuple[list[int], int]]
) -> None:
    policy = Recorder(*blocks)
    predicted = predict_windows(policy, PIXELS, window(), jax.random.key(0))
    assert policy.shown == shown
    turns = np.repeat(np.arange(1, len(blocks) + 1), blocks)
    np.testing.assert_array_equal(predicted.actions[0, :, 0], np.repeat(turns, 3))
    assert predicted.video is not None
    np.testing.assert_array_equal(predicted.video[0, :, 0, 0, 0], np.repeat(turns, 2))


def test_policy_without_video_predicts_none() -> None:
    assert predict_windows(Recorder(5, has_video=False), PIXELS, window(), jax.random.key(0)).video is None


def test_cameras_of_the_newest_frame_are_shown_and_their_pictures_laid_on_the_canvas() -> None:
    class Cameras(Recorder):
        def observe(self, frames: Any, state: Any) -> None:
            self.seen = frames

        def act(self, key: jax.Array) -> Chunk:
            return Chunk(np.zeros((2, 3, 4)), self.seen)

    canvas = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 2, 3), dtype=np.uint8)
    inner = Cameras()
    policy = CanvasPolicy(inner, 2)
    policy.reset(np.zeros(2, np.int32))
    policy.observe(canvas, np.zeros((2, 4)))
    np.testing.assert_array_equal(inner.seen[:, 0], canvas[:, -1, :2])
    np.testing.assert_array_equal(inner.seen[:, 1], canvas[:, -1, 2:])
    np.testing.assert_array_equal(policy.act(jax.random.key(0)).video[:, 0], canvas[:, -1])
