"""What a user can get wrong, through the command line: one line that names the fix, the right status, nothing written.

Damage to checkpoints, and runs that stop half-way, are in the tests of the train and checkpoint commands.
"""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch import cli

ROOT = Path(__file__).resolve().parents[2]
DATASET = ROOT / "datasets/metaworld"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A copy of the committed episodes that a test may damage."""
    return Path(shutil.copytree(DATASET, tmp_path / "episodes"))


def train(tmp_path: Path, *arguments: str, experiment: str = "experiments/quickstart.py") -> int:
    return cli.main(["train", f"--config={ROOT / experiment}", f"--workdir={tmp_path / 'run'}", *arguments])


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("wamjax train: ")
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.num_step=3", ["config.train.num_step", "did you mean config.train.num_steps?"]),
        ("train.num_steps=3.5", ["config.train.num_steps", "whole number"]),
        ("train.num_steps=0", ["config.train.num_steps", "more than 0"]),
        ("objective.weighting=gausian", ["did you mean gaussian?"]),
        ("parallel.fsdp=3", ["fsdp=3", "there are 8", "config.parallel"]),
        ("layout.actions_per_block=3", ["config.layout.actions_per_block=3", "config.data.frame_stride"]),
        ("parallel.attention_kernel=splash", ["attention_kernel=splash", "tpu", "cpu"]),
        ("layout.formulation=video", ["config.layout.formulation=video", "config.backbone"]),
        ("actions.modules=category", ["config.actions.modules=category", "none"]),
        ("model.patch=1,7,7", ["config.model.patch", "config.data.canvas"]),
        ("data.views=()", ["config.data.views is empty", "observation.images.front"]),
        ("data.action_dim=2", ["config.data.action_dim=2", "4 dims"]),
    ],
)
def test_wrong_configuration_is_refused_before_anything_runs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    words: list[str],
) -> None:
    monkeypatch.chdir(ROOT)
    assert train(tmp_path, f"--config.{override}") == 2
    error = only_line(capsys)
    for word in words:
        assert word in error
    assert not (tmp_path / "run/checkpoints").exists()


def truncate_parquet(dataset: Path) -> None:
    for path in (dataset / "data").rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-100])


def truncate_video(dataset: Path) -> None:
    for path in (dataset / "videos").rglob("*.mp4"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def put_nan(dataset: Path) -> None:
    for path in (dataset / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        values = np.stack(table["action"].to_numpy())
        values[::40, 1] = np.nan
        column = table.schema.get_field_index("action")
        field = table.schema.field(column)
        pq.write_table(table.set_column(column, field, pa.array(values.tolist(), field.type)), path)


def declare_longer_episodes(dataset: Path) -> None:
    # The tables promise more frames than the videos hold: what an mp4 shorter than its episodes looks like.
    for path in (dataset / "meta/episodes").rglob("*.parquet"):
        table = pq.read_table(path)
        column = table.schema.get_field_index("length")
        field = table.schema.field(column)
        longer = pa.array([length + 5 for length in table["length"].to_pylist()], field.type)
        pq.write_table(table.set_column(column, field, longer), path)


def drop_feature(dataset: Path) -> None:
    info = json.loads((dataset / "meta/info.json").read_text())
    del info["features"]["observation.state"]
    (dataset / "meta/info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, ["does not exist", "config.data.path"]),
        (lambda dataset: (dataset / "meta/info.json").write_text("{"), ["info.json", "not JSON"]),
        (truncate_parquet, ["parquet"]),
        (truncate_video, [".mp4"]),
        (declare_longer_episodes, ["episode"]),
        (drop_feature, ["observation.state"]),
        (put_nan, ["action", "finite"]),
    ],
    ids=["missing", "info", "parquet", "mp4", "lengths", "feature", "nan"],
)
def test_damaged_dataset_is_refused_before_training_naming_the_damage(
    tmp_path: Path,
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    words: list[str],
) -> None:
    damage(dataset)
    assert train(tmp_path, f"--config.data.path={dataset}") == 3
    error = only_line(capsys)
    assert str(dataset) in error
    for word in words:
        assert word in error
    assert not (tmp_path / "run/checkpoints").exists()


def test_missing_experiment_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, experiment="experiments/nowhere.py") == 2
    assert "experiments/nowhere.py" in only_line(capsys)
    assert not (tmp_path / "run").exists()


def test_raising_experiment_file_is_refused_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = tmp_path / "broken.py"
    experiment.write_text("def get_config():\n    return 1 / 0\n")
    assert train(tmp_path, experiment=str(experiment)) == 2
    error = only_line(capsys)
    assert "broken.py, line 2: ZeroDivisionError" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ("pretrain/wan_1_3b_480p", "cached latents"),
        ("systems/pi05_droid", "trains config.vla, which reads cached samples"),
        ("systems/gr1", "trains config.gpt, which reads cached samples"),
    ],
)
def test_model_of_cached_samples_without_them_is_refused(
    experiment: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, experiment=f"experiments/{experiment}.py") == 2
    assert words in only_line(capsys)
    assert not (tmp_path / "run").exists()


def test_locked_work_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run/LOCK", "w") as lock:
        lock.write("process 12345 on elsewhere")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert train(tmp_path) == 2
    error = only_line(capsys)
    assert "process 12345 on elsewhere" in error
    assert "--workdir" in error


def test_cpu_devices_after_jax_started_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jax.devices()
    assert train(tmp_path, "--cpu_devices=3") == 2
    assert "--cpu_devices=3 came too late" in only_line(capsys)


def test_work_directory_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("not a folder")
    assert train(tmp_path) == 2
    assert "--workdir=" in only_line(capsys)


@pytest.mark.parametrize("verb", ["eval", "checkpoint"])
def test_verbs_that_need_a_run_refuse_a_folder_without_one(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"eval": ["eval", f"--workdir={tmp_path}"], "checkpoint": ["checkpoint", "inspect", str(tmp_path)]}
    assert cli.main(arguments[verb]) in (2, 3)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path) in error
