"""Closed forms of the frozen encoders against the walks over their jaxprs, at the published sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from launch.experiment import load_experiment
from wamjax.config.backbone import ClipConfig
from wamjax.config.encoders import CLIP_VIT_H_14, UMT5_XXL
from wamjax.config.presets import COSMOS_PREDICT2_2B_VIDEO2WORLD, WAN_2_2_TI2V_5B
from wamjax.config.schema import LayoutConfig, RunConfig
from wamjax.config.wan_vae import WAN_2_1_VAE, WAN_2_2_VAE
from wamjax.errors import ConfigError
from wamjax.flops.encoders import clip_vision_flops, encoder_flops, umt5_flops
from wamjax.flops.jaxpr import trace_flops
from wamjax.flops.wan_vae import vae_encode_flops
from wamjax.models.clip_vision import ClipVisionEncoder
from wamjax.models.umt5 import Umt5Encoder


def walk(make_module, *arrays) -> int:
    graphdef, state = nnx.split(nnx.eval_shape(make_module))
    return trace_flops(lambda params, *x: nnx.merge(graphdef, params)(*x), nnx.to_pure_dict(state), *arrays).total


def test_umt5_xxl_equals_the_jaxpr_and_the_count_by_hand() -> None:
    ids = jax.ShapeDtypeStruct((1, 512), jnp.int32)
    flops = umt5_flops(UMT5_XXL, 512)
    assert flops == walk(lambda: Umt5Encoder(jax.random.key(0), UMT5_XXL), ids)
    d, f, tokens = 4096, 10_240, 512
    assert flops == 24 * (8 * tokens * d * d + 4 * tokens**2 * d + 6 * tokens * d * f)


def test_umt5_whose_heads_are_wider_than_the_model_equals_the_jaxpr() -> None:
    config = dataclasses.replace(UMT5_XXL, vocab_size=30, width=12, num_layers=2, num_heads=3, head_dim=8, ffn_width=20)
    assert umt5_flops(config, 7) == walk(
        lambda: Umt5Encoder(jax.random.key(0), config), jax.ShapeDtypeStruct((1, 7), jnp.int32)
    )


def test_clip_vit_h_14_equals_the_jaxpr_and_the_count_by_hand() -> None:
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    flops = clip_vision_flops(CLIP_VIT_H_14)
    assert flops == walk(lambda: ClipVisionEncoder(jax.random.key(0), CLIP_VIT_H_14), images)
    d, f, tokens = 1280, 5120, 257
    assert flops == 2 * 256 * 588 * d + 32 * (8 * tokens * d * d + 4 * tokens**2 * d + 4 * tokens * d * f)


def test_encoders_of_a_text_to_video_run_are_one_clip_and_one_prompt() -> None:
    found = encoder_flops(load_experiment("experiments/pretrain/wan_14b_480p.py"))
    assert found == {
        "vae": vae_encode_flops(WAN_2_1_VAE, 81, 480, 832),
        "text": umt5_flops(UMT5_XXL, 512),
        "image": 0,
    }


def test_encoders_of_dreamzero_are_clip_and_condition_and_one_image() -> None:
    found = encoder_flops(load_experiment("experiments/systems/dreamzero_14b_droid.py"))
    assert found["vae"] == 2 * vae_encode_flops(WAN_2_1_VAE, 33, 352, 640)
    assert found["image"] == clip_vision_flops(CLIP_VIT_H_14)


def test_encoders_of_the_small_model_are_none() -> None:
    assert encoder_flops(load_experiment("experiments/quickstart.py")) == {"vae": 0, "text": 0, "image": 0}


def test_autoencoder_is_found_by_its_latents_or_named() -> None:
    clip = ClipConfig(num_frames=17, height=64, width=96, stride=(4, 16, 16))
    config = RunConfig(backbone=WAN_2_2_TI2V_5B, clip=clip, layout=LayoutConfig(formulation="video"))
    assert encoder_flops(config)["vae"] == vae_encode_flops(WAN_2_2_VAE, 17, 64, 96)
    odd = dataclasses.replace(config, clip=dataclasses.replace(clip, stride=(4, 8, 16)))
    with pytest.raises(ConfigError, match=r"config\.clip\.stride=\(4, 8, 16\) .* no published Wan autoencoder"):
        encoder_flops(odd)
    assert encoder_flops(odd, vae=WAN_2_2_VAE) == encoder_flops(config)


def test_text_encoder_of_another_width_is_refused() -> None:
    config = RunConfig(backbone=COSMOS_PREDICT2_2B_VIDEO2WORLD, layout=LayoutConfig(formulation="video"))
    with pytest.raises(ConfigError, match=r"config\.backbone\.text_width=1024 .* 4096"):
        encoder_flops(config)
