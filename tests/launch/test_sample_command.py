"""``wamjax sample`` on tiny random backbones: from folders of parts to an mp4, for every way a first frame enters."""

import shutil
from pathlib import Path
from typing import Any

import av
import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from launch import cli
from tests.launch.pretrained_parts import GOLDEN, TEXT_WIDTH, VAE, write_part, write_tokenizer
from wamjax.config.finetune import LoraConfig
from wamjax.nn.lora import attach_lora
from wamjax.weights.adapter import save_adapter
from wamjax.weights.kinds.registry import find_kind
from wamjax.weights.tensors import TensorFolder

TRANSFORMER = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 2,
    "out_channels": 2,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 8,
    "ffn_dim": 16,
    "num_layers": 2,
}
IMAGE_BRANCH = {"in_channels": 8, "image_dim": 16, "added_kv_proj_dim": 24}  # 2 noise + 4 mask + 2 condition


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all pipelines share."""
    folder = tmp_path_factory.mktemp("parts")
    write_part(folder / "vae", VAE)
    write_tokenizer(folder / "tokenizer")
    for part, name in (("text_encoder", "umt5_encoder"), ("image_encoder", "clip_vision")):
        (folder / part).mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copy(GOLDEN / name / file, folder / part)
    return folder


@pytest.fixture
def pipeline(parts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parts, tmp_path / "pipeline"))


def sample(pipeline: Path, *arguments: object) -> int:
    out = f"--out={pipeline.parent / 'clip.mp4'}"
    settings = (
        "--frames=5",
        "--height=16",
        "--width=24",
        "--steps=3",
        "--dtype=float32",
        "--prompt=a robot stacks cubes",
    )
    return cli.main(["sample", f"--weights={pipeline}", out, *settings, *map(str, arguments)])


def read_clip(pipeline: Path) -> np.ndarray:
    with av.open(str(pipeline.parent / "clip.mp4")) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_image(pipeline: Path, width: int = 24, height: int = 16) -> Path:
    path = pipeline.parent / "first.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(path)
    return path


def test_prompt_becomes_a_clip(pipeline: Path) -> None:
    write_part(pipeline / "transformer", TRANSFORMER)
    assert sample(pipeline) == 0
    assert read_clip(pipeline).shape == (5, 16, 24, 3)


@pytest.mark.slow
def test_clip_depends_on_seed_prompt_and_solver(pipeline: Path) -> None:
    write_part(pipeline / "transformer", TRANSFORMER)
    clips = []
    for arguments in ([], [], ["--seed=1"], ["--prompt=cubes"], ["--solver=euler"]):
        assert sample(pipeline, *arguments) == 0
        clips.append(read_clip(pipeline))
    np.testing.assert_array_equal(clips[0], clips[1])
    assert all((clip != clips[0]).any() for clip in clips[2:])


@pytest.mark.slow
def test_imported_parts_give_the_same_clip(pipeline: Path) -> None:
    write_part(pipeline / "transformer", TRANSFORMER)
    assert sample(pipeline) == 0
    expected = read_clip(pipeline)
    source = pipeline / "source"
    (pipeline / "transformer").rename(source)
    assert cli.main(["weights", "import", str(source), f"--out={pipeline / 'transformer'}"]) == 0
    assert sample(pipeline) == 0
    np.testing.assert_array_equal(read_clip(pipeline), expected)


@pytest.mark.slow
def test_adapter_changes_the_clip_as_its_merged_weights_do(pipeline: Path) -> None:
    """From a reference checkpoint, from imported weights, and from an export with the updates added."""
    write_part(pipeline / "transformer", TRANSFORMER)
    kind = find_kind(TRANSFORMER)
    config, lora = kind.parse_config(TRANSFORMER), LoraConfig(rank=2, alpha=8.0, targets=("blocks",))
    model = kind.build(jax.random.key(0), config)
    attach_lora(model, jax.random.key(1), lora)
    params = jax.tree.map(lambda leaf: leaf + 0.2, nnx.to_pure_dict(nnx.state(model)))
    adapter, base_hash = pipeline.parent / "a.safetensors", TensorFolder(pipeline / "transformer").hash()
    save_adapter(adapter, kind, config, params, lora, base_hash=base_hash)
    assert sample(pipeline) == 0
    plain = read_clip(pipeline)
    assert sample(pipeline, f"--lora={adapter}") == 0
    adapted = read_clip(pipeline)
    assert (adapted != plain).any()
    imported, merged = pipeline.parent / "imported", pipeline.parent / "merged"
    assert cli.main(["weights", "import", str(pipeline / "transformer"), f"--out={imported}"]) == 0
    assert cli.main(["weights", "export", str(imported), f"--out={merged}", f"--lora={adapter}"]) == 0
    for folder, flags in ((imported, [f"--lora={adapter}"]), (merged, [])):
        shutil.rmtree(pipeline / "transformer")
        shutil.copytree(folder, pipeline / "transformer")
        assert sample(pipeline, *flags) == 0
        assert np.abs(read_clip(pipeline).astype(int) - adapted).max() <= 2  # rounding, then an 8-bit codec


@pytest.mark.slow
@pytest.mark.parametrize("config", [TRANSFORMER, {**TRANSFORMER, **IMAGE_BRANCH}], ids=["first frame", "channels"])
def test_first_frame_enters_the_clip(pipeline: Path, config: dict[str, Any]) -> None:
    write_part(pipeline / "transformer", config)
    image = write_image(pipeline)
    assert sample(pipeline, f"--image={image}") == 0
    first = read_clip(pipeline)
    Image.new("RGB", (24, 16), (200, 30, 30)).save(image)
    assert sample(pipeline, f"--image={image}") == 0
    assert (read_clip(pipeline) != first).any()


@pytest.mark.slow
def test_two_experts_share_the_noise_levels(pipeline: Path) -> None:
    """With the boundary above all levels only the second transformer runs, below all of them only the first."""
    write_part(pipeline / "transformer", TRANSFORMER, seed=1)
    assert sample(pipeline) == 0
    first = read_clip(pipeline)
    write_part(pipeline / "transformer_2", TRANSFORMER, seed=2)
    (pipeline / "model_index.json").write_text('{"boundary_ratio": 0.0001}')
    assert sample(pipeline) == 0
    np.testing.assert_array_equal(read_clip(pipeline), first)
    (pipeline / "model_index.json").write_text('{"boundary_ratio": 0.9}')
    assert sample(pipeline) == 0
    assert (read_clip(pipeline) != first).any()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--frames=6"], 2, "a clip has 4 n + 1 frames"),
        (["--height=20"], 2, "--height=20; expected a multiple of 8"),
        (["--image=none.png"], 3, "none.png does not exist"),
        (["--solver=euler", "--sigmas=wan"], 2, "--sigmas=wan with --solver=euler"),
        (["--steps=0"], 2, "num_steps=0"),
    ],
)
def test_wrong_request_is_one_line(
    pipeline: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    write_part(pipeline / "transformer", TRANSFORMER)
    assert sample(pipeline, *arguments) == status
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (pipeline.parent / "clip.mp4").exists()


def test_image_of_another_size_is_refused(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_part(pipeline / "transformer", TRANSFORMER)
    assert sample(pipeline, f"--image={write_image(pipeline, width=32)}") == 3
    assert "the image is 32 x 16 pixels (width x height); the clip is 24 x 16" in capsys.readouterr().err


def test_model_that_needs_an_image_says_so(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_part(pipeline / "transformer", {**TRANSFORMER, **IMAGE_BRANCH})
    assert sample(pipeline) == 2
    assert "say which with --image" in capsys.readouterr().err


def test_missing_part_is_named(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(pipeline) == 3
    assert "has no folder transformer" in capsys.readouterr().err
