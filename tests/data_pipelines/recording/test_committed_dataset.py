"""The recorded set that the quickstart trains on is whole, small and what its README says."""

import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[3] / "datasets/metaworld"


def test_committed_set_is_below_six_megabytes() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 6e6


def test_committed_set_has_the_episodes_its_readme_lists() -> None:
    episodes = pq.read_table(ROOT / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    readme = (ROOT / "README.md").read_text()
    for prompt in ("reach the green target", "press the red button from above"):
        lengths = [row["length"] for row in episodes if row["tasks"] == [prompt]]
        assert f"| {prompt} | {len(lengths)} | {sum(lengths):,} |" in readme
    assert json.loads((ROOT / "meta/info.json").read_text())["total_episodes"] == len(episodes) == 170


@pytest.mark.parametrize("camera", ["front", "side"])
def test_committed_videos_hold_one_frame_for_each_row_and_frequent_keyframes(camera: str) -> None:
    rows = pq.read_metadata(ROOT / "data/chunk-000/file-000.parquet").num_rows
    path = ROOT / f"videos/observation.images.{camera}/chunk-000/file-000.mp4"
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
        times = [float(packet.pts * packet.time_base) for packet in packets if packet.pts is not None]
    np.testing.assert_allclose(times, np.arange(rows) / 80, atol=1e-6)
    keyframes = np.flatnonzero([packet.is_keyframe for packet in packets])
    assert np.diff([*keyframes, rows]).max() <= 15
    episodes = pq.read_table(ROOT / "meta/episodes/chunk-000/file-000.parquet", columns=["dataset_from_index"])
    assert set(episodes["dataset_from_index"].to_pylist()) <= set(keyframes.tolist())


def test_committed_actions_are_in_range_and_every_episode_ends_solved() -> None:
    table = pq.read_table(ROOT / "data/chunk-000/file-000.parquet").to_pandas()
    actions = np.stack(table["action"])
    assert np.isfinite(actions).all()
    assert np.abs(actions).max() <= 1.0
    assert np.isfinite(np.stack(table["observation.state"])).all()
    assert table.groupby("episode_index")["next.success"].any().all()
