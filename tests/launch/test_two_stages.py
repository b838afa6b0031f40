"""``wamjax eval --inverse_dynamics`` on real, untrained checkpoints of both stages, and what it refuses."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from data_pipelines.mixtures.pipeline import open_data
from data_pipelines.mixtures.settings import resolve_mixture
from data_pipelines.normalisation import Normalisation, Scale
from data_pipelines.pipeline import NORMALISATION_FILE, build_pipeline
from experiments.campaigns import unipi
from launch import cli
from launch.backbone_evaluation import check_statistics
from launch.patch_latents import fill_patch_latents
from launch.workdir import WorkDir, config_hash, write_run
from tests.flops.steps import vary
from tests.launch.test_eval import write_dataset
from wamjax.config.bridge import from_config_dict
from wamjax.config.schema import RunConfig
from wamjax.errors import DataError
from wamjax.flops.chunk import count_two_stages
from wamjax.parallel.mesh import build_mesh
from wamjax.training.checkpoint import CheckpointStore
from wamjax.training.program import build_program


class Runs(NamedTuple):
    """Both stages, as training leaves them."""

    video: WorkDir
    inverse: WorkDir


def save(root: Path, name: str, config: RunConfig) -> WorkDir:
    """Writes a work directory with the initial parameters as checkpoint 3."""
    workdir = WorkDir(root / name)
    workdir.create()
    program = build_program(config, build_mesh(config.parallel, jax.devices()[:1]))
    write_run(workdir, config, step=0, facts={})
    store = CheckpointStore(workdir.checkpoints)
    store.save(3, program.init(), position=12, ledger={}, config_hash=config_hash(config))
    store.wait()
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("two_stages")
    data = {
        "path": str(write_dataset(root / "data")),
        "views": (("observation.images.front", 0, 0, 24, 48),),
        "state_dim": 2,
        "action_dim": 3,
        "frame_stride": 2,
        "validation_fraction": 0.5,
    }
    common = {
        "train": {"global_batch_size": 4},
        "evaluate": {"num_windows": 6, "bootstrap": 100, "rollout_tasks": ()},
    }
    video = vary(from_config_dict(unipi.get_config("video")), data=data, sampling={"steps": 2}, **common)
    video = vary(video, data={"latents": str(root / "latents")}, parallel={"fsdp": 1})
    fill_patch_latents(video, root / "latents")
    inverse = vary(from_config_dict(unipi.get_config("inverse_dynamics")), data=data, parallel={"fsdp": 1}, **common)
    inverse = vary(inverse, layout={"actions_per_block": 2})
    made = Runs(save(root, "video", video), save(root, "inverse", inverse))
    # A video run keeps those of its latents, which are of the same windows.
    build_pipeline(inverse, workdir=made.inverse.path).normalisation.save(made.video.path / NORMALISATION_FILE)
    return made


def words(runs: Runs, output: Path) -> list[str]:
    folders = [f"--workdir={runs.video.path}", f"--inverse_dynamics={runs.inverse.path}", f"--output={output}"]
    return ["eval", *folders]


@pytest.mark.slow
def test_two_runs_are_evaluated_as_one_system(runs: Runs, tmp_path: Path) -> None:
    assert cli.main(words(runs, tmp_path)) == 0
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["step"] == 3
    for name in ("action_error", "video_psnr"):
        assert found[name]["n"] == 4, name  # the held-out half of eight episodes
    assert found["action_sensitivity"] is found["video_sensitivity"] is None  # neither stage's loss is of both
    assert len(found["video_psnr_by_frame"]) == 4
    counted = count_two_stages(runs.video.read_config(), runs.inverse.read_config())
    assert found["chunk_flops"] == counted.total
    assert set(found["chunk_flops_by_stage"]) == {"observe", "video", "inverse_dynamics"}
    for name in ("report.html", "strip.png", "predicted.mp4"):
        assert (tmp_path / name).stat().st_size > 0, name


@pytest.mark.slow
def test_inverse_dynamics_alone_is_scored_on_true_frames(runs: Runs, tmp_path: Path) -> None:
    assert cli.main(["eval", f"--workdir={runs.inverse.path}", f"--output={tmp_path}"]) == 0
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["action_error"]["n"] == found["action_sensitivity"]["n"] == 4
    assert found["video_psnr"] is found["video_sensitivity"] is found["closed_loop"] is None
    assert "--inverse_dynamics" in found["closed_loop_reason"]
    assert (tmp_path / "report.html").stat().st_size > 0


@pytest.mark.slow
def test_runs_in_each_others_place_are_refused(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    swapped = Runs(video=runs.inverse, inverse=runs.video)
    assert cli.main(words(swapped, runs.video.path)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "formulation=frame_pairs of unipi_inverse_dynamics, the first of two stages" in error


def test_an_inverse_dynamics_run_opens_the_pixels_of_its_dataset() -> None:
    config = resolve_mixture(from_config_dict(unipi.get_config("inverse_dynamics")))
    sample = open_data(config, workdir=None).validation_windows().batch([0])
    assert sample.video.shape[1:4] == (unipi.FRAMES, *unipi.CANVAS)


def test_statistics_of_other_episodes_are_refused(tmp_path: Path) -> None:
    scale = Scale(low=(-0.5,), high=(0.5,), mean=(0.0,), clamped=(0.0,), outliers=(0,))
    used = Normalisation(actions=scale, state=scale, fingerprint="a", vectors="b", episodes=2, steps=9)
    path = tmp_path / NORMALISATION_FILE
    with pytest.raises(DataError, match="is missing"):
        check_statistics(path, used)
    used.save(path)
    check_statistics(path, used)
    wider = dataclasses.replace(used, actions=dataclasses.replace(scale, high=(0.6,)))
    with pytest.raises(DataError, match="scales the actions of the same dataset otherwise"):
        check_statistics(path, wider)
    check_statistics(path, dataclasses.replace(wider, fingerprint="another dataset"))
