"""Closed forms of the Wan autoencoders against the walk over their jaxprs, and against convolutions counted by hand."""

import dataclasses

import jax
import pytest
from flax import nnx

from wamjax.config.wan_vae import WAN_2_1_VAE, WAN_2_2_VAE, WanVaeConfig
from wamjax.errors import DataError
from wamjax.flops.jaxpr import trace_flops
from wamjax.flops.wan_vae import vae_decode_flops, vae_encode_flops
from wamjax.models.wan_vae import WanVae

PRESETS = {"2.1": WAN_2_1_VAE, "2.2": WAN_2_2_VAE}


@pytest.mark.parametrize("generation", PRESETS)
def test_vae_closed_forms_equal_the_jaxprs(generation):
    config = PRESETS[generation]
    graphdef, state = nnx.split(nnx.eval_shape(lambda: WanVae(jax.random.key(0), config)))
    params, grid = nnx.to_pure_dict(state), config.spatial_compression
    # One frame, so no convolution over time; several whose attention is taken in chunks of queries.
    for frames, height, width in ((1, 64, 32), (9, 33 * grid, 32 * grid)):
        latents = (1, 1 + frames // 4, height // grid, width // grid, config.latent_channels)
        video = jax.ShapeDtypeStruct((1, frames, height, width, 3), "float32")
        encode = trace_flops(lambda p, x: nnx.merge(graphdef, p).encode(x), params, video)
        decode = trace_flops(
            lambda p, x: nnx.merge(graphdef, p).decode(x), params, jax.ShapeDtypeStruct(latents, "float32")
        )
        assert vae_encode_flops(config, frames, height, width) == encode.total
        assert vae_decode_flops(config, frames, height, width) == decode.total


SMALL = {
    name: dataclasses.replace(
        config, width_multipliers=(1, 2, 2), temporal_downsample=(True, True), num_res_blocks=1, base_width=4,
        decoder_base_width=4,
    )
    for name, config in PRESETS.items()
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [*SMALL.values(), *PRESETS.values()],
    ids=lambda config: f"{config.latent_channels}_channels_{len(config.width_multipliers)}_levels",
)
def test_vae_closed_forms_equal_the_jaxprs_of_clips_in_chunks(config):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: WanVae(jax.random.key(0), config)))
    params, side = nnx.to_pure_dict(state), 2 * config.spatial_compression
    for frames, chunk in ((1, 4), (13, 8)):  # one frame; a chunk and a rest
        latents = jax.ShapeDtypeStruct((1, 1 + frames // 4, 2, 2, config.latent_channels), "float32")
        video = jax.ShapeDtypeStruct((1, frames, side, side, 3), "float32")
        encode = trace_flops(lambda p, x, c=chunk: nnx.merge(graphdef, p).encode(x, chunk=c), params, video)
        decode = trace_flops(lambda p, x, c=chunk: nnx.merge(graphdef, p).decode(x, chunk=c // 4), params, latents)
        assert vae_encode_flops(config, frames, side, side, in_chunks=True) == encode.total
        assert vae_decode_flops(config, frames, side, side, in_chunks=True) == decode.total


def test_vae_of_one_level_equals_the_count_by_hand():
    config = WanVaeConfig(
        base_width=4,
        decoder_base_width=4,
        width_multipliers=(1,),
        num_res_blocks=1,
        temporal_downsample=(),
        latent_channels=2,
        latents_mean=(0.0, 0.0),
        latents_std=(1.0, 1.0),
    )
    frames, height, width = 5, 2, 3
    pixels = frames * height * width
    # Tap pairs of 3 taps: 5 frames with 2 before the clip left out; 2 rows and 3 columns with one padded on each side.
    taps = (3 * 5 - 3) * (3 * 2 - 2) * (3 * 3 - 2)
    attention = 2 * pixels * (3 + 1) * 4 * 4 + 4 * 4 * frames * (height * width) ** 2
    convolutions = 3 * 4 + 2 * 4 * 4 + 2 * 2 * 4 * 4 + 4 * 4  # in, one block, two blocks, out: products per tap pair
    assert vae_encode_flops(config, frames, height, width) == 2 * taps * convolutions + attention + 2 * pixels * 4 * 4
    convolutions = 2 * 4 + 2 * 2 * 4 * 4 + 2 * 2 * 4 * 4 + 4 * 3
    assert vae_decode_flops(config, frames, height, width) == 2 * taps * convolutions + attention + 2 * pixels * 2 * 2


def test_vae_flops_of_a_clip_it_does_not_take_are_refused():
    with pytest.raises(DataError, match="16 frames"):
        vae_encode_flops(WAN_2_1_VAE, 16, 128, 128)
