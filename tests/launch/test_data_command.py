import base64
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipelines.recording.record import RecordConfig
from launch import cli, data_command

DATASET = Path(__file__).resolve().parents[2] / "datasets/metaworld"
GOLDEN = Path(__file__).resolve().parents[1] / "data_pipelines/golden/lerobot_v2.1"


def test_inspect_agrees_with_the_tables_of_the_committed_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "inspect", str(DATASET), f"--json={tmp_path / 'i.json'}"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "i.json").read_text())
    episodes = pq.read_table(DATASET / "meta/episodes").to_pydict()
    assert found["episodes"] == len(episodes["episode_index"])
    assert found["frames"] == sum(episodes["length"])
    assert sum(task["episodes"] for task in found["tasks"].values()) == found["episodes"]
    assert (found["quarantined"], found["quarantined_count"]) == ([], 0)
    for camera in found["cameras"]:
        assert camera in printed


def test_inspect_names_the_episodes_of_a_truncated_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "set"
    shutil.copytree(DATASET, copy)
    video = sorted(copy.rglob("*.mp4"))[0]
    video.write_bytes(video.read_bytes()[:1000])
    assert cli.main(["data", "inspect", str(copy)]) == 0
    printed = capsys.readouterr().out
    assert "quarantined: 0 of" not in printed
    assert video.name in printed


def test_inspection_page_shows_frames_of_every_camera_and_histograms(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert cli.main(["data", "inspect", str(GOLDEN), f"--html={page}"]) == 0
    text = page.read_text()
    pictures = [Image.open(io.BytesIO(base64.b64decode(part))) for part in re.findall(r"base64,([^\"]+)", text)]
    assert len(pictures) == 3 + 2 + 2  # cameras, then two episodes with their curves, then action and state
    assert "episode 0: lift the cube" in text
    sheet = np.asarray(pictures[2])  # the PNG camera: every tile has the colour of its episode and step
    assert sheet.shape == (3 * 128, 6 * 128, 3)
    np.testing.assert_array_equal(sheet[64::128, 64], [[10, 30, 180], [10, 90, 180], [10, 150, 180]])
    np.testing.assert_array_equal(sheet[64, 5 * 128 + 64], [20 * 6 + 10, 30, 180])
    assert "quarantined: 0 of 3 episodes" in text


def test_stats_agree_with_the_columns(tmp_path: Path) -> None:
    assert cli.main(["data", "stats", str(DATASET), f"--json={tmp_path / 's.json'}"]) == 0
    stats = json.loads((tmp_path / "s.json").read_text())["features"]
    table = pq.read_table(DATASET / "data")
    for name in ("action", "observation.state"):
        values = np.stack(table[name].to_numpy())
        np.testing.assert_allclose(stats[name]["mean"], values.mean(axis=0, dtype=np.float64), rtol=1e-6)
        np.testing.assert_allclose(stats[name]["q99"], np.quantile(values.astype(np.float64), 0.99, axis=0), rtol=1e-6)


def test_index_of_a_folder_is_made_once_and_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["data", "index", str(GOLDEN), f"--out={tmp_path / 'index'}", "--num_workers=1"]
    sizes = ["--config.data.state_dim=8", "--config.data.action_dim=8", "--config.layout.frames_per_block=1"]
    blocks = ["--config.layout.actions_per_block=1", "--config.data.frame_stride=1"]
    assert cli.main([*arguments, *sizes, *blocks, f"--json={tmp_path / 'found.json'}"]) == 0
    first = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert f"training: {found['counts']['train']['windows']:,} windows of" in first
    assert f"complete, fingerprint {found['fingerprint']}" in first
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("*.npy")}
    assert cli.main([*arguments, *sizes, *blocks]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("*.npy")} == made
    assert cli.main([*arguments, *sizes, *blocks, "--config.data.window_stride=3"]) == 2
    assert "config.data.window_stride=1 and this run has 3" in capsys.readouterr().err


def test_record_has_one_documented_flag_for_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "record", "--help"]) == 0
    described = capsys.readouterr().out
    texts = data_command._attribute_texts(RecordConfig)
    for field in dataclasses.fields(RecordConfig):
        assert f"\n  --{field.name}" in described
        assert texts[field.name]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["inspect"], 2, "expected the folder of one dataset"),
        (["inspect", "nowhere"], 3, "nowhere does not exist"),
        (["inspect", str(GOLDEN), "--json=/nowhere/at/all.json"], 2, "no folder /nowhere/at"),
        (["inspect", str(GOLDEN), "--html=/nowhere/at/all.html"], 2, "no folder /nowhere/at"),
        (["stats", "a", "b"], 2, "got 2"),
        (["index", "--out=x"], 2, "expected the folder of one dataset or --config, got neither"),
        (["index", "nowhere", "--out=x"], 3, "nowhere does not exist"),
        (["index", str(DATASET), "--out=x", "--source=a"], 2, "--source=a: one dataset at a time"),
        (["record"], 2, "out"),
        (["record", "--out=x", "--episodes=many"], 2, "--episodes=many"),
        (["record", "--out=x", "--tasks=reach-v4"], 2, "reach-v4"),
        (["record", "--out=x", "--tasks=reach-v3,", "button"], 2, "button"),
    ],
)
def test_user_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    assert cli.main(["data", *arguments]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
