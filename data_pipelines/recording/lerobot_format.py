"""The LeRobot v3.0 layout: file names, feature declarations, column types, info.json.

Owns the constants and shapes of the format; does not own any writing. Source: huggingface/lerobot,
src/lerobot/datasets/{utils,lerobot_dataset,compute_stats}.py, codebase version v3.0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from data_pipelines.recording.statistics import STATISTICS
from data_pipelines.recording.video_encoder import VideoSettings

CODEBASE_VERSION = "v3.0"
CHUNKS_SIZE = 1000  # files per chunk folder
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
TASKS_PATH = "meta/tasks.parquet"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"

STATE = "observation.state"
ACTION = "action"
# Beyond the required columns; the names are those of LeRobot's own simulated sets (for example lerobot/pusht).
DONE = "next.done"
SUCCESS = "next.success"


def image_key(camera: str) -> str:
    """Feature name of a camera."""
    return f"observation.images.{camera}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What all episodes of a dataset share.

    Attributes:
        cameras: Camera names; feature `observation.images.<camera>` each.
        height: Of the images, pixels.
        width: Of the images, pixels.
        state_names: One name for each dimension of `observation.state`.
        action_names: One name for each dimension of `action`.
        video: Frame rate and encoding.
        robot_type: Free text of info.json.
        data_file_bytes: Size at which a new parquet file is begun.
        video_file_bytes: Size at which a new mp4 file is begun.
    """

    cameras: Sequence[str]
    height: int
    width: int
    state_names: Sequence[str]
    action_names: Sequence[str]
    video: VideoSettings
    robot_type: str
    data_file_bytes: int = 100 * 2**20
    video_file_bytes: int = 200 * 2**20


def feature_table(spec: DatasetSpec) -> dict[str, dict[str, Any]]:
    """The `features` object of info.json, in column order."""
    video_info = {
        "video.height": spec.height,
        "video.width": spec.width,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": spec.video.fps,
        "video.channels": 3,
        "has_audio": False,
    }
    features: dict[str, dict[str, Any]] = {
        image_key(camera): {
            "dtype": "video",
            "shape": [spec.height, spec.width, 3],
            "names": ["height", "width", "channels"],
            "info": video_info,
        }
        for camera in spec.cameras
    }
    features[STATE] = _vector_feature(spec.state_names)
    features[ACTION] = _vector_feature(spec.action_names)
    features[DONE] = _scalar_feature("bool")
    features[SUCCESS] = _scalar_feature("bool")
    features["timestamp"] = _scalar_feature("float32")
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = _scalar_feature("int64")
    return features


def frame_schema(spec: DatasetSpec) -> pa.Schema:
    """Arrow schema of the data files: every feature but the videos."""
    columns = []
    for name, feature in feature_table(spec).items():
        if feature["dtype"] == "video":
            continue
        value_type = pa.type_for_alias(feature["dtype"])
        (length,) = feature["shape"]
        is_vector = name in (STATE, ACTION)
        columns.append(pa.field(name, pa.list_(value_type, length) if is_vector else value_type))
    return pa.schema(columns)


def episode_schema(spec: DatasetSpec) -> pa.Schema:
    """Arrow schema of the episode table: places in the files, then the statistics of every feature."""
    columns = [
        pa.field("episode_index", pa.int64()),
        pa.field("tasks", pa.list_(pa.string())),
        pa.field("length", pa.int64()),
        pa.field("data/chunk_index", pa.int64()),
        pa.field("data/file_index", pa.int64()),
        pa.field("dataset_from_index", pa.int64()),
        pa.field("dataset_to_index", pa.int64()),
    ]
    for camera in spec.cameras:
        prefix = f"videos/{image_key(camera)}"
        columns += [pa.field(f"{prefix}/{name}", pa.int64()) for name in ("chunk_index", "file_index")]
        columns += [pa.field(f"{prefix}/{name}", pa.float64()) for name in ("from_timestamp", "to_timestamp")]
    columns += [pa.field(f"meta/episodes/{name}", pa.int64()) for name in ("chunk_index", "file_index")]
    for name, feature in feature_table(spec).items():
        vector = pa.list_(pa.float64())
        value_type = pa.list_(pa.list_(vector)) if feature["dtype"] == "video" else vector
        for statistic in STATISTICS:
            columns.append(
                pa.field(f"stats/{name}/{statistic}", pa.list_(pa.int64()) if statistic == "count" else value_type)
            )
    return pa.schema(columns)


def info_object(spec: DatasetSpec, *, num_episodes: int, num_frames: int, num_tasks: int) -> dict[str, Any]:
    """The content of info.json."""
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": spec.robot_type,
        "total_episodes": num_episodes,
        "total_frames": num_frames,
        "total_tasks": num_tasks,
        "chunks_size": CHUNKS_SIZE,
        "data_files_size_in_mb": spec.data_file_bytes // 2**20,
        "video_files_size_in_mb": spec.video_file_bytes // 2**20,
        "fps": spec.video.fps,
        "splits": {"train": f"0:{num_episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": feature_table(spec),
    }


def _vector_feature(names: Sequence[str]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(names)], "names": list(names)}


def _scalar_feature(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [1], "names": None}
