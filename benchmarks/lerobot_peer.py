"""Reads windows with the real ``lerobot`` package; run by the interpreter that has it, for ``lerobot_reading.py``.

Takes a JSON request on standard input, prints its processor time per sample as JSON. Imports nothing of this project.
"""

import json
import sys
import time
from importlib.metadata import version

import torch
import torchvision
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def main() -> None:
    """Reads the requested windows and prints samples per second of processor time."""
    request = json.load(sys.stdin)
    torch.set_num_threads(1)
    backend = "pyav" if hasattr(torchvision.io, "VideoReader") else "torchcodec"
    plain = LeRobotDataset("local/set", root=request["root"])
    offsets = [request["stride"] * i / plain.fps for i in range(request["frames"])]
    dataset = LeRobotDataset(
        "local/set",
        root=request["root"],
        delta_timestamps=dict.fromkeys(plain.meta.video_keys, offsets),
        video_backend=backend,
    )
    first = [int(index) for index in dataset.meta.episodes["dataset_from_index"]]
    indices = [first[episode] + start for episode, start in request["windows"]]
    item = dataset[indices[0]]
    for key in plain.meta.video_keys:
        assert item[key].shape[0] == request["frames"], item[key].shape
    started = time.process_time()
    for index in indices:
        dataset[index]
    rate = len(indices) / (time.process_time() - started)
    how = f"lerobot {version('lerobot')}, {backend}"
    print(json.dumps({"samples_per_core_s": rate, "how": how}))


if __name__ == "__main__":
    main()
