"""Tiny two-camera LeRobot v3.0 datasets whose frames, states and actions tell which episode and step they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.recording.lerobot_format import DatasetSpec
from data_pipelines.recording.lerobot_writer import Episode, LeRobotWriter
from data_pipelines.recording.video_encoder import VideoSettings
from wamjax.config.schema import DataConfig, LayoutConfig, ModelConfig, RunConfig, TrainConfig

SIZE = 32
FPS = 30
LENGTHS = (23, 31, 12, 40, 27, 9, 35, 18)
TASKS = ("reach the target", "close the drawer")


def write_dataset(
    path: Path,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    cameras: tuple[str, ...] = ("left", "right"),
    video_file_bytes: int = 200 * 2**20,
    data_file_bytes: int = 100 * 2**20,
) -> Path:
    """Writes one episode per length; episode e has task e mod 2."""
    spec = DatasetSpec(
        cameras=cameras,
        height=SIZE,
        width=SIZE,
        state_names=("x", "y", "z"),
        action_names=("dx", "dy"),
        video=VideoSettings(fps=FPS, keyframe_every=5),
        robot_type="test",
        video_file_bytes=video_file_bytes,
        data_file_bytes=data_file_bytes,
    )
    with LeRobotWriter(path, spec) as writer:
        for number, length in enumerate(lengths):
            writer.add_episode(make_episode(number, length, cameras))
    return path


def make_episode(number: int, length: int, cameras: tuple[str, ...]) -> Episode:
    steps = np.arange(length)
    rows, columns = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    images = {}
    for offset, camera in enumerate(cameras):
        images[camera] = np.stack(
            [
                np.stack(
                    [rows * 4 + 3 * step, columns * 4 + 20 * number, np.full_like(rows, 6 * step + 90 * offset)], -1
                )
                for step in steps
            ]
        ).astype(np.uint8)
    rng = np.random.default_rng(number)
    return Episode(
        images=images,
        state=np.stack([steps + 100 * number, rng.normal(size=length), np.ones(length)], -1).astype(np.float32),
        actions=np.stack([steps + 1000 * number, rng.uniform(-1, 1, length)], -1).astype(np.float32),
        success=np.zeros(length, np.bool_),
        prompt=TASKS[number % 2],
    )


def make_config(path: Path, **data: object) -> RunConfig:
    """A run on such a dataset: two blocks of two frames, four actions each; the smaller fields may be overridden."""
    fields: dict[str, object] = {
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
        layout=LayoutConfig(num_blocks=2, frames_per_block=2, actions_per_block=4),
        data=DataConfig(**{**fields, **data}),  # pyright: ignore[reportArgumentType] - overrides are the test's own
        train=TrainConfig(global_batch_size=8),
    )
