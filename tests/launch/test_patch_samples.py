"""Samples of every formulation from the quickstart's windows, against the dataset's own columns and pictures."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipelines.latents.manifest import Manifest
from data_pipelines.latents.samples import return_to_go
from data_pipelines.pipeline import Pipeline, build_pipeline
from data_pipelines.stream import stack_samples
from data_pipelines.text.policy_prompts import PolicyPrompts, write_policy_prompt
from launch.experiment import load_experiment
from launch.patch_latents import LEDGER_FOLDER, PatchEncoders, fill_patch_latents, patch_samples
from tests.flops.steps import vary
from tests.launch.test_eval import write_dataset
from wamjax.batch import WamBatch, batch_spec
from wamjax.config.pixel_windows import pixel_windows
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.campaign import account_precompute

EXPERIMENT = "experiments/sweeps/formulations.py"
EPISODE = 3


def member(name: str) -> RunConfig:
    return load_experiment(f"{EXPERIMENT}:{name}")


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    """Recorded states and actions of one episode, straight from the file."""
    table = pq.read_table(next(Path("datasets/metaworld/data").rglob("*.parquet")))
    rows = np.asarray(table["episode_index"]) == EPISODE
    return {key: np.stack(table[key].to_numpy())[rows] for key in ("observation.state", "action")}


def read(config: RunConfig, *places: int) -> tuple[Pipeline, WamBatch, WamBatch]:
    """The windows of ``EPISODE`` at some places among its own, and the samples they become."""
    pipeline = build_pipeline(pixel_windows(config), workdir=None)
    table = pipeline.index.train
    rows = np.flatnonzero(table.episodes == EPISODE)
    assert len(rows), "the episode is trained on"
    windows = stack_samples(pipeline.reader(table).read([int(rows[place]) for place in places]))
    return pipeline, windows, patch_samples(config, pipeline)(windows)


def check_spec(config: RunConfig, samples: WamBatch) -> None:
    wanted = batch_spec(config, samples.size)
    for field in dataclasses.fields(WamBatch):
        spec, found = getattr(wanted, field.name), getattr(samples, field.name)
        assert (spec is None) == (found is None), field.name
        if spec is not None:
            assert (found.shape, found.dtype) == (spec.shape, spec.dtype), field.name


def normalised(pipeline: Pipeline, rows: np.ndarray) -> np.ndarray:
    return np.asarray(pipeline.normalisation.actions.normalise(rows))


def pictures_beside(starts: Any, offset: int, places: tuple[int, ...]) -> np.ndarray:
    """Both cameras' pictures ``offset`` steps after ``starts``, off the canvas on which they lie beside each other."""
    config = vary(member("fast_wam"), data={"frame_stride": 4}, clip={"num_frames": 3})
    _, windows, _ = read(config, *places)
    np.testing.assert_array_equal(windows.provenance[:, 2], starts)
    frame = windows.video[:, offset // 4]
    return np.stack([frame[:, :, :24], frame[:, :, 24:]], axis=1)


def test_actions_of_a_latent_frame_lead_to_it(columns: dict[str, np.ndarray]) -> None:
    config = member("lingbot_va")
    pipeline, windows, samples = read(config, 0, 2)
    check_spec(config, samples)
    for row, start in enumerate(windows.provenance[:, 2]):
        assert not samples.action_mask[row, :4].any()
        assert not samples.actions[row, :4].any()
        real = samples.action_mask[row, 4:]
        own = normalised(pipeline, columns["action"][start : start + 12])
        np.testing.assert_allclose(samples.actions[row, 4:][: len(own)], own, atol=1e-6)
        assert real.sum() == len(own)
    assert samples.latents.shape[1] == 4


def test_pictures_states_and_value_of_now_and_later(columns: dict[str, np.ndarray]) -> None:
    config = member("cosmos_policy")
    pipeline, windows, samples = read(config, 0, 3)
    check_spec(config, samples)
    length = len(columns["action"])
    returns = np.zeros(length)
    returns[-1] = 1.0
    for step in range(length - 2, -1, -1):
        returns[step] = 0.99 * returns[step + 1]
    for row, start in enumerate(windows.provenance[:, 2]):
        np.testing.assert_allclose(samples.value[row], 2 * returns[start + 8] - 1, atol=1e-6)
        states = np.asarray(pipeline.normalisation.state.normalise(columns["observation.state"][[start, start + 8]]))
        np.testing.assert_allclose(samples.state[row], states, atol=1e-6)
        own = normalised(pipeline, columns["action"][start : start + 8])
        np.testing.assert_allclose(samples.actions[row], own, atol=1e-6)
    for half, offset in enumerate((0, 8)):
        shown = pictures_beside(windows.provenance[:, 2], offset, (0, 3))
        for view in range(2):
            # A latent is a patch of 6 x 6 pixels, rows first, scaled to [-1, 1].
            latent = np.asarray(samples.latents[:, 2 * half + view], np.float32)
            patch = latent[:, 1, 2].reshape(2, 6, 6, 3) * 127.5 + 127.5
            np.testing.assert_allclose(patch, shown[:, view, 6:12, 12:18], atol=1.0)  # bfloat16
    assert (samples.question == 0).all()


def test_state_is_written_in_the_prompt_and_pictures_are_the_cameras(columns: dict[str, np.ndarray]) -> None:
    config = member("pi05")
    pipeline, windows, samples = read(config, 0, 1)
    check_spec(config, samples)
    for row, start in enumerate(windows.provenance[:, 2]):
        state = np.asarray(pipeline.normalisation.state.normalise(columns["observation.state"][start]))
        bins = [min(255, max(0, int(np.floor((value + 1) * 128)))) for value in state]
        ids = samples.text_ids[row]
        text = bytes(ids[ids >= 0].tolist()).decode()
        task = pipeline.prompts[int(windows.prompt_id[row])]
        assert text == f"Task: {task}, State: {' '.join(map(str, bins))};\nAction: "
        assert (ids[len(text) :] == -1).all()
    np.testing.assert_array_equal(samples.images, pictures_beside(windows.provenance[:, 2], 0, (0, 1)))
    assert samples.view_mask.all()


def test_steps_have_features_states_and_actions(columns: dict[str, np.ndarray]) -> None:
    config = member("gr1")
    pipeline, windows, samples = read(config, 0, 1)
    check_spec(config, samples)
    tokens = np.asarray(samples.image, np.float32).reshape(2, 8, 2, 17, 108)
    shown = pictures_beside(windows.provenance[:, 2], 4, (0, 1))
    for row, start in enumerate(windows.provenance[:, 2]):
        np.testing.assert_allclose(
            samples.actions[row], normalised(pipeline, columns["action"][start : start + 8]), atol=1e-6
        )
        states = np.asarray(pipeline.normalisation.state.normalise(columns["observation.state"][start : start + 8]))
        np.testing.assert_allclose(samples.state[row], states, atol=1e-6)
        for view in range(2):
            np.testing.assert_array_equal(samples.video[row, 4, 24 * view : 24 * view + 24], shown[row, view])
            patch = tokens[row, 4, view, 1 + 6].reshape(6, 6, 3) * 127.5 + 127.5  # row 1, column 2
            np.testing.assert_allclose(patch, shown[row, view, 6:12, 12:18], atol=1.0)
    np.testing.assert_allclose(tokens[:, :, :, 0], tokens[:, :, :, 1:].mean(3), atol=0.01)


def test_values_beyond_the_end_and_bins_beyond_the_range_stay_in() -> None:
    np.testing.assert_allclose(return_to_go(np.array([0, 1, 10_000])), [1.0, 0.98, -1.0], atol=1e-6)
    assert write_policy_prompt(" pick_it\n", np.array([-3.0, -1.0, 0.0, 3.0])) == (
        "Task: pick it, State: 0 0 128 255;\nAction: "
    )


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("pi05", {"data": {"canvas": (24, 48)}}, r"reads 2 pictures of 24 x 24, .*make it \(48, 24\)"),
        ("gr1", {"gpt": {"num_views": 3}, "data": {"canvas": (72, 24)}}, "has 2 cameras; formulations_gr1 reads 3"),
        ("cosmos_policy", {"data": {"views": (("a", 24, 0, 24, 24), ("b", 0, 0, 24, 24))}}, "puts 'a' at"),
        ("lingbot_va", {"layout": {"actions_per_block": 7}}, "actions_per_block=7 does not divide"),
        ("lingbot_va", {"clip": {"num_frames": 5}}, "num_frames=5 is 5 latent frames; 2 chunks of 2"),
    ],
)
def test_windows_that_cannot_be_are_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pixel_windows(vary(member(name), **changes))


