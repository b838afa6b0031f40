"""Tiny two-camera LeRobot v3.0 datasets whose frames, states and actions tell which episode and step they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.recording.lerobot_format import DatasetSpec
from data_pipelines.recording.lerobot_writer import Episode, LeRobotWriter
from data_pipelines.recording.video_encoder import VideoSettings
from wamjax.config.schema import DataConfig, LayoutConfig, ModelConfig, RunConfig, TrainConfig

SIZE = 32
FPS = 30
CAMERAS = ("left", "right")
LENGTHS = (23, 31, 12, 40, 27, 9, 35, 18)
TASKS = ("reach the target", "close the drawer")


def write_episodes(path: Path, *, lengths: tuple[int, ...] = LENGTHS, **limits: int) -> Path:
    """Writes one episode per length; episode e has task e mod 2. ``limits`` are file sizes of ``DatasetSpec``."""
    spec = DatasetSpec(
        cameras=CAMERAS,
        height=SIZE,
        width=SIZE,
        state_names=("x", "y", "z"),
        action_names=("dx", "dy"),
        video=VideoSettings(fps=FPS, keyframe_every=5),
        robot_type="test",
        **limits,
    )
    with LeRobotWriter(path, spec) as writer:
        for number, length in enumerate(lengths):
            writer.add_episode(make_episode(number, length))
    return path


def make_episode(number: int, length: int) -> Episode:
    """State is (100 e + step, noise, 1), actions are (1000 e + step, noise); every frame has a colour of its own."""
    steps = np.arange(length)
    rows, columns = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    # Red tells the step, green the episode, blue the camera; slow ramps, so that lossy video keeps them apart.
    images = {
        camera: np.stack(
            [
                np.stack([6 * t + rows // 8, 25 * number + columns // 8, np.full_like(rows, 60 + 90 * side)], -1)
                for t in steps
            ]
        ).astype(np.uint8)
        for side, camera in enumerate(CAMERAS)
    }
    rng = np.random.default_rng(number)
    return Episode(
        images=images,
        state=np.stack([steps + 100 * number, rng.normal(size=length), np.ones(length)], -1).astype(np.float32),
        actions=np.stack([steps + 1000 * number, rng.uniform(-1, 1, length)], -1).astype(np.float32),
        success=np.zeros(length, np.bool_),
        prompt=TASKS[number % 2],
    )


def run_config(path: Path, *, batch: int = 8, layout: LayoutConfig | None = None, **data: Any) -> RunConfig:
    """A run on such a dataset: two blocks of two frames with four actions each; ``data`` overrides fields."""
    fields: dict[str, Any] = {
        "path": str(path),
        "canvas": (32, 64),
        "views": (("observation.images.left", 0, 0, 32, 32), ("observation.images.right", 0, 32, 32, 32)),
        "state_dim": 4,
        "action_dim": 3,
        "frame_stride": 2,
        "validation_fraction": 0.25,
        "num_threads": 2,
        "prefetch": 8,
    }
    return RunConfig(
        model=ModelConfig(patch=(1, 16, 16)),
        layout=layout or LayoutConfig(num_blocks=2, frames_per_block=2, actions_per_block=4),
        data=DataConfig(**(fields | data)),
        train=TrainConfig(global_batch_size=batch),
    )


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound dataset; tests that damage one write their own."""
    return write_episodes(tmp_path_factory.mktemp("datasets") / "sound")


@pytest.fixture
def write_dataset() -> Callable[..., Path]:
    return write_episodes


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    return run_config
