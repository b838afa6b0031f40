"""Writes the LeRobot datasets beside this file with the real `lerobot` package.

Usage: python write_lerobot.py OUT (a folder that does not exist), by an interpreter that has `lerobot` 0.3.2 for
`lerobot_v2.1`, 0.4.4 for `lerobot_v3.0`. Imports nothing of this project. Two cameras are AV1 videos (the package's
default), one is PNG in the parquet. The tests repeat `expected_image` and `expected_values` in their own words.
"""

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

FPS = 10
SIZE = 64
LENGTHS = (7, 5, 9)
TASKS = ("lift the cube", "open the box", "lift the cube")
VECTOR = {"dtype": "float32"}
IMAGE = {"shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
FEATURES = {
    "observation.state": VECTOR | {"shape": (3,), "names": ["x", "y", "z"]},
    "action": VECTOR | {"shape": (2,), "names": ["dx", "dy"]},
    "observation.images.front": IMAGE | {"dtype": "video"},
    "observation.images.wrist": IMAGE | {"dtype": "video"},
    "observation.images.top": IMAGE | {"dtype": "image"},
}


def expected_image(camera: int, episode: int, step: int) -> np.ndarray:
    """A flat colour: red tells the step, green the episode, blue the camera."""
    return np.full((SIZE, SIZE, 3), (20 * step + 10, 60 * episode + 30, 80 * camera + 20), np.uint8)


def expected_values(episode: int, step: int) -> dict[str, np.ndarray]:
    """State and action of one step."""
    return {
        "observation.state": np.array([step, 10 * episode, 0.5], np.float32),
        "action": np.array([episode + step / 8, -step], np.float32),
    }


def main(out: str) -> None:
    """Writes the dataset into the folder `out`."""
    dataset = LeRobotDataset.create(f"local/{Path(out).name}", fps=FPS, features=FEATURES, root=out, robot_type="test")
    cameras = [key for key in FEATURES if "images" in key]
    has_v3 = not version("lerobot").startswith("0.3.")
    for episode, (length, task) in enumerate(zip(LENGTHS, TASKS, strict=True)):
        for step in range(length):
            images = {key: expected_image(camera, episode, step) for camera, key in enumerate(cameras)}
            frame = expected_values(episode, step) | images
            if has_v3:
                dataset.add_frame(frame | {"task": task})
            else:
                dataset.add_frame(frame, task=task)
        dataset.save_episode()
    if has_v3:
        dataset.finalize()
    # The PNG files the package encoded from; no version reads them again.
    shutil.rmtree(Path(out, "images"), ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
