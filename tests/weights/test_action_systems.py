"""Checkpoints of DreamZero, LingBot-VA and Fast-WAM: in and out byte for byte, and begun from a plain backbone."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from launch import cli, weights_command
from tests.weights.golden_folder import GOLDEN
from tests.weights.system_checkpoints import (
    CHANNELS,
    DREAMZERO_CONFIG,
    LAYERS,
    PATCH,
    SYSTEMS,
    WAN_CONFIG,
    WAN_DIFFUSERS_CONFIG,
    WAN_IMAGE_CONFIG,
    WIDTH,
    dreamzero_modules,
    fast_wam,
    lingbot_va,
    random_tensors,
    wan,
    wan_diffusers,
    write_checkpoint,
)
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.parallel.mesh import build_mesh
from wamjax.weights.exchange import load_reference
from wamjax.weights.initialise import Initialise
from wamjax.weights.kinds.registry import KINDS

Tensors = dict[str, np.ndarray]
BEGIN = "--initialise_missing"
# Kind -> the backbone's config.json, its names and shapes, what else to say, the system's names and shapes.
BEGUN: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], list[str], dict[str, tuple[int, ...]]]] = {
    "dreamzero": (
        WAN_IMAGE_CONFIG,
        wan(image=True),
        ["--option=action_dim=4", "--option=hidden_size=24", "--option=num_categories=2"],
        wan(image=True) | dreamzero_modules(2, 4, 64, 24),
    ),
    "lingbot_va": (WAN_DIFFUSERS_CONFIG, wan_diffusers(), [], lingbot_va(30)),
    "fast_wam": (
        WAN_CONFIG,
        wan(),
        [f"--option={name}" for name in ("action_dim=4", "proprio_dim=5", "hidden_dim=8", "ffn_dim=6")],
        fast_wam(4, 5, 8, 6),
    ),
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharded loading is tested elsewhere; here it would only cost time."""
    mesh = build_mesh(ParallelConfig(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
    monkeypatch.setattr(weights_command, "_mesh", lambda cpu_devices: mesh)


def weights(*arguments: object) -> int:
    return cli.main(["weights", *map(str, arguments)])


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("wamjax weights")
    assert error.count("\n") == 1, error
    return error


def export(folder: Path, out: Path) -> Tensors:
    assert weights("export", folder, f"--out={out}") == 0
    (file,) = out.glob("*.safetensors")
    return load_file(file)


def held(kind: str, name: str) -> str:
    """What a system calls the backbone's tensor ``name``."""
    renamed = {"fast_wam": f"mixtures.video.{name}", "lingbot_va": name.replace("embedding.", "embedding_mlp.")}
    return renamed.get(kind, name)


def assert_same(tensors: Tensors, expected: Tensors) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (tensors[name].shape, tensors[name].dtype) == (tensor.shape, tensor.dtype), name
        assert tensors[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("kind", SYSTEMS)
def test_checkpoint_of_a_system_comes_back_byte_for_byte(tmp_path: Path, kind: str, capsys) -> None:
    config, shapes = SYSTEMS[kind]
    tensors = random_tensors(shapes)
    source = write_checkpoint(tmp_path / "source", config, tensors)
    assert weights("import", source, f"--out={tmp_path / 'in'}", f"--kind={kind}") == 0
    out = capsys.readouterr().out
    assert f"{len(shapes)} tensors matched" in out
    assert "made:" not in out
    assert_same(export(tmp_path / "in", tmp_path / "out"), tensors)
    assert json.loads((tmp_path / "out/config.json").read_text()) == config


def test_dreamzero_policy_is_read_under_its_prefix_and_its_encoders_are_named(tmp_path: Path, capsys) -> None:
    tensors = {f"action_head.model.{name}": value for name, value in random_tensors(SYSTEMS["dreamzero"][1]).items()}
    others = {"action_head.text_encoder.norm.weight": np.zeros(2, np.float32)}
    policy = {"architectures": ["VLA"], "action_head_cfg": {"config": {"diffusion_model_cfg": DREAMZERO_CONFIG}}}
    source = write_checkpoint(tmp_path / "source", policy, tensors | others)
    assert weights("import", source, f"--out={tmp_path / 'in'}", "--kind=dreamzero") == 0
    assert "ignored: action_head.text_encoder.* (1): a model of its own: UMT5EncoderModel" in capsys.readouterr().out
    assert_same(export(tmp_path / "in", tmp_path / "out"), tensors)


@pytest.mark.parametrize(
    "prefixes", [("mot.mixtures.video.", "mot.mixtures.action."), ("video_expert.", "action_expert.")]
)
def test_fast_wam_is_read_wherever_its_state_dict_was_taken(tmp_path: Path, prefixes: tuple[str, str]) -> None:
    config, shapes = SYSTEMS["fast_wam"]
    tensors = {
        name.replace("mixtures.video.", prefixes[0]).replace("mixtures.action.", prefixes[1]): value
        for name, value in random_tensors(shapes).items()
    }
    source = write_checkpoint(tmp_path / "source", config, tensors)
    assert weights("import", source, f"--out={tmp_path / 'in'}", "--kind=fast_wam") == 0
    assert_same(export(tmp_path / "in", tmp_path / "out"), tensors)


def test_lingbot_va_leaves_out_the_backbones_patch_embedding_by_name(tmp_path: Path, capsys) -> None:
    config, shapes = SYSTEMS["lingbot_va"]
    unread = {"patch_embedding.weight": (WIDTH, CHANNELS, 1, 2, 2), "patch_embedding.bias": (WIDTH,)}
    source = write_checkpoint(tmp_path / "source", config, random_tensors(shapes | unread))
    assert weights("import", source, f"--out={tmp_path / 'in'}", "--kind=lingbot_va") == 0
    out = capsys.readouterr().out
    assert all(f"ignored: {name}" in out for name in unread)


@pytest.mark.parametrize("kind", BEGUN)
def test_backbone_alone_is_refused_until_the_flag_is_given_and_every_made_tensor_is_named(
    tmp_path: Path, kind: str, capsys
) -> None:
    config, backbone, options, shapes = BEGUN[kind]
    tensors = random_tensors(backbone)
    source = write_checkpoint(tmp_path / "source", config, tensors)
    assert weights("import", source, f"--out={tmp_path / 'in'}", f"--kind={kind}") == 2
    assert f"without the action modules of {kind}" in (error := only_line(capsys))
    assert BEGIN in error
    assert not (tmp_path / "in").exists()

    assert weights("import", source, f"--out={tmp_path / 'in'}", f"--kind={kind}", BEGIN, *options) == 0
    out, record = capsys.readouterr().out, json.loads((tmp_path / "in/weights.json").read_text())
    exported = export(tmp_path / "in", tmp_path / "out")
    assert {name: value.shape for name, value in exported.items()} == shapes
    made = {name.replace("{layer}", str(i)) for name in record["made"] for i in range(LAYERS)}
    assert made & set(exported) == {name for name in exported if name not in {held(kind, n) for n in backbone}}
    for name, tensor in tensors.items():  # the backbone's are its very bytes
        assert exported[held(kind, name)].dtype == tensor.dtype, name
        assert exported[held(kind, name)].tobytes() == tensor.tobytes(), name
    assert all(f"made: {name}, {how}" in out for name, how in record["made"].items())
    assert record["seed"] == 0
    # What was written is a whole checkpoint of the system: it is read again without the flag.
    assert weights("import", tmp_path / "out", f"--out={tmp_path / 'again'}", f"--kind={kind}") == 0


def _begin(tmp_path: Path, kind: str, *flags: str) -> tuple[Tensors, Tensors]:
    """The backbone's tensors, and those of the system begun from it."""
    config, backbone, options, _ = BEGUN[kind]
    source, run = tmp_path / "source", len(list(tmp_path.iterdir()))
    if not source.exists():
        write_checkpoint(source, config, random_tensors(backbone))
    folder = tmp_path / f"in_{run}"
    assert weights("import", source, f"--out={folder}", f"--kind={kind}", BEGIN, *options, *flags) == 0
    return random_tensors(backbone), export(folder, tmp_path / f"out_{run}")


def test_dreamzero_modules_are_drawn_from_the_seed_with_deviation_two_hundredths(tmp_path: Path) -> None:
    (_, first), (_, same), (_, other) = (_begin(tmp_path, "dreamzero", f"--seed={seed}") for seed in (3, 3, 4))
    for name in dreamzero_modules(2, 4, 64, 24):
        assert first[name].tobytes() == same[name].tobytes()
        if name.endswith(".b"):
            assert not first[name].any()
        else:
            assert np.std(first[name]) == pytest.approx(0.02, rel=0.25)
            assert not np.array_equal(first[name], other[name])
    assert not np.array_equal(first["action_encoder.W3.W"][0], first["action_encoder.W3.W"][1])


def test_lingbot_va_copies_the_condition_embedder_and_draws_two_layers_as_torch_does(tmp_path: Path) -> None:
    backbone, begun = _begin(tmp_path, "lingbot_va")
    for name in (name for name in begun if name.startswith("condition_embedder_action.")):
        source = backbone[name.replace("_action.", ".")].astype(np.float32)
        np.testing.assert_array_equal(begun[name], source)
    for layer, fan_in in (("action_embedder", 30), ("action_proj_out", WIDTH)):
        for leaf in ("weight", "bias"):
            values = begun[f"{layer}.{leaf}"]
            assert np.abs(values).max() < fan_in**-0.5
            assert np.abs(values).max() > 0.5 * fan_in**-0.5
    patch = backbone["patch_embedding.weight"].reshape(WIDTH, CHANNELS * PATCH)
    np.testing.assert_array_equal(begun["patch_embedding_mlp.weight"], patch)


def test_fast_wam_expert_is_interpolated_from_the_video_stack_layer_by_layer(tmp_path: Path) -> None:
    backbone, begun = _begin(tmp_path, "fast_wam")

    def along_last(x: np.ndarray, size: int) -> np.ndarray:
        grid = np.linspace(0, x.shape[-1] - 1, size)
        rows = [np.interp(grid, np.arange(x.shape[-1]), row) for row in x.reshape(-1, x.shape[-1])]
        return np.reshape(rows, (*x.shape[:-1], size))

    def resized(x: np.ndarray, out: int, into: int) -> np.ndarray:
        return along_last(along_last(x.astype(np.float64).T, out).T, into) * (x.shape[1] / into) ** 0.5

    def close(name: str, expected: np.ndarray) -> None:
        np.testing.assert_allclose(begun[f"mixtures.action.{name}"], expected, atol=1e-4, err_msg=name)

    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        # [10 16] -> [6 8]: both dims, and sqrt(16 / 8) because the inputs are fewer.
        close(f"{block}ffn.0.weight", resized(backbone[f"{block}ffn.0.weight"], 6, 8))
        # The heads stay whole: inputs only for the queries, outputs only (and no scale) for the way out.
        close(f"{block}self_attn.q.weight", resized(backbone[f"{block}self_attn.q.weight"], WIDTH, 8))
        out = backbone[f"{block}self_attn.o.weight"].astype(np.float64)
        close(f"{block}self_attn.o.weight", along_last(out.T, 8).T)
        close(f"{block}self_attn.norm_q.weight", backbone[f"{block}self_attn.norm_q.weight"])
        # One dim: no scale. The table has the width last, and is scaled.
        close(f"{block}norm3.weight", along_last(backbone[f"{block}norm3.weight"].astype(np.float64), 8))
        table = along_last(backbone[f"{block}modulation"].astype(np.float64), 8)
        close(f"{block}modulation", table * 2**0.5)
    close("time_projection.1.weight", resized(backbone["time_projection.1.weight"], 48, 8))
    close("text_embedding.0.weight", along_last(backbone["text_embedding.0.weight"].astype(np.float64).T, 8).T)


def _damaged(kind: str, folder: Path, drop: str) -> Path:
    config, shapes = BEGUN[kind][:2]
    return write_checkpoint(folder, config, random_tensors({n: s for n, s in shapes.items() if n != drop}))


def test_backbone_that_lacks_a_tensor_is_refused_with_the_flag_too(tmp_path: Path, capsys) -> None:
    source = _damaged("dreamzero", tmp_path / "source", "blocks.1.ffn.2.weight")
    options = BEGUN["dreamzero"][2]
    assert weights("import", source, f"--out={tmp_path / 'in'}", "--kind=dreamzero", BEGIN, *options) == 3
    assert "1 missing, first blocks.1.ffn.2.weight" in only_line(capsys)


def test_system_that_lacks_a_tensor_of_its_own_is_refused_with_the_flag_too(tmp_path: Path, capsys) -> None:
    config, shapes = SYSTEMS["dreamzero"]
    tensors = random_tensors({name: shape for name, shape in shapes.items() if name != "action_decoder.layer2.b"})
    source = write_checkpoint(tmp_path / "source", config, tensors)
    assert weights("import", source, f"--out={tmp_path / 'in'}", "--kind=dreamzero", BEGIN) == 3
    assert "1 missing, first action_decoder.layer2.b" in only_line(capsys)


@pytest.mark.parametrize(
    ("kind", "flags", "words"),
    [
        ("fast_wam", [BEGIN], "--option=action_dim=..."),
        ("fast_wam", [BEGIN, "--option=actions=3"], "expected one of action_dim, proprio_dim, hidden_dim, ffn_dim"),
        ("fast_wam", [BEGIN, "--option=action_dim=three"], "expected a name and a whole number"),
        ("fast_wam", ["--option=action_dim=3"], f"needs {BEGIN}"),
        ("dreamzero", [BEGIN, "--option=action_dim=0"], "action_dim=0"),
        ("WanTransformer3DModel", [BEGIN], "a WanTransformer3DModel has none; say --kind="),
    ],
)
def test_wrong_option_is_one_line(tmp_path: Path, capsys, kind: str, flags: list[str], words: str) -> None:
    config, backbone = BEGUN.get(kind, BEGUN["fast_wam"])[:2]
    source = write_checkpoint(tmp_path / "source", config, random_tensors(backbone))
    assert weights("import", source, f"--out={tmp_path / 'in'}", f"--kind={kind}", *flags) == 2
    assert words in only_line(capsys)


def test_option_for_a_whole_checkpoint_is_refused(tmp_path: Path, capsys) -> None:
    config, shapes = SYSTEMS["dreamzero"]
    source = write_checkpoint(tmp_path / "source", config, random_tensors(shapes))
    flags = ("--kind=dreamzero", BEGIN, "--option=action_dim=4")
    assert weights("import", source, f"--out={tmp_path / 'in'}", *flags) == 2
    assert "holds all of a dreamzero" in only_line(capsys)


def test_backbone_of_another_class_is_refused(tmp_path: Path, capsys) -> None:
    config = json.loads((GOLDEN / "umt5_encoder/config.json").read_text())
    source = write_checkpoint(tmp_path / "source", config, random_tensors({"shared.weight": (3, 4)}))
    assert weights("import", source, f"--out={tmp_path}/in", "--kind=dreamzero", BEGIN) == 2
    assert "UMT5EncoderModel; dreamzero is begun from a WanTransformer3DModel" in only_line(capsys)


@pytest.mark.parametrize("kind", ["lingbot_va", "fast_wam"])
def test_verify_of_a_kind_without_a_forward_pass_is_one_line(tmp_path: Path, capsys, kind: str) -> None:
    config, shapes = SYSTEMS[kind]
    source = write_checkpoint(tmp_path / "source", config, random_tensors(shapes))
    assert weights("verify", source, f"--kind={kind}") == 2
    assert f"{kind} has no forward pass" in only_line(capsys)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("dreamzero", {"model_type": "vace"}, "model_type='vace'"),
        ("dreamzero", {"num_heads": 3}, "dim=16 and num_heads=3"),
        ("dreamzero", {"qk_norm": False}, "qk_norm=False"),
        ("fast_wam", {"action_dit_config": {}}, "action_dit_config.action_dim"),
        ("fast_wam", {"action_dit_config": {"action_dim": 3, "num_layers": 1}}, "num_layers=1"),
        ("fast_wam", {"action_dit_config": {"action_dim": 3, "num_heads": 4}}, "joint attention needs the same"),
        ("fast_wam", {"video_dit_config": {"hidden_dim": 20}}, "hidden_dim=20"),
    ],
)
def test_configuration_that_is_not_supported_is_named(kind: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        KINDS[kind].parse_config({**SYSTEMS[kind][0], **change})
    assert "\n" not in str(error.value)


def _own_parameters(kind: str, config: dict[str, Any]) -> int:
    """Number of parameters outside the backbone, allocating nothing."""
    parsed = KINDS[kind].parse_config(config)
    module = nnx.eval_shape(lambda: KINDS[kind].build(jax.random.key(0), parsed))
    state = nnx.to_flat_state(nnx.state(module))
    return sum(int(np.prod(leaf.shape)) for path, leaf in state if path[0] != "video")


def test_published_sizes_have_the_parameters_of_the_hand_count() -> None:
    d, u, p, h = 5120, 32, 64, 1024  # DreamZero 14B
    state, decoder = p * h + h + h * d + d, d * h + h + h * u + u
    encoder = u * d + d + 2 * d * d + d + d * d + d
    sizes = {"dim": d, "num_heads": 40, "num_layers": 40, "ffn_dim": 13824, "in_dim": 36, "model_type": "i2v"}
    assert _own_parameters("dreamzero", sizes) == state + encoder + decoder == 89_413_664

    d, u = 3072, 30  # LingBot-VA on Wan 2.2 5B: embedder of timesteps and text, two linear layers
    embedder = 256 * d + d + d * d + d + 6 * (d * d + d) + 4096 * d + d + d * d + d
    assert _own_parameters("lingbot_va", {}) == embedder + u * d + d + d * u + u

    w, f, u = 1024, 4096, 14  # Fast-WAM on RoboTwin; its heads are the video's 24 x 128
    attention = 3 * (w * d + d) + d * w + w + 2 * d
    block = 2 * attention + w * f + f + f * w + w + 2 * w + 6 * w
    ends = u * w + w + w * u + u + u * 4096 + 4096
    embedder = 256 * w + w + w * w + w + 6 * (w * w + w) + 4096 * w + w + w * w + w
    config = {"action_dit_config": {"action_dim": u}, "proprio_dim": u}
    assert _own_parameters("fast_wam", config) == 30 * block + embedder + ends == 1_020_961_806


@pytest.mark.slow
@pytest.mark.parametrize("kind", BEGUN)
def test_system_begun_on_eight_devices_equals_one_begun_on_one(tmp_path: Path, kind: str) -> None:
    config, backbone, options, _ = BEGUN[kind]
    source = write_checkpoint(tmp_path / "source", config, random_tensors(backbone))
    given = dict(option.removeprefix("--option=").split("=") for option in options)
    initialise = Initialise(seed=5, options={name: int(value) for name, value in given.items()})
    loaded = [
        load_reference(
            source,
            build_mesh(ParallelConfig(data=1, fsdp=count, context=1, tensor=1), jax.devices()[:count]),
            kind_name=kind,
            initialise=initialise,
        ).params
        for count in (1, 8)
    ]
    jax.tree.map(lambda one, eight: np.testing.assert_array_equal(np.asarray(one), np.asarray(eight)), *loaded)
