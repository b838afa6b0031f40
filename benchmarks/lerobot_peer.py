"""Reads windows with the real ``lerobot`` package; run by the interpreter that has it, for ``lerobot_reading.py``.

Takes a JSON request on standard input, prints its processor time per sample as JSON. Imports nothing of this project.
The package's PyAV backend reads through ``torchvision.io.VideoReader``, which torchvision dropped: where it is gone, a
reader of the same interface on PyAV stands in for it, and the answer says so.
"""

import json
import sys
import time
from importlib.metadata import version

import av
import torch
import torchvision
from lerobot.datasets.lerobot_dataset import LeRobotDataset


class AvReader:
    """Frames of a video from a time on: ``{"pts": seconds, "data": uint8 [3, h, w]}`` each."""

    def __init__(self, path: str, stream: str) -> None:
        """Opens the file; ``stream`` is always ``video``."""
        del stream
        self.container = av.open(path)
        self._frames = self.container.decode(video=0)

    def seek(self, seconds: float, keyframes_only: bool = False) -> None:
        """Goes to the keyframe at or before ``seconds``."""
        del keyframes_only
        self.container.seek(int(seconds * av.time_base), any_frame=False, backward=True)
        self._frames = self.container.decode(video=0)

    def __iter__(self) -> "AvReader":
        return self

    def __next__(self) -> dict[str, object]:
        frame = next(self._frames)
        data = torch.as_tensor(frame.to_rgb().to_ndarray()).permute(2, 0, 1)
        return {"pts": frame.time, "data": data}


def main() -> None:
    """Reads the requested windows and prints samples per second of processor time."""
    request = json.load(sys.stdin)
    torch.set_num_threads(1)
    has_reader = hasattr(torchvision.io, "VideoReader")
    if not has_reader:
        torchvision.io.VideoReader = AvReader
        torchvision.set_video_backend = lambda name: None
    plain = LeRobotDataset("local/set", root=request["root"])
    offsets = [request["stride"] * i / plain.fps for i in range(request["frames"])]
    dataset = LeRobotDataset(
        "local/set",
        root=request["root"],
        delta_timestamps=dict.fromkeys(plain.meta.video_keys, offsets),
        video_backend="pyav",
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
    how = f"lerobot {version('lerobot')}, PyAV{'' if has_reader else ' (reader stood in)'}"
    print(json.dumps({"samples_per_core_s": rate, "how": how}))


if __name__ == "__main__":
    main()
