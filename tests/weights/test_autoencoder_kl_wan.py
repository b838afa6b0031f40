"""The Wan autoencoders and their checkpoints against diffusers' outputs, gradients, names and counts."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.weights.golden_folder import GOLDEN, check_golden, parameter_shapes, read_golden
from wamjax.config.wan_vae import WAN_2_1_VAE, WAN_2_2_VAE
from wamjax.errors import ConfigError
from wamjax.weights.kinds.autoencoder_kl_wan import KIND

GENERATIONS = ("autoencoder_kl_wan_2_1", "autoencoder_kl_wan_2_2")
PRESETS = {"2.1": WAN_2_1_VAE, "2.2": WAN_2_2_VAE}

needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="needs the parity extra (diffusers)"
)


@pytest.fixture(scope="module", params=GENERATIONS)
def golden(request):
    return read_golden(GOLDEN / request.param)


def test_vae_equals_diffusers_forward_and_gradients(golden):
    check_golden(KIND, golden)


@pytest.mark.parametrize(("generation", "count"), [("2.1", 126_892_531), ("2.2", 704_688_668)])
def test_vae_preset_has_the_reference_number_of_parameters(generation, count):
    # Summed over diffusers 0.42.1's AutoencoderKLWan on the meta device: its defaults, and the configuration of
    # scripts/convert_wan_to_diffusers.py (vae22_diffusers_config).
    shapes = parameter_shapes(KIND, PRESETS[generation])
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count


@pytest.mark.parametrize("naming", KIND.namings)
@pytest.mark.parametrize("generation", PRESETS)
def test_vae_every_parameter_has_one_rule_and_every_rule_one_tensor(generation, naming):
    rules = KIND.rules(PRESETS[generation], naming)
    assert sorted(rule.path for rule in rules) == sorted(parameter_shapes(KIND, PRESETS[generation]))
    assert len({rule.name for rule in rules}) == len(rules)


@pytest.mark.parametrize(
    ("generation", "pairs"),
    [
        # By hand from wan/modules/vae.py of Wan 2.1: one flat list of residual blocks and resamplings on either side,
        # two (encoder) or three (decoder) blocks to a level.
        (
            "2.1",
            {
                "encoder.downsamples.2.resample.1.weight": "encoder.down_blocks.2.resample.1.weight",
                "encoder.downsamples.3.shortcut.weight": "encoder.down_blocks.3.conv_shortcut.weight",
                "encoder.downsamples.8.time_conv.bias": "encoder.down_blocks.8.time_conv.bias",
                "encoder.downsamples.10.residual.6.weight": "encoder.down_blocks.10.conv2.weight",
                "decoder.upsamples.3.time_conv.weight": "decoder.up_blocks.0.upsamplers.0.time_conv.weight",
                "decoder.upsamples.4.shortcut.bias": "decoder.up_blocks.1.resnets.0.conv_shortcut.bias",
                "decoder.upsamples.11.resample.1.bias": "decoder.up_blocks.2.upsamplers.0.resample.1.bias",
                "decoder.upsamples.14.residual.3.gamma": "decoder.up_blocks.3.resnets.2.norm2.gamma",
            },
        ),
        # From vae2_2.py of Wan 2.2: a list of levels, each a list of residual blocks and at most one resampling.
        (
            "2.2",
            {
                "encoder.downsamples.0.downsamples.2.resample.1.weight": (
                    "encoder.down_blocks.0.downsampler.resample.1.weight"
                ),
                "encoder.downsamples.1.downsamples.0.shortcut.bias": (
                    "encoder.down_blocks.1.resnets.0.conv_shortcut.bias"
                ),
                "encoder.downsamples.2.downsamples.2.time_conv.weight": (
                    "encoder.down_blocks.2.downsampler.time_conv.weight"
                ),
                "encoder.downsamples.3.downsamples.1.residual.0.gamma": "encoder.down_blocks.3.resnets.1.norm1.gamma",
                "decoder.upsamples.1.upsamples.3.time_conv.bias": "decoder.up_blocks.1.upsampler.time_conv.bias",
                "decoder.upsamples.2.upsamples.0.shortcut.weight": (
                    "decoder.up_blocks.2.resnets.0.conv_shortcut.weight"
                ),
                "decoder.upsamples.3.upsamples.2.residual.2.weight": "decoder.up_blocks.3.resnets.2.conv1.weight",
            },
        ),
    ],
)
def test_vae_original_names_are_those_of_wan(generation, pairs):
    common = {
        "conv1.weight": "quant_conv.weight",
        "conv2.bias": "post_quant_conv.bias",
        "encoder.conv1.bias": "encoder.conv_in.bias",
        "encoder.middle.0.residual.2.weight": "encoder.mid_block.resnets.0.conv1.weight",
        "decoder.middle.1.to_qkv.weight": "decoder.mid_block.attentions.0.to_qkv.weight",
        "decoder.middle.2.residual.3.gamma": "decoder.mid_block.resnets.1.norm2.gamma",
        "decoder.head.0.gamma": "decoder.norm_out.gamma",
        "encoder.head.2.weight": "encoder.conv_out.weight",
    }
    by_path = {rule.path: rule.name for rule in KIND.rules(PRESETS[generation], "diffusers")}
    renamed = {rule.name: by_path[rule.path] for rule in KIND.rules(PRESETS[generation], "original")}
    for original, name in (common | pairs).items():
        assert renamed[original] == name


def test_vae_published_configs_parse_to_the_presets():
    assert KIND.parse_config({"_class_name": "AutoencoderKLWan", "decoder_base_dim": None, "patch_size": None}) == (
        WAN_2_1_VAE
    )
    # huggingface.co/Wan-AI/Wan2.2-TI2V-5B-Diffusers, vae/config.json, but for the statistics.
    published = {
        "attn_scales": [],
        "base_dim": 160,
        "clip_output": False,
        "decoder_base_dim": 256,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "in_channels": 12,
        "is_residual": True,
        "latents_mean": list(WAN_2_2_VAE.latents_mean),
        "latents_std": list(WAN_2_2_VAE.latents_std),
        "num_res_blocks": 2,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "scale_factor_temporal": 4,
        "temperal_downsample": [False, True, True],
        "z_dim": 48,
    }
    assert KIND.parse_config(published) == WAN_2_2_VAE


@pytest.mark.parametrize(
    ("key", "value"), [("attn_scales", [0.5]), ("dropout", 0.1), ("temporal_downsample", [True]), ("z_dim", 4)]
)
def test_vae_unsupported_config_is_named(golden, key, value):
    with pytest.raises(ConfigError, match="latents_mean" if key == "z_dim" else key) as error:
        KIND.parse_config({**golden.config, key: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["video_a", "video_b"], {"moments_a", "recon_raw_b"}),
        (["video"], {"moments", "latent_norm", "out"}),
        (["video0", "z1"], {"mode_0", "mode0", "recon_0", "zdec_raw_1", "out"}),
    ],
)
def test_vae_outputs_are_named_after_their_inputs(golden, names, expected):
    config = KIND.parse_config(golden.config)
    shapes = {"video": golden.inputs["video_a"].shape, "z": golden.inputs["z_b"].shape}
    inputs = {
        name: jax.ShapeDtypeStruct(shapes["z" if name.startswith("z") else "video"], jnp.float32) for name in names
    }
    model = nnx.eval_shape(lambda: KIND.build(jax.random.key(0), config))
    outputs = nnx.eval_shape(KIND.outputs, model, inputs)
    assert expected <= outputs.keys()
    assert ("out" in outputs) == (len([name for name in names if name.startswith("video")]) == 1)


def test_vae_input_that_is_neither_video_nor_latents_is_refused(golden):
    model = nnx.eval_shape(lambda: KIND.build(jax.random.key(0), KIND.parse_config(golden.config)))
    with pytest.raises(ConfigError, match="'sample' is no input"):
        KIND.outputs(model, {"sample": jnp.zeros(())})


@pytest.mark.slow
@pytest.mark.parity
@needs_diffusers
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_vae_other_shapes_equal_diffusers(tmp_path, seed):
    from tests.golden import make_autoencoder_kl_wan

    published = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
    statistics = {"z_dim": 3, "latents_mean": [0.1, -0.5, 0.9], "latents_std": [1.5, 0.4, 2.0]}
    folded = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
    config, clip = {
        1: ({"base_dim": 4, **published}, (1, 3, 9, 16, 24)),
        2: ({"base_dim": 4, "decoder_base_dim": 6, **published, **folded}, (2, 3, 13, 32, 16)),
        3: ({"base_dim": 6, "dim_mult": [1, 2], "num_res_blocks": 3, "temperal_downsample": [True]}, (2, 3, 5, 6, 10)),
        4: ({"base_dim": 4, **published, **folded}, (1, 3, 1, 16, 16)),
    }[seed]
    make_autoencoder_kl_wan.write(tmp_path, {**config, **statistics}, clip=clip, seed=seed)
    print(check_golden(KIND, read_golden(tmp_path)))


@pytest.mark.slow
@pytest.mark.parity
@needs_diffusers
def test_vae_original_names_convert_as_in_diffusers():
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    by_path = {rule.path: rule.name for rule in KIND.rules(WAN_2_1_VAE, "diffusers")}
    original = {rule.name: by_path[rule.path] for rule in KIND.rules(WAN_2_1_VAE, "original")}
    assert convert_wan_vae_to_diffusers(original) == {name: name for name in by_path.values()}