def test_prompt_that_is_too_long_and_stand_ins_of_other_sizes_are_refused() -> None:
    prompts = PolicyPrompts(["go"], lambda text: list(text.encode()), num_tokens=5, num_state_dims=1)
    with pytest.raises(ConfigError, match=r"has 30 tokens and config\.vla\.text_tokens=5"):
        prompts(np.array([0]), np.zeros((1, 4)))
    with pytest.raises(ConfigError, match=r"vocab_size=64; prompts are bytes here"):
        PatchEncoders(vary(member("pi05"), vla={"vocab_size": 64}))
    with pytest.raises(ConfigError, match=r"image_width=16; patches of .* have 108"):
        PatchEncoders(vary(member("gr1"), gpt={"image_width": 16}))


def test_ledger_of_patches_counts_samples_and_no_flops(tmp_path: Path) -> None:
    config = vary(
        member("fast_wam"),
        data={
            "path": str(write_dataset(tmp_path / "data")),
            "views": (("observation.images.front", 0, 0, 24, 48),),
            "state_dim": 2,
            "action_dim": 2,
            "validation_fraction": 0.5,
        },
    )
    out, made, lines = tmp_path / "latents", 0, []
    for _ in range(2):  # what is there is not made, nor counted, again
        fill_patch_latents(config, out)
        lines = [json.loads(line) for line in (out / LEDGER_FOLDER / "ledger.jsonl").read_text().splitlines()]
        made = sum(split.windows for split in Manifest.load(out).splits.values())
        assert lines[-1]["samples"] == made > 0
        assert (lines[-1]["kind"], lines[-1]["job"], lines[-1]["zflops"]) == ("precompute", "latents", 0)
        assert set(lines[-1]["runs"].values()) == {0}
    account = account_precompute("patches", lines)
    assert (account.samples, sum(account.encoder_flops.values())) == (made, 0)
