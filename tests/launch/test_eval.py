"""``wamjax eval`` on a real, untrained checkpoint: products, keys, and what it says when something is missing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.pipeline import build_pipeline
from data_pipelines.recording.lerobot_format import DatasetSpec
from data_pipelines.recording.lerobot_writer import Episode, LeRobotWriter
from data_pipelines.recording.video_encoder import VideoSettings
from launch import cli
from launch.trained_state import fit_to_devices
from launch.workdir import WorkDir, config_hash, write_run
from wamjax.config.schema import (
    DataConfig,
    EvaluateConfig,
    LayoutConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from wamjax.parallel.mesh import build_mesh
from wamjax.training.checkpoint import CheckpointStore
from wamjax.training.program import build_program

REQUIRED = (
    "action_error",
    "action_error_mean_baseline",
    "action_error_repeat_baseline",
    "action_error_zero_baseline",
    "video_psnr",
    "video_psnr_copy",
    "video_ssim",
    "video_ssim_copy",
    "action_sensitivity",
    "video_sensitivity",
)


def write_dataset(path: Path) -> Path:
    """Eight short episodes of two tasks, seen by one camera."""
    spec = DatasetSpec(
        cameras=("front",),
        height=32,
        width=32,
        state_names=("x", "y"),
        action_names=("dx", "dy"),
        video=VideoSettings(fps=20, keyframe_every=5),
        robot_type="test",
    )
    rng = np.random.default_rng(0)
    with LeRobotWriter(path, spec) as writer:
        for number in range(8):
            length = 14 + number
            frames = rng.integers(0, 256, (1, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2) + np.zeros(
                (length, 1, 1, 1)
            )
            writer.add_episode(
                Episode(
                    images={"front": frames.astype(np.uint8)},
                    state=rng.normal(size=(length, 2)).astype(np.float32),
                    actions=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
                    success=np.zeros(length, np.bool_),
                    prompt=("reach the green target", "wave")[number % 2],
                )
            )
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    """A work directory as training leaves it, with the initial parameters as checkpoint 3."""
    root = tmp_path_factory.mktemp("eval")
    config = RunConfig(
        name="untrained",
        model=ModelConfig(width=16, num_layers=1, num_heads=2, ffn_width=16, time_width=16, action_hidden=16),
        layout=LayoutConfig(num_blocks=2, frames_per_block=2, actions_per_block=4),
        data=DataConfig(
            path=str(write_dataset(root / "data")),
            canvas=(32, 32),
            views=(("observation.images.front", 0, 0, 32, 32),),
            state_dim=2,
            action_dim=3,
            frame_stride=2,
            validation_fraction=0.5,
        ),
        parallel=ParallelConfig(data=1, fsdp=2),  # trained on two devices, evaluated on all that there are
        train=TrainConfig(global_batch_size=4),
        evaluate=EvaluateConfig(num_windows=6, solver_steps=2, bootstrap=100),
    )
    workdir = WorkDir(root / "run")
    workdir.create()
    build_pipeline(config, workdir=workdir.path)
    program = build_program(config, build_mesh(config.parallel, jax.devices()[:2]))
    write_run(workdir, config, step=0, facts={})
    store = CheckpointStore(workdir.checkpoints)
    store.save(3, program.init(), position=12, ledger={}, config_hash=config_hash(config))
    store.wait()
    return workdir


@pytest.fixture(scope="module")
def evaluation(workdir: WorkDir) -> dict:
    """The products of one evaluation, in a folder of their own."""
    assert cli.main(["eval", f"--workdir={workdir.path}", f"--output={workdir.path / 'once'}"]) == 0
    return json.loads((workdir.path / "once" / "eval.json").read_text())


def test_eval_json_holds_every_figure_with_interval_and_count(evaluation):
    for name in REQUIRED:
        figure = evaluation[name]
        assert set(figure) == {"mean", "low", "high", "n"}, name
        assert figure["low"] <= figure["mean"] <= figure["high"], name
        assert figure["n"] == 4, name  # the held-out half of eight episodes
    assert evaluation["step"] == 3
    assert evaluation["windows"] == 6
    assert set(evaluation["by_task"]) == {"reach the green target", "wave"}
    assert len(evaluation["action_error_by_dim"]) == 3
    assert evaluation["action_error_by_dim"][2]["action_error"] is None  # the padded dim
    assert len(evaluation["video_psnr_by_frame"]) == 4


def test_eval_without_rollout_tasks_says_so(evaluation):
    assert evaluation["closed_loop"] is None
    assert "rollout_tasks" in evaluation["closed_loop_reason"]


def test_eval_writes_every_product(workdir, evaluation):
    for name in ("eval.json", "report.html", "strip.png", "predicted.mp4"):
        assert (workdir.path / "once" / name).stat().st_size > 0, name
    assert "untrained" in (workdir.path / "once" / "report.html").read_text()


@pytest.mark.slow
def test_eval_again_gives_the_same_figures(workdir, evaluation, capsys):
    assert cli.main(["eval", f"--workdir={workdir.path}", f"--output={workdir.path / 'twice'}", "--step=3"]) == 0
    again = json.loads((workdir.path / "twice" / "eval.json").read_text())
    assert again == evaluation
    assert "held-out episodes" in capsys.readouterr().out


def test_eval_of_a_missing_step_names_those_there_are(workdir, capsys):
    assert cli.main(["eval", f"--workdir={workdir.path}", "--step=7"]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no checkpoint of step 7; it has [3]" in error


def test_eval_before_the_first_checkpoint_says_to_train(workdir, tmp_path, capsys):
    for name in ("run.json", "normalisation.json", "prompts.json"):
        (tmp_path / name).write_bytes((workdir.path / name).read_bytes())
    assert cli.main(["eval", f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no checkpoint yet" in error


@pytest.mark.parametrize(
    ("parallel", "batch", "devices", "expected_batch"),
    [
        (ParallelConfig(fsdp=-1), 32, 8, 32),
        (ParallelConfig(fsdp=8), 32, 1, 32),  # trained on eight devices, evaluated on one
        (ParallelConfig(data=2, fsdp=2), 4, 6, 6),  # neither the mesh nor the batch divides over six
        (ParallelConfig(fsdp=1, context=-1), 3, 8, 3),  # the batch is not split at all
    ],
)
def test_fit_to_devices_always_gives_a_mesh_and_a_batch_that_divide(parallel, batch, devices, expected_batch):
    config = RunConfig(parallel=parallel, train=TrainConfig(global_batch_size=batch))
    fitted = fit_to_devices(config, devices)
    assert fitted.train.global_batch_size == expected_batch
    sizes = dataclasses.asdict(fitted.parallel)
    assert -1 in sizes.values() or np.prod(list(sizes.values())) == devices
