"""Samples per core-second of reading LeRobot v3.0, against bare PyAV and the ``lerobot`` package on the same windows.

    python benchmarks/lerobot_reading.py [--windows=40]

Two cameras of 256x256 H.264 with a keyframe every 15 frames; windows of 33 frames, three steps apart; every window is
decoded when it is read. Time is that of the processor, of all threads: what else the machine does counts little. The
package runs in a process of its own, in the interpreter that WAMJAX_LEROBOT_PYTHON names (default: this one), with its
PyAV backend where its torchvision still has a video reader (up to 0.23), else with torchcodec, its default. Without the
package its row is left out and said so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import app, flags
from av.video.reformatter import VideoReformatter

from data_pipelines.pipeline import Pipeline, build_pipeline
from data_pipelines.recording.lerobot_format import DatasetSpec
from data_pipelines.recording.lerobot_writer import Episode, LeRobotWriter
from data_pipelines.recording.video_encoder import VideoSettings
from data_pipelines.sources.lerobot import LeRobotDataset
from wamjax.config.schema import DataConfig, LayoutConfig, ModelConfig, RunConfig

_SIZE, _FPS, _STRIDE, _FRAMES = 256, 30, 3, 33
_CAMERAS = ("left", "right")
_EPISODES, _STEPS = 6, 160
_PEER = Path(__file__).with_name("lerobot_peer.py")


def write_dataset(path: Path) -> None:
    """Records episodes of a moving texture with noise."""
    spec = DatasetSpec(
        cameras=_CAMERAS,
        height=_SIZE,
        width=_SIZE,
        state_names=("x", "y"),
        action_names=("dx", "dy"),
        video=VideoSettings(fps=_FPS, keyframe_every=15, preset="fast"),
        robot_type="synthetic",
    )
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (2 * _SIZE // 16, 2 * _SIZE // 16, 3))
    texture = np.kron(coarse, np.ones((16, 16, 1)))
    with LeRobotWriter(path, spec) as writer:
        for number in range(_EPISODES):
            frames = []
            for step in range(_STEPS):
                top, left = (step + 20 * number) % _SIZE, (2 * step) % _SIZE
                noise = rng.normal(0, 3, (_SIZE, _SIZE, 3))
                frames.append(np.clip(texture[top : top + _SIZE, left : left + _SIZE] + noise, 0, 255))
            writer.add_episode(
                Episode(
                    images=dict.fromkeys(_CAMERAS, np.stack(frames).astype(np.uint8)),
                    state=rng.normal(size=(_STEPS, 2)).astype(np.float32),
                    actions=rng.normal(size=(_STEPS, 2)).astype(np.float32),
                    success=np.ones(_STEPS, np.bool_),
                    prompt="move",
                )
            )


def run_config(path: Path) -> RunConfig:
    """Returns a run that reads the windows: both cameras side by side, as large as they are."""
    views = tuple((f"observation.images.{c}", 0, _SIZE * i, _SIZE, _SIZE) for i, c in enumerate(_CAMERAS))
    return RunConfig(
        model=ModelConfig(patch=(1, 16, 16)),
        layout=LayoutConfig(num_blocks=4, frames_per_block=(_FRAMES - 1) // 4, actions_per_block=24),
        data=DataConfig(
            path=str(path),
            canvas=(_SIZE, 2 * _SIZE),
            views=views,
            state_dim=2,
            action_dim=2,
            frame_stride=_STRIDE,
            decoded_frames_mib=0,
        ),
    )


def choose_windows(pipeline: Pipeline, count: int) -> np.ndarray:
    """Returns rows (window, episode, start) in random order, all within their episodes."""
    windows = pipeline.index.train
    whole = np.flatnonzero(np.asarray(windows.starts) + _STRIDE * (_FRAMES - 1) < _STEPS)
    chosen = np.random.default_rng(0).choice(whole, count, replace=len(whole) < count)
    return np.stack([chosen, windows.episodes[chosen], windows.starts[chosen]], axis=1)


def decode_bare(dataset: LeRobotDataset, containers: dict[Path, Any], episode: int, start: int) -> None:
    """Decodes the frames of one window with PyAV alone: seek, decode on, convert those that are wanted."""
    for camera in _CAMERAS:
        path, first = dataset.locate(f"observation.images.{camera}", episode)
        if path not in containers:
            container = av.open(str(path))
            container.streams.video[0].codec_context.thread_count = 1
            containers[path] = (container, VideoReformatter())
        container, reformatter = containers[path]
        stream = container.streams.video[0]
        wanted = {first + start + _STRIDE * i for i in range(_FRAMES)}
        container.seek(round((first + start) / _FPS / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            number = round(frame.pts * stream.time_base * _FPS)
            if number in wanted:
                reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                wanted.remove(number)
            if not wanted:
                break


def measure(read: Callable[[np.ndarray], object], windows: np.ndarray) -> float:
    """Returns samples per second of processor time, after one window that opens files."""
    read(windows[0])
    started = time.process_time()
    for window in windows:
        read(window)
    return len(windows) / (time.process_time() - started)


def measure_peer(path: Path, windows: np.ndarray) -> tuple[float | None, str]:
    """Returns the package's samples per core-second and how it decoded, or None and why there is no figure."""
    python = os.environ.get("WAMJAX_LEROBOT_PYTHON", sys.executable)
    request = json.dumps({"root": str(path), "windows": windows[:, 1:].tolist(), "frames": _FRAMES, "stride": _STRIDE})
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [python, str(_PEER)], input=request, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["no message"])[-1]
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["samples_per_core_s"], answer["how"]


def main(argv: list[str]) -> None:
    """Measures and prints the table."""
    del argv
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "set"
        write_dataset(path)
        pipeline, dataset = build_pipeline(run_config(path), workdir=None), LeRobotDataset(path)
        windows, reader = choose_windows(pipeline, flags.FLAGS.windows), pipeline.training_windows()
        containers: dict[Path, Any] = {}
        rows = {"bare": [], "ours": []}
        for _ in range(flags.FLAGS.repeats):  # in turns: the machine's mood then meets both
            rows["bare"].append(measure(lambda w: decode_bare(dataset, containers, int(w[1]), int(w[2])), windows))
            rows["ours"].append(measure(lambda w: reader[int(w[0])], windows))
        bare, ours = max(rows["bare"]), max(rows["ours"])
        peer, how = measure_peer(path, windows)
    print(f"{len(windows)} windows of {_FRAMES} frames, stride {_STRIDE}, two cameras {_SIZE}x{_SIZE}, H.264, g = 15")
    print(f"bare PyAV {av.__version__:22s}{bare:8.2f} samples per core-second")
    print(f"wamjax{'':26s}{ours:8.2f} samples per core-second, {ours / bare:.2f} x bare PyAV")
    if peer is None:
        print(f"lerobot: no figure ({how}); name an interpreter that has it in WAMJAX_LEROBOT_PYTHON")
    else:
        print(f"{how:32s}{peer:8.2f} samples per core-second; wamjax reads {ours / peer:.2f} x as many")


if __name__ == "__main__":
    flags.DEFINE_integer("windows", 40, "Windows read for each row.", lower_bound=2)
    flags.DEFINE_integer("repeats", 3, "Turns; the best of each row counts.", lower_bound=1)
    app.run(main)
