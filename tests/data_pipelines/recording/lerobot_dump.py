"""Reads a dataset with the real `lerobot` package and dumps what it saw; run by the interpreter that has it.

Usage: python lerobot_dump.py DATASET OUT.npz [every]. Imports nothing of this project. Frames are dumped for the first,
every `every`-th and the last frame of each episode, by item access, decoder and all; columns for every frame.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def main(root: str, out: str, every: int) -> None:
    """Dumps the dataset at `root` into the file `out`."""
    dataset = LeRobotDataset(f"local/{Path(root).name}", root=root)
    ends = [int(end) for end in dataset.meta.episodes["dataset_to_index"]]
    starts = [int(start) for start in dataset.meta.episodes["dataset_from_index"]]
    chosen = sorted(
        {index for start, end in zip(starts, ends) for index in (*range(start, end, every), end - 1)}  # noqa: B905
    )
    items = [dataset[index] for index in chosen]
    columns = dataset.hf_dataset.with_format("numpy")[:]
    arrays = {f"column/{name}": np.asarray(values) for name, values in columns.items()}
    for key in dataset.meta.video_keys:
        arrays[f"frames/{key}"] = np.stack([item[key].numpy() for item in items])
    for key in ("observation.state", "action", "episode_index", "frame_index", "timestamp"):
        arrays[f"item/{key}"] = np.stack([item[key].numpy() for item in items])
    arrays |= {"mean_action": np.asarray(dataset.meta.stats["action"]["mean"])}
    np.savez(
        out,
        allow_pickle=False,
        chosen=chosen,
        tasks=[item["task"] for item in items],
        starts=starts,
        ends=ends,
        counts=[dataset.num_episodes, dataset.num_frames, dataset.fps, dataset.meta.total_tasks],
        version=version("lerobot"),
        backend=dataset.video_backend,
        **arrays,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
