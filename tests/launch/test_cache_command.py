"""``wamjax data cache`` and training on what it made: tiny random encoders, a tiny dataset, every part of the way."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.latents.manifest import TRAIN, Manifest
from data_pipelines.latents.pipeline import open_latents
from data_pipelines.latents.records import SplitRecords
from data_pipelines.pipeline import build_pipeline
from launch import cli
from launch.pipeline_folder import load_part
from tests.data_pipelines.conftest import TASKS, write_episodes
from tests.launch.pretrained_parts import TEXT_WIDTH, write_encoders
from wamjax.batch import batch_spec
from wamjax.config import bridge
from wamjax.config.backbone import ActionsConfig, BlockConfig, ClipConfig, VideoTransformerConfig
from wamjax.config.pixel_windows import pixel_windows
from wamjax.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvaluateConfig,
    LayoutConfig,
    LogConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from wamjax.errors import DataError
from wamjax.parallel.mesh import build_mesh

LENGTHS = (14, 21, 17, 12, 26, 15)
BLOCK = BlockConfig(width=16, num_heads=2, ffn_width=24)
BACKBONE = VideoTransformerConfig(
    block=BLOCK, num_layers=2, in_channels=2, out_channels=2, time_width=8, text_width=TEXT_WIDTH
)
VIDEO = RunConfig(
    name="tiny_backbone",
    backbone=BACKBONE,
    clip=ClipConfig(num_frames=5, height=16, width=32, stride=(4, 4, 4), text_tokens=6, image_tokens=10),
    layout=LayoutConfig(formulation="video"),
    data=DataConfig(
        canvas=(16, 32),
        views=(("observation.images.left", 0, 0, 16, 16), ("observation.images.right", 0, 16, 16, 16)),
        state_dim=4,
        action_dim=3,
        frame_stride=2,
        window_stride=4,
        validation_fraction=0.3,
        num_threads=2,
        prefetch=4,
    ),
    objective=ObjectiveConfig(shift=1.0, weighting="uniform"),
    optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=1, ema_decay=0.0),
    parallel=ParallelConfig(fsdp=-1),
    train=TrainConfig(num_steps=2, global_batch_size=8),
    checkpoint=CheckpointConfig(every_steps=1),
    evaluate=EvaluateConfig(every_steps=0),
    log=LogConfig(tensorboard=False, progress_bar=False, every_steps=1),
)
# Wan I2V: 2 channels of noise, 4 of mask, 2 of the encoded first frame, and tokens of the golden image encoder.
JOINT = dataclasses.replace(
    VIDEO,
    backbone=dataclasses.replace(
        BACKBONE, block=dataclasses.replace(BLOCK, image_branch=True), in_channels=8, image_width=16
    ),
    clip=dataclasses.replace(VIDEO.clip, num_frames=9),
    actions=ActionsConfig(modules="category", hidden_width=8),
    layout=LayoutConfig(num_blocks=2, frames_per_block=1, actions_per_block=4),
)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_episodes(tmp_path_factory.mktemp("data") / "set", lengths=LENGTHS)


def write_experiment(path: Path, config: RunConfig) -> Path:
    path.write_text(
        "from wamjax.config import bridge\n\n\ndef get_config():\n"
        f"    return bridge.to_config_dict(bridge.from_json({bridge.to_json(config)!r}))\n"
    )
    return path


def cache(encoders: Path, out: Path, experiment: Path, *arguments: object) -> int:
    flags = [f"--{name}={encoders / name}" for name in ("vae", "text_encoder")]
    flags += [f"--config={experiment}", f"--out={out}", "--batch_size=8", "--shard_windows=5", "--dtype=float32"]
    return cli.main(["data", "cache", *flags, *map(str, arguments)])


@dataclasses.dataclass(frozen=True)
class Cached:
    config: RunConfig
    experiment: Path
    folder: Path
    flags: tuple[str, ...]


def make_cached(config: RunConfig, encoders: Path, dataset: Path, folder: Path) -> Cached:
    out = folder / "latents"
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(dataset), latents=str(out)))
    experiment = write_experiment(folder / "experiment.py", config)
    has_image = config.backbone is not None and config.backbone.image_width is not None
    flags = (f"--image_encoder={encoders / 'image_encoder'}",) if has_image else ()
    assert cache(encoders, out, experiment, *flags) == 0
    return Cached(config, experiment, out, flags)


@pytest.fixture(scope="module")
def video(encoders: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Cached:
    return make_cached(VIDEO, encoders, dataset, tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def joint(encoders: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Cached:
    return make_cached(JOINT, encoders, dataset, tmp_path_factory.mktemp("joint"))


def all_samples(config: RunConfig) -> Any:
    records = SplitRecords(Path(config.data.latents), Manifest.load(Path(config.data.latents)), TRAIN)
    return [records[i] for i in range(len(records))]


@pytest.mark.slow
def test_latents_are_the_encoded_windows_of_the_pixel_pipeline(joint: Cached, encoders: Path) -> None:
    pipeline = build_pipeline(pixel_windows(joint.config), workdir=None)
    windows = pipeline.reader(pipeline.index.train)
    mesh = build_mesh(ParallelConfig(data=1, fsdp=-1))
    vae = load_part(encoders / "vae", mesh, "float32")
    samples = all_samples(joint.config)
    assert len(samples) == len(windows)
    index = next(i for i, record in enumerate(samples) if not record["frame_mask"].all())
    pixels, record = windows[index], samples[index]
    clip = jnp.asarray(pixels.video, jnp.float32)[None] / 127.5 - 1
    still = clip.at[:, 1:].set(0.0)
    for name, frames in (("latents", clip), ("condition", still)):
        expected = vae.apply(lambda model, video: model.normalise(model.encode(video).mean), frames)
        np.testing.assert_allclose(record[name][..., -2:].astype(np.float32), expected[0], atol=0.02, rtol=0.02)
    mask = record["condition"][..., :4].astype(np.float32)
    assert (mask[0] == 1).all()
    assert (mask[1:] == 0).all()
    np.testing.assert_array_equal(record["frame_mask"], pixels.frame_mask[[0, 4, 8]])
    for name in ("actions", "action_mask", "state", "state_mask", "provenance", "prompt_id"):
        np.testing.assert_array_equal(record[name], getattr(pixels, name))


def test_no_clip_of_video_pretraining_leaves_its_episode(video: Cached) -> None:
    steps = (VIDEO.clip.num_frames - 1) * VIDEO.data.frame_stride
    starts: dict[int, list[int]] = {}
    for record in all_samples(video.config):
        _, episode, start = record["provenance"].tolist()
        starts.setdefault(episode, []).append(start)
    for episode, found in starts.items():
        assert found == list(range(0, LENGTHS[episode] - steps, VIDEO.data.window_stride))


@pytest.mark.parametrize("name", ["video", pytest.param("joint", marks=pytest.mark.slow)])
def test_batches_have_the_arrays_that_the_model_reads(name: str, request: pytest.FixtureRequest) -> None:
    config = request.getfixturevalue(name).config
    batch = next(open_latents(config, workdir=None).train_stream(0, 1))
    found = jax.tree.map(lambda a: (a.shape, np.dtype(a.dtype)), batch)
    wanted = jax.tree.map(lambda a: (a.shape, np.dtype(a.dtype)), batch_spec(config, 8))
    assert jax.tree.structure(batch) == jax.tree.structure(batch_spec(config, 8))
    assert found == wanted
    tokens = 1 + len(TASKS[0].split())  # unknown words are a token each, then the end
    assert np.abs(batch.text[:, :tokens].astype(np.float32)).sum(-1).all()
    assert not batch.text[:, tokens:].astype(np.float32).any()


def test_shards_side_by_side_are_the_global_batch_from_any_position(video: Cached) -> None:
    data = open_latents(video.config, workdir=None)
    whole = data.train_stream(0, 1)
    batches = [next(whole) for _ in range(4)]
    for count in (2, 4):
        streams = [data.train_stream(shard, count, position=16) for shard in range(count)]
        for expected in batches[2:]:
            parts = [next(stream) for stream in streams]
            for key in ("provenance", "latents", "text"):
                joined = np.concatenate([getattr(part, key) for part in parts])
                np.testing.assert_array_equal(joined, getattr(expected, key))


def test_job_goes_on_where_it_was_and_books_every_window_once(
    video: Cached, encoders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    shutil.copytree(video.folder, out)
    shards = sorted(out.glob("*.array_record"))
    bytes_before = {shard.name: shard.read_bytes() for shard in shards}
    shards[0].unlink()
    shards[1].write_bytes(bytes_before[shards[1].name][:500])
    untouched = shards[2].stat().st_mtime_ns
    (out / f".{shards[0].name}.0.tmp").write_bytes(b"half written")
    capsys.readouterr()
    assert cache(encoders, out, video.experiment) == 0
    assert "0 encoded, 2 were there" in capsys.readouterr().out
    assert shards[2].stat().st_mtime_ns == untouched
    assert not list(out.glob(".*.tmp"))
    for shard in shards:
        assert shard.read_bytes() == bytes_before[shard.name]
    lines = [json.loads(line) for line in (out / "worker-0000/ledger.jsonl").read_text().splitlines()]
    manifest = Manifest.load(out)
    total = sum(split.windows for split in manifest.splits.values())
    made_again = sum(len(windows) for _, windows in manifest.shards(TRAIN)[:2])
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["samples"] == lines[-1]["runs"]["vae"] == total + made_again
    assert lines[-1]["runs"]["text"] == 2


@pytest.mark.slow
def test_workers_make_the_folder_of_one(video: Cached, encoders: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    for worker in (1, 0):
        assert cache(encoders, out, video.experiment, "--num_workers=2", f"--worker={worker}") == 0
    for shard in video.folder.glob("*.array_record"):
        assert shard.read_bytes() == (out / shard.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.data.frame_stride=1"], "config.data.frame_stride was 2 and is 1"),
        (["--config.data.split_seed=5"], "config.data.split_seed was 0 and is 5"),
        pytest.param(["--dtype=bfloat16"], "the fingerprint of the text encoder was", marks=pytest.mark.slow),
        (["--shard_windows=9"], "--shard_windows was 5 and is 9"),
        (["--config.data.canvas=(16,16)"], "config.data.canvas=(16, 16) is not the clip of 16 x 32 pixels"),
        (["--config.clip.stride=(2,4,4)"], "config.clip.stride was [4, 4, 4] and is [2, 4, 4]"),
        pytest.param(
            ["--config.backbone.text_width=8"],
            "config.backbone.text_width=8 and the text encoder gives 16",
            marks=pytest.mark.slow,
        ),
        (["--image_encoder=none"], "has no image branch; leave --image_encoder out"),
        (["--worker=1"], "--worker=1 is not below --num_workers=1"),
        (["--batch_size=3"], "--batch_size=3 does not divide by the 8 devices"),
    ],
)
def test_other_latents_than_the_folder_was_begun_with_are_refused(
    video: Cached, encoders: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert cache(encoders, video.folder, video.experiment, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--config.data.latents=", "config.data.latents is empty: tiny_backbone trains config.backbone"),
        ("--config.data.latents=nowhere", "nowhere has no latents.json; expected a folder made by wamjax data cache"),
        ("--config.data.frame_stride=1", "were made with config.data.frame_stride=2 and this run has 1"),
        ("--config.backbone.out_channels=4", "hold latents as bfloat16[2, 4, 8, 2] and the model reads"),
    ],
)
def test_training_refuses_latents_of_another_run(
    video: Cached, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, words: str
) -> None:
    extra = ["--config.backbone.in_channels=4"] if "out_channels" in change else []
    command = ["train", f"--config={video.experiment}", f"--workdir={tmp_path / 'run'}", change, *extra]
    assert cli.main(command) in (2, 3)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_incomplete_and_damaged_folders_are_named(video: Cached, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(video.folder, out)
    config = dataclasses.replace(video.config, data=dataclasses.replace(video.config.data, latents=str(out)))
    shard = sorted(out.glob("train-*"))[0]
    whole = shard.read_bytes()
    first = SplitRecords(out, Manifest.load(out), TRAIN)[0]["latents"].tobytes()
    flipped = bytearray(whole)
    flipped[whole.index(first)] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(DataError, match=r"record 0 of .*train-00000.* cannot be read: Corrupted"):
        SplitRecords(out, Manifest.load(out), TRAIN)[0]
    shard.unlink()
    with pytest.raises(DataError, match=r"1 of \d+ train shards are missing, first train-00000"):
        open_latents(config, workdir=None).train_stream(0, 1)
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="has 0 records, expected 5"):
        open_latents(config, workdir=None).train_stream(0, 1)
    shutil.rmtree(out / "text")
    with pytest.raises(DataError, match="the embeddings of 2 of 2 prompts are missing"):
        open_latents(config, workdir=None)


def train(cached: Cached, workdir: Path, *arguments: str) -> list[dict[str, Any]]:
    assert cli.main(["train", f"--config={cached.experiment}", f"--workdir={workdir}", *arguments]) == 0
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["video", "joint"])
def test_backbone_learns_and_resumes_bit_for_bit(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    cached = request.getfixturevalue(name)
    wide = ["--config.backbone.block.width=64", "--config.backbone.block.ffn_width=128", "--config.train.num_steps=60"]
    wide += [
        "--config.optimizer.decay_steps=60",
        "--config.evaluate.every_steps=30",
        "--config.checkpoint.every_steps=20",
    ]
    whole = train(cached, tmp_path / "whole", *wide)
    losses = [line["loss/total"] for line in whole if "loss/total" in line]
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    assert (tmp_path / "whole/first_batch.png").exists()
    train(cached, tmp_path / "halves", *wide, "--config.train.num_steps=20")
    resumed = train(cached, tmp_path / "halves", *wide)
    assert [line["loss/total"] for line in resumed if "loss/total" in line] == losses
    runs = [json.loads((tmp_path / f"{run}/run.json").read_text()) for run in ("whole", "halves")]
    assert runs[0]["data_fingerprint"] == runs[1]["data_fingerprint"] == Manifest.load(cached.folder).fingerprint


@pytest.mark.slow
def test_autoencoder_of_another_stride_is_refused(
    video: Cached, encoders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cache(encoders, tmp_path / "new", video.experiment, "--config.clip.stride=(4,8,8)") == 2
    assert "config.clip.stride=(4, 8, 8) and the autoencoder --vae gives (4, 4, 4)" in capsys.readouterr().err


def test_small_model_is_told_that_it_reads_no_latents(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = ["--config=experiments/quickstart.py", "--config.data.latents=somewhere"]
    assert cli.main(["train", *config, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "config.data.latents=somewhere is what a backbone reads" in capsys.readouterr().err
