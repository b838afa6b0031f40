"""``wamjax eval`` of runs on latents of an autoencoder: what policies see is what was cached, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.latents.manifest import MANIFEST_FILE, VALIDATION, Manifest
from data_pipelines.latents.records import SplitRecords
from data_pipelines.pipeline import NORMALISATION_FILE, build_pipeline
from launch import cli
from launch.clip_encoders import ClipEncoders
from launch.patch_latents import fill_patch_latents
from launch.run_samples import Whereabouts, load_encoders, open_samples
from launch.window_samples import WindowSamples
from tests.data_pipelines.conftest import write_episodes
from tests.launch.pretrained_parts import TEXT_WIDTH, VAE, write_encoders, write_part
from tests.launch.test_cache_command import (
    BACKBONE,
    JOINT,
    LENGTHS,
    VIDEO,
    Cached,
    cache,
    make_cached,
    write_experiment,
)
from tests.launch.test_two_stages import save
from wamjax.batch import WamBatch
from wamjax.config.clip import latent_grid
from wamjax.config.inverse_dynamics import InverseDynamicsConfig
from wamjax.config.pixel_windows import pixel_windows
from wamjax.config.schema import EvaluateConfig, LayoutConfig, ParallelConfig, RunConfig
from wamjax.config.sources import MixtureConfig, MixtureSource
from wamjax.flops.codec import count_codec
from wamjax.flops.jaxpr import trace_flops
from wamjax.parallel.mesh import build_mesh
from wamjax.sampling.policy import PromptTable

CONFIG = dataclasses.replace(
    JOINT,
    evaluate=EvaluateConfig(every_steps=0, num_windows=4, bootstrap=50, rollout_tasks=()),
    sampling=dataclasses.replace(JOINT.sampling, steps=2),
)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


# As of Wan 2.2: pixels folded, shortcuts over levels. Its transformer has no channels of a first frame.
VAE_2_2 = {**VAE, "patch_size": 2, "in_channels": 12, "out_channels": 12, "is_residual": True, "decoder_base_dim": 3}
CONFIG_2_2 = dataclasses.replace(
    CONFIG,
    backbone=dataclasses.replace(BACKBONE, in_channels=2),
    clip=dataclasses.replace(CONFIG.clip, stride=(4, 8, 8)),
)


@pytest.fixture(scope="module", params=["2.1", "2.2"])
def generation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def codec(generation: str, encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> ClipEncoders:
    mesh = build_mesh(ParallelConfig(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
    if generation == "2.1":
        folders = {"vae": encoders / "vae", "image": encoders / "image_encoder"}
        return ClipEncoders(CONFIG, mesh, **folders, dtype="float32", chunk_frames=4)
    folder = tmp_path_factory.mktemp("generation") / "vae"
    write_part(folder, VAE_2_2)
    return ClipEncoders(CONFIG_2_2, mesh, vae=folder, image=None, dtype="float32", chunk_frames=4)


@pytest.fixture(scope="module")
def cached(encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Cached:
    root = tmp_path_factory.mktemp("evaluated")
    return make_cached(CONFIG, encoders, write_episodes(root / "set", lengths=LENGTHS), root)


@pytest.fixture(scope="module")
def workdir(cached: Cached) -> Path:
    folder = cached.folder.parent / "run"
    assert cli.main(["train", f"--config={cached.experiment}", f"--workdir={folder}"]) == 0
    return folder


def window(seed: int = 0) -> WamBatch:
    video = np.random.default_rng(seed).integers(0, 256, (2, 9, 16, 32, 3), dtype=np.uint8)
    return WamBatch(video=video, provenance=np.zeros((2, 3), np.int32))


@pytest.mark.slow
def test_what_a_policy_is_shown_has_the_latents_of_the_window(codec: ClipEncoders) -> None:
    batch = window()
    known = {name: np.asarray(value, np.float32) for name, value in codec.encode_windows(batch).items()}
    for frames in (1, 5, 9):  # one latent frame, two, three
        latents = codec.encode(batch.video[:, :frames])
        np.testing.assert_array_equal(latents, known["latents"][:, : latents.shape[1]])
    channels, image = codec.condition(batch.video[:, :1], 3)
    parts, memory = [], None
    for begin, end in ((0, 1), (1, 5), (5, 9)):  # as they come
        latents, memory = codec.encode_next(batch.video[:, begin:end], memory)
        parts.append(np.asarray(latents))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), known["latents"], rtol=2**-7, atol=1e-6)
    for name, found in (("condition", channels), ("image", image)):
        assert (found is None) == (name not in known)
        if found is not None:
            np.testing.assert_array_equal(found, known[name])


@pytest.mark.slow
def test_decoded_frames_are_those_of_the_autoencoder_by_itself(codec: ClipEncoders) -> None:
    latents = codec.encode(window().video)
    frames = np.asarray(codec.decode(latents))
    assert (frames.shape, frames.dtype) == ((2, 9, 16, 32, 3), np.uint8)
    mean, std = (np.array(VAE[name]) for name in ("latents_mean", "latents_std"))
    whole = codec._vae.apply(lambda vae, z: vae.decode(z), jnp.asarray(latents * std + mean, jnp.float32))
    assert np.abs(frames - (np.asarray(whole) + 1) * 127.5).max() <= 0.51  # rounded to levels
    first = np.asarray(codec.decode(latents[:, :2]))
    assert np.abs(first.astype(int) - frames[:, :5]).max() <= 1  # causal: what follows changes nothing


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 1])
def test_flops_around_a_chunk_equal_the_jaxprs(codec: ClipEncoders, chunk: int) -> None:
    counted = count_codec(codec._config, codec.vae, codec.image, chunk=chunk)
    first, following = (jax.ShapeDtypeStruct((1, count, 16, 32, 3), np.uint8) for count in (1, 4))
    window = jax.ShapeDtypeStruct((1, 5, 16, 32, 3), np.uint8)
    latents = jax.ShapeDtypeStruct((1, 2 + chunk, *latent_grid(codec._config)[1:], 2), np.float32)

    def condition(params: Any, first: Any) -> Any:
        return codec._to_condition(params, first, num_frames=CONFIG.clip.num_frames)

    params = codec._vae.params
    memory = jax.eval_shape(codec._to_next_latents, params, first, None)[1] if chunk else None
    newest = following if chunk else first
    assert counted.observe == trace_flops(codec._to_next_latents, params, newest, memory).total
    assert counted.window == trace_flops(codec._to_latents, params, window).total  # of one block before the last
    assert counted.decode == trace_flops(codec._to_frames, params, latents).total
    if codec._image is None or codec.image is None:
        assert counted.condition == counted.image == 0
        return
    assert counted.condition == trace_flops(condition, params, first).total
    size = codec.image.image_size
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    assert counted.image == trace_flops(codec._to_tokens, codec._image.params, pixels).total


@pytest.mark.slow
def test_samples_of_held_out_windows_are_the_cached_ones(cached: Cached) -> None:
    config: RunConfig = cached.config
    pipeline = build_pipeline(pixel_windows(config), workdir=None)
    mesh = build_mesh(ParallelConfig(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
    samples = open_samples(config, pipeline, kept=cached.folder, places=Whereabouts(), mesh=mesh)
    records = SplitRecords(cached.folder, Manifest.load(cached.folder), VALIDATION)
    made = samples(pipeline.validation_windows().batch(range(len(records))))
    assert not made.frame_mask.all(), "a window that leaves its episode is among them"
    for row in range(len(records)):
        for name, value in records[row].items():
            if name in ("latents", "condition", "image"):
                # Encoded in batches of another size: the last of bfloat16's 8 bits may be rounded otherwise.
                wanted, own = (np.asarray(array, np.float32) for array in (value, getattr(made, name)[row]))
                np.testing.assert_allclose(own, wanted, rtol=2**-7, atol=1e-6, err_msg=name)
                assert (own != wanted).mean() < 0.02, name
            elif name != "prompt_id":
                np.testing.assert_array_equal(getattr(made, name)[row], value, err_msg=name)


@pytest.mark.slow
def test_run_on_encoded_latents_is_evaluated(cached: Cached, workdir: Path, tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["eval", f"--workdir={workdir}", f"--output={tmp_path}"]) == 0
    assert "FLOPs of its frozen encoders, not in that: observe " in capsys.readouterr().out
    found = json.loads((tmp_path / "eval.json").read_text())
    for name in ("action_error", "video_psnr", "video_ssim", "action_sensitivity", "video_sensitivity"):
        assert found[name]["n"] == 2, name  # of six episodes
    manifest = Manifest.load(cached.folder)
    mesh = build_mesh(ParallelConfig(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
    codec = load_encoders(cached.config, manifest, Whereabouts(), mesh)
    assert found["chunk_encoder_flops"] == dataclasses.asdict(count_codec(cached.config, codec.vae, codec.image))
    for name in ("report.html", "strip.png", "predicted.mp4"):
        assert (tmp_path / name).stat().st_size > 0, name


@pytest.mark.slow
def test_what_lies_elsewhere_now_is_named(
    cached: Cached, workdir: Path, encoders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(run: Path, *flags: str) -> str:
        assert cli.main(["eval", f"--workdir={run}", f"--output={tmp_path / 'out'}", *flags]) in (2, 3)
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("wamjax eval: "), error
        return error

    write_part(tmp_path / "other", VAE, seed=1)
    assert "other is not what the latents" in evaluate(workdir, f"--vae={tmp_path / 'other'}")
    assert "--vae=nowhere is not a folder" in evaluate(workdir, "--vae=nowhere")
    assert "holds another kind of model" in evaluate(workdir, f"--vae={encoders / 'text_encoder'}")
    (tmp_path / "empty").mkdir()
    message = evaluate(workdir, f"--vae={tmp_path / 'empty'}")
    assert "empty is no encoder that can be read: " in message
    assert "--kind" not in message  # which this command has not
    assert "--vae is empty; expected a folder" in evaluate(workdir, "--vae=")
    assert "say where with --latents" in evaluate(workdir, "--latents=nowhere")
    assert "config.data.mixture has no sources" in evaluate(workdir, "--source=a")
    moved, run = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(cached.folder, moved)
    shutil.copytree(workdir, run)
    manifest = Manifest.load(moved)
    places = {**manifest.made_with, "vae": "gone"}
    dataclasses.replace(manifest, made_with=places).save(moved)
    assert "say with --vae where it lies now" in evaluate(run, f"--latents={moved}")
    dataclasses.replace(manifest, made_with={}).save(moved)
    assert "does not say where their encoder lies" in evaluate(run, f"--latents={moved}")
    assert cache(encoders, moved, cached.experiment, *cached.flags) == 0  # nothing is encoded again
    assert Manifest.load(moved) == manifest
    dataclasses.replace(manifest, prompts=("wave",)).save(moved)
    assert "but the run was trained on" in evaluate(run, f"--latents={moved}")
    (run / MANIFEST_FILE).unlink()
    manifest.save(moved)
    shutil.rmtree(moved / "text")
    assert "the embeddings of 2 of 2 prompts are missing" in evaluate(run, f"--latents={moved}")


@pytest.mark.slow
def test_source_of_a_mixture_is_evaluated_as_the_robot_it_is(tmp_path: Path) -> None:
    patches = dataclasses.replace(
        CONFIG_2_2,
        backbone=dataclasses.replace(BACKBONE, in_channels=48, out_channels=48),
        clip=dataclasses.replace(CONFIG.clip, stride=(1, 4, 4), num_frames=3),
        layout=dataclasses.replace(CONFIG.layout, actions_per_block=1),
    )
    sources = []
    for name, stride in (("a", 1), ("b", 2)):
        dataset, latents = write_episodes(tmp_path / name, lengths=LENGTHS), tmp_path / f"{name}-latents"
        data = dataclasses.replace(patches.data, path=str(dataset), latents=str(latents), frame_stride=stride)
        fill_patch_latents(dataclasses.replace(patches, data=data), latents)
        sources.append(MixtureSource(name=name, path=str(dataset), latents=str(latents), frame_stride=stride))
    data = dataclasses.replace(patches.data, mixture=MixtureConfig(sources=tuple(sources)))
    config = dataclasses.replace(patches, data=data)
    run = tmp_path / "run"
    experiment = write_experiment(tmp_path / "experiment.py", config)
    assert cli.main(["train", f"--config={experiment}", f"--workdir={run}"]) == 0
    assert cli.main(["eval", f"--workdir={run}"]) == 2  # one source at a time
    robots = []
    with pytest.MonkeyPatch.context() as patch:
        look_up = PromptTable.look_up
        patch.setattr(PromptTable, "look_up", lambda *a, **k: robots.append(a[0].embodiment_id) or look_up(*a, **k))
        assert cli.main(["eval", f"--workdir={run}", "--source=b"]) == 0
    assert set(robots) == {1}
    found = json.loads((run / "eval/b/eval.json").read_text())
    assert (found["source"], found["chunk_encoder_flops"]) == ("b", None)
    assert found["action_error"]["n"] == 2


@pytest.mark.slow
def test_two_stages_of_which_the_first_has_encoded_latents_are_evaluated(
    encoders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = dataclasses.replace(
        VIDEO,
        layout=dataclasses.replace(VIDEO.layout, noisy_first_frame=False),
        evaluate=CONFIG.evaluate,
        sampling=CONFIG.sampling,
        parallel=ParallelConfig(fsdp=1),
    )
    first = make_cached(video, encoders, write_episodes(tmp_path / "set", lengths=LENGTHS), tmp_path).config
    inverse = dataclasses.replace(
        first,
        name="tiny_inverse_dynamics",
        backbone=None,
        inverse_dynamics=InverseDynamicsConfig(width=4, num_layers=1, hidden_width=4),
        layout=LayoutConfig(
            formulation="frame_pairs", num_blocks=1, frames_per_block=1, actions_per_block=2, states_per_block=0
        ),
        data=dataclasses.replace(first.data, latents="", video_statistics="none"),
    )
    runs = save(tmp_path, "video", first), save(tmp_path, "inverse", inverse)
    build_pipeline(inverse, workdir=runs[1].path).normalisation.save(runs[0].path / NORMALISATION_FILE)
    words = ["eval", f"--workdir={runs[0].path}", f"--inverse_dynamics={runs[1].path}"]
    assert cli.main(words) == 0
    found = json.loads((runs[0].path / "eval.json").read_text())
    assert found["video_psnr"]["n"] == found["action_error"]["n"] == 2
    costs = found["chunk_encoder_flops"]
    assert costs["observe"] > 0 < costs["decode"]
    assert costs["condition"] == costs["image"] == 0
    capsys.readouterr()
    assert cli.main([*words, "--vae=nowhere"]) == 3
    assert "--vae=nowhere is not a folder" in capsys.readouterr().err


def test_windows_asked_for_in_turn_are_encoded_once() -> None:
    class Counted:
        codec, encoded = None, 0

        def encode_windows(self, batch: WamBatch) -> dict[str, np.ndarray]:
            self.encoded += 1
            return {"latents": np.full((2, 3, 4, 8, 2), batch.video[0, 0, 0, 0, 0], np.float32)}

    config = dataclasses.replace(CONFIG_2_2, layout=LayoutConfig(formulation="video"))
    table = PromptTable(text=np.zeros((1, 6, TEXT_WIDTH)))
    pipeline: Any = SimpleNamespace(index=SimpleNamespace(records=()))
    encoders = Counted()
    samples = WindowSamples(config, pipeline, encoders, table)
    one, other = (dataclasses.replace(window(seed), prompt_id=np.zeros(2, np.int32)) for seed in (0, 1))
    for batch in (one, one, other, one, other, dataclasses.replace(one, actions=np.ones(2))):
        assert (samples(batch).latents == batch.video[0, 0, 0, 0, 0]).all()
    assert encoders.encoded == 2
