"""Making an index of a large dataset, and starting with it, against starting without one in the same run.

    python benchmarks/dataset_index.py [--episodes=10000] [--steps=130] [--num_workers=2]

The dataset is synthetic LeRobot v3.0: two cameras of 64x64 H.264 and two columns; a hundred episodes are written by the
recorder and repeated under other numbers. Reference of the start: the same first batch by a process that looks through
the dataset itself. Memory is that of processes which have read batches with 1/100 of the episodes and with all of them:
anonymous pages, and pages of mapped files, which the kernel takes back when it needs them. Both datasets have
more video files than the reader threads keep open: an open decoder holds a few MB, and each file has one until then.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags

from data_pipelines.pipeline import build_pipeline
from data_pipelines.recording.lerobot_format import DatasetSpec
from data_pipelines.recording.lerobot_writer import Episode, LeRobotWriter
from data_pipelines.recording.video_encoder import VideoSettings
from wamjax.config.schema import DataConfig, LayoutConfig, ModelConfig, RunConfig, TrainConfig

GROUP = 100  # episodes written once and repeated
_SIZE, _FPS = 64, 30
_CAMERAS = ("left", "right")
_READ_BATCHES = 200
_VIDEO_FILE_BYTES = 100_000  # a dozen episodes: the group has more files than one thread keeps open
_ROOT = Path(__file__).resolve().parents[1]


def write_group(path: Path, steps: int) -> None:
    """Writes ``GROUP`` episodes of ``steps`` steps with the recorder."""
    spec = DatasetSpec(
        cameras=_CAMERAS,
        height=_SIZE,
        width=_SIZE,
        state_names=[f"s{i}" for i in range(8)],
        action_names=[f"a{i}" for i in range(7)],
        video=VideoSettings(fps=_FPS, preset="ultrafast"),
        robot_type="synthetic",
        video_file_bytes=_VIDEO_FILE_BYTES,
    )
    rng = np.random.default_rng(0)
    with LeRobotWriter(path, spec) as writer:
        for number in range(GROUP):
            levels = (np.arange(steps) + number) % 256
            frames = np.broadcast_to(levels[:, None, None, None], (steps, _SIZE, _SIZE, 3)).astype(np.uint8)
            writer.add_episode(
                Episode(
                    images=dict.fromkeys(_CAMERAS, frames),
                    state=rng.normal(size=(steps, 8)).astype(np.float32),
                    actions=rng.normal(size=(steps, 7)).astype(np.float32),
                    success=np.ones(steps, np.bool_),
                    prompt=f"task {number % 10}",
                )
            )


def repeat_group(group: Path, path: Path, times: int) -> None:
    """Writes a dataset that has the files of ``group`` ``times`` times, as other episodes."""
    shutil.copytree(group / "meta", path / "meta")
    info = json.loads((path / "meta/info.json").read_text())
    frames = info["total_frames"]
    info |= {"total_episodes": GROUP * times, "total_frames": frames * times, "splits": {"train": f"0:{GROUP * times}"}}
    (path / "meta/info.json").write_text(json.dumps(info))
    (table_file,) = (path / "meta/episodes").rglob("*.parquet")
    episodes, (data_file,) = pq.read_table(table_file), (group / "data").rglob("*.parquet")
    data, tables = pq.read_table(data_file), []
    for turn in range(times):
        shifted = {
            "episode_index": GROUP * turn,
            "dataset_from_index": frames * turn,
            "dataset_to_index": frames * turn,
        }
        # One data file a turn, several videos of each camera.
        places = [name for name in episodes.column_names if name.endswith("/file_index")]
        files = {name: turn * (1 + max(episodes[name].to_pylist())) for name in places}
        table = episodes
        for name, amount in (shifted | files).items():
            table = _shift(table, name, amount)
        tables.append(table)
        target = path / f"data/chunk-000/file-{turn:03d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_shift(_shift(data, "episode_index", GROUP * turn), "index", frames * turn), target)
        for video in (group / "videos").rglob("*.mp4"):
            camera = video.relative_to(group / "videos").parts[0]
            number = int(video.stem.removeprefix("file-")) + files[f"videos/{camera}/file_index"]
            target = (path / video.relative_to(group)).with_name(f"file-{number:03d}.mp4")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(video, target)
    pq.write_table(pa.concat_tables(tables), table_file)


def _shift(table: pa.Table, name: str, amount: int) -> pa.Table:
    place = table.column_names.index(name)
    shifted = pa.array(table[name].to_numpy() + amount, table.schema.field(name).type)
    return table.set_column(place, table.schema.field(name), shifted)


def run_config(path: Path, index: str = "") -> RunConfig:
    """Returns a run of windows of five frames on the dataset."""
    return RunConfig(
        model=ModelConfig(patch=(1, 16, 16), max_prompts=16),
        layout=LayoutConfig(num_blocks=2, frames_per_block=2, actions_per_block=4),
        data=DataConfig(
            path=str(path),
            index=index,
            canvas=(_SIZE, 2 * _SIZE),
            views=tuple((f"observation.images.{c}", 0, _SIZE * i, _SIZE, _SIZE) for i, c in enumerate(_CAMERAS)),
            state_dim=8,
            action_dim=7,
            frame_stride=2,
            decoded_frames_mib=0,
        ),
        train=TrainConfig(global_batch_size=16),
    )


def make_index(path: Path, index: Path, num_workers: int) -> tuple[float, float]:
    """Runs ``wamjax data index``; returns the seconds it took and the processor time of all its processes."""
    experiment = index.with_suffix(".py")
    experiment.write_text(
        f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(_ROOT)!r})\n"
        f"from benchmarks.dataset_index import run_config\ndef get_config(): return run_config(Path({str(path)!r}))\n"
    )
    command = [sys.executable, "-m", "launch.cli", "data", "index", f"--config={experiment}", f"--out={index}"]
    started, cpu = time.perf_counter(), os.times()
    subprocess.run([*command, f"--num_workers={num_workers}"], check=True, cwd=_ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started, sum(os.times()[:4]) - sum(cpu[:4])


def read_first_batches(path: Path, index: str) -> None:
    """Reads batches in this process and prints the seconds to the first, the windows and the memory in bytes."""
    started = time.perf_counter()
    pipeline = build_pipeline(run_config(path, index), workdir=None)
    stream = pipeline.train_stream(0, 1)
    next(stream)
    first_s = time.perf_counter() - started
    for _ in range(_READ_BATCHES):
        next(stream)
    stream.close()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = {name: 1024 * int(status[name].split()[0]) for name in ("RssAnon", "RssFile")}
    print(json.dumps({"first_s": first_s, "windows": len(pipeline.index.train), **memory}))


def measure(path: Path, index: str) -> dict[str, float]:
    """Returns what a new process prints that reads ``path``."""
    command = [sys.executable, __file__, f"--read={path}", f"--index={index}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def report(rows: dict[int, dict[str, float]], without: dict[str, float]) -> None:
    """Prints the table."""
    print(f"{'episodes':>9s}{'windows':>11s}{'index s':>9s}{'CPU s':>8s}{'start s':>9s}{'anon MB':>9s}{'file MB':>9s}")
    for times, row in rows.items():
        print(
            f"{GROUP * times:9,}{int(row['windows']):11,}{row['wall_s']:9.1f}{row['cpu_s']:8.1f}{row['first_s']:9.2f}"
            f"{row['RssAnon'] / 1e6:9.0f}{row['RssFile'] / 1e6:9.0f}"
        )
    times, row = max(rows.items())
    print(
        f"{GROUP * times:9,} without an index: start {without['first_s']:.2f} s, {without['RssAnon'] / 1e6:.0f} MB; "
        f"with one {without['first_s'] / row['first_s']:.1f} x sooner"
    )


def main(argv: list[str]) -> None:
    """Measures and prints the table."""
    del argv
    values = flags.FLAGS
    if values.read:
        read_first_batches(Path(values.read), values.index)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_group(folder / "group", values.steps)
        rows = {}
        for times in (max(1, values.episodes // GROUP // 100), values.episodes // GROUP):
            path, index = folder / f"set-{times}", folder / f"index-{times}"
            repeat_group(folder / "group", path, times)
            wall_s, cpu_s = make_index(path, index, values.num_workers)
            rows[times] = {"wall_s": wall_s, "cpu_s": cpu_s, **measure(path, str(index))}
        without = measure(path, "")
        report(rows, without)
        print(
            f"{values.num_workers} processes, {os.cpu_count()} cores, {values.steps} steps per episode, "
            "two 64x64 cameras"
        )


if __name__ == "__main__":
    flags.DEFINE_integer("episodes", 10_000, "Episodes of the larger dataset.", lower_bound=GROUP)
    flags.DEFINE_integer("steps", 130, "Steps of an episode.", lower_bound=20)
    flags.DEFINE_integer("num_workers", 2, "Processes that make the index.", lower_bound=1)
    flags.DEFINE_string("read", "", "Used by the benchmark itself: read this dataset.")
    flags.DEFINE_string("index", "", "Used by the benchmark itself: with this index.")
    app.run(main)
