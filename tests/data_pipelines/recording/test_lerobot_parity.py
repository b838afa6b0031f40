"""The real `lerobot` package reads what we write: same frames, columns, prompts and episode boundaries.

lerobot pins old versions of packages this project needs new, so it runs in an interpreter of its own: set
WAMJAX_LEROBOT_PYTHON to one that has it (default: this one). PyAV decodes the reference frames independently.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from data_pipelines.recording.lerobot_writer import Episode, LeRobotWriter

pytestmark = pytest.mark.parity

PYTHON = os.environ.get("WAMJAX_LEROBOT_PYTHON", sys.executable)
COMMITTED = Path(__file__).parents[3] / "datasets/metaworld"


@pytest.fixture(scope="module")
def read_with_lerobot(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, npt.NDArray]]:
    """Reads a dataset in the other interpreter; skips where that has no lerobot."""
    cache = tmp_path_factory.mktemp("huggingface")
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    environment.pop("PYTHONPATH", None)
    probe = [PYTHON, "-c", "import lerobot.datasets.lerobot_dataset"]
    result = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
        pytest.skip(f"{PYTHON} cannot import lerobot ({reason}): set WAMJAX_LEROBOT_PYTHON to one that can")

    def read(root: Path, every: int) -> dict[str, npt.NDArray]:
        out = tmp_path_factory.mktemp("dump") / "dump.npz"
        command = [PYTHON, str(Path(__file__).with_name("lerobot_dump.py")), str(root), str(out), str(every)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-4000:]
        with np.load(out) as dump:
            arrays = dict(dump)
        print(f"lerobot {arrays['version']} ({arrays['backend']}): {len(arrays['chosen'])} items of {root.name}")
        return arrays

    return read


def all_frames(root: Path, key: str) -> npt.NDArray[np.uint8]:
    """All frames of a camera in dataset order, by PyAV alone."""
    frames = []
    for path in sorted((root / "videos" / key).glob("*/*.mp4")):
        with av.open(str(path)) as container:
            frames += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


def assert_same_frames(dump: dict[str, npt.NDArray], root: Path, key: str) -> None:
    expected = all_frames(root, key)[dump["chosen"]].astype(np.float64)
    seen = np.moveaxis(dump[f"frames/{key}"], 1, -1) * 255.0  # lerobot: float [c, h, w] in 0..1
    # Two decoders of one stream agree but for the rounding of their YUV to RGB conversions.
    difference = np.abs(seen - expected)
    assert difference.mean() < 1.0
    assert difference.max() <= 12.0


def assert_same_columns(dump: dict[str, npt.NDArray], root: Path) -> None:
    tables = [pq.read_table(path).to_pandas() for path in sorted(root.glob("data/*/*.parquet"))]
    for name in tables[0].columns:
        expected = np.concatenate([np.stack(table[name]) for table in tables])
        np.testing.assert_array_equal(dump[f"column/{name}"], expected, err_msg=name)
        if f"item/{name}" in dump:
            np.testing.assert_array_equal(dump[f"item/{name}"], expected[dump["chosen"]], err_msg=name)


def test_committed_set_is_read_alike(read_with_lerobot: Callable) -> None:
    dump = read_with_lerobot(COMMITTED, every=16)
    info = json.loads((COMMITTED / "meta/info.json").read_text())
    totals = [info["total_episodes"], info["total_frames"], info["fps"], info["total_tasks"]]
    np.testing.assert_array_equal(dump["counts"], totals)
    assert_same_columns(dump, COMMITTED)
    for camera in ("front", "side"):
        assert_same_frames(dump, COMMITTED, f"observation.images.{camera}")
    episodes = pq.read_table(COMMITTED / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert dump["ends"].tolist() == [row["dataset_to_index"] for row in episodes]
    prompts = [episodes[index]["tasks"][0] for index in dump["item/episode_index"]]
    assert dump["tasks"].tolist() == prompts
    np.testing.assert_allclose(dump["mean_action"], dump["column/action"].astype(np.float64).mean(0), rtol=1e-9)


def test_set_of_many_small_files_is_read_alike(
    read_with_lerobot: Callable, spec_of: Callable, episode_of: Callable, code_of: Callable, tmp_path: Path
) -> None:
    written: list[Episode] = [episode_of(index, length) for index, length in enumerate((20, 3, 31, 20, 1, 20))]
    with LeRobotWriter(tmp_path / "set", spec_of(data_file_bytes=2_500, video_file_bytes=9_000)) as writer:
        for episode in written:
            writer.add_episode(episode)
    assert len(list((tmp_path / "set/videos/observation.images.left").glob("*/*.mp4"))) > 1
    dump = read_with_lerobot(tmp_path / "set", every=1)
    assert dump["chosen"].tolist() == list(range(95))
    np.testing.assert_array_equal(dump["item/action"], np.concatenate([episode.actions for episode in written]))
    np.testing.assert_array_equal(dump["item/observation.state"], np.concatenate([e.state for e in written]))
    expected = [256 * index + n for index, episode in enumerate(written) for n in range(len(episode.actions))]
    for camera in ("left", "top"):
        seen = np.moveaxis(dump[f"frames/observation.images.{camera}"], 1, -1) * 255.0
        assert [code_of(image) for image in seen] == expected
