"""The Wan autoencoders in chunks, on several devices, in bf16, and on clips they do not take."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.tiny import QUICK_COMPILE
from wamjax.config.wan_vae import WAN_2_1_VAE, WAN_2_2_VAE, WanVaeConfig
from wamjax.errors import ConfigError, DataError
from wamjax.models.wan_vae import Moments, WanVae
from wamjax.models.wan_vae.convolution import ChannelNorm

# Time is halved twice, as published: a chunk of four frames becomes one latent frame. The other generation, which the
# fast tests run, halves it once, to compile sooner.
PLAIN = WanVaeConfig(
    base_width=4,
    decoder_base_width=4,
    width_multipliers=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    latent_channels=3,
    latents_mean=(0.1, -0.5, 0.9),
    latents_std=(1.5, 0.4, 2.0),
)
BRIDGED = dataclasses.replace(
    PLAIN,
    width_multipliers=(2, 1),
    temporal_downsample=(True,),
    has_level_shortcuts=True,
    patch_size=2,
    in_channels=12,
    out_channels=12,
)
CONFIGS = {"2.1": PLAIN, "2.2": BRIDGED}
FRAMES = 17


jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)


def make(config, seed=0):
    """The structure of a module and random values for all its parameters."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: WanVae(jax.random.key(0), config)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        spread = 0.3 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        offset = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return np.asarray(offset + spread * rng.standard_normal(leaf.shape), np.float32)

    return graphdef, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))


def video_of(config, frames=FRAMES, batch=1, cells=2, seed=1):
    side = cells * config.spatial_compression
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (batch, frames, side, side, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=[pytest.param("2.1", marks=pytest.mark.slow), "2.2"])
def whole(request):
    """A model, a clip, and what they give when the clip is taken whole."""
    config = CONFIGS[request.param]
    graphdef, params = make(config)
    video = video_of(config)

    @jit
    def run(params, video):
        model = nnx.merge(graphdef, params)
        moments = model.encode(video)
        return moments, model.decode_unclamped(moments.mean)

    return config, graphdef, params, video, *run(params, video)


@pytest.mark.parametrize(
    "chunks",
    [
        (4, 1),
        pytest.param((12, 3), marks=pytest.mark.slow),
        pytest.param((400, 100), marks=pytest.mark.slow),
    ],
    ids=["even", "with a rest", "longer than the clip"],
)
def test_vae_in_chunks_equals_whole_clip(whole, chunks):
    _, graphdef, params, video, moments, pixels = whole

    @jit
    def run(params, video):
        model = nnx.merge(graphdef, params)
        return model.encode(video, chunk=chunks[0]), model.decode_unclamped(moments.mean, chunk=chunks[1])

    got_moments, got_pixels = run(params, video)
    for got, expected in zip(got_moments, moments, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)
    np.testing.assert_allclose(got_pixels, pixels, atol=2e-5)


@pytest.mark.slow
def test_vae_step_by_step_equals_whole_clip(whole):
    config, graphdef, params, video, moments, pixels = whole
    step = config.temporal_compression
    encode = jit(lambda params, x, cache: nnx.merge(graphdef, params).encode_step(x, cache))
    decode = jit(lambda params, x, cache: nnx.merge(graphdef, params).decode_step(x, cache))
    encoder_cache = decoder_cache = None
    for start, stop in ((0, 1), (1, 5), (5, 13), (13, FRAMES)):
        part, encoder_cache = encode(params, video[:, start:stop], encoder_cache)
        first = (start + step - 1) // step
        np.testing.assert_allclose(part.mean, moments.mean[:, first : first + part.mean.shape[1]], atol=2e-5)
        frames, decoder_cache = decode(params, part.mean, decoder_cache)
        np.testing.assert_allclose(frames, pixels[:, start:stop], atol=2e-5)


@pytest.mark.slow
def test_vae_working_memory_in_chunks_does_not_grow_with_the_clip():
    graphdef, params = make(PLAIN)

    def temporary_bytes(frames, chunk):
        shape = (1, frames, 64, 64, 3)
        encode = jit(lambda params, x: nnx.merge(graphdef, params).encode(x, chunk=chunk).mean)
        lowered = encode.lower(params, jax.ShapeDtypeStruct(shape, jnp.float32))
        analysis = lowered.compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes, np.prod(shape) * 4

    short, short_clip = temporary_bytes(9, 4)
    long, long_clip = temporary_bytes(65, 4)
    # What grows is at most a copy of the clip; its activations, 4 to 8 channels and several at a time, do not.
    assert long - short <= long_clip - short_clip


def test_vae_latents_do_not_see_later_frames():
    graphdef, params = make(PLAIN)

    def early(video, params):
        moments = nnx.merge(graphdef, params).encode(video)
        return jnp.sum(moments.mean[:, :2] ** 2)  # of frames 0 to 4

    gradient = jit(jax.grad(early))(video_of(PLAIN, 9), params)
    per_frame = np.abs(gradient).max(axis=(0, 2, 3, 4))
    assert np.all(per_frame[:5] > 0)
    assert not np.any(per_frame[5:])


@pytest.mark.parametrize("half", ["encode", pytest.param("decode", marks=pytest.mark.slow)])
@pytest.mark.parametrize("generation", [pytest.param("2.1", marks=pytest.mark.slow), "2.2"])
def test_vae_split_over_batch_rows_and_columns_of_eight_devices_equals_one(generation, half):
    config = CONFIGS[generation]
    graphdef, params = make(config)
    if half == "encode":
        inputs = video_of(config, frames=5, batch=2, cells=4)
    else:
        inputs = np.random.default_rng(2).standard_normal((2, 2, 4, 4, 3)).astype(np.float32)

    def run(params, inputs):
        model = nnx.merge(graphdef, params)
        return model.encode(inputs).mean if half == "encode" else model.decode_unclamped(inputs)

    expected = jit(run)(params, inputs)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "rows", "columns"), axis_types=(AxisType.Auto,) * 3)
    split = NamedSharding(mesh, P("data", None, "rows", "columns"))
    sharded = jit(run, in_shardings=(NamedSharding(mesh, P()), split), out_shardings=split)
    compiled = sharded.lower(params, inputs).compile()
    got = compiled(params, jax.device_put(inputs, split))
    assert got.addressable_shards[0].data.size * 8 == got.size
    np.testing.assert_allclose(got, expected, atol=2e-5)
    # Neighbours exchange the rows and columns at their borders, and attention gathers its small grid: nobody ever holds
    # the features of a whole frame.
    text = compiled.as_text() or ""
    assert "collective-permute" in text
    gathered = re.findall(r"f32\[([\d,]+)\]\S* all-gather", text)
    frame = config.base_width * (4 * config.spatial_compression // config.patch_size) ** 2
    assert max(math.prod(map(int, dims.split(","))) for dims in gathered) < frame


def test_vae_in_bfloat16_stays_near_fp32_and_returns_fp32(whole):
    config, graphdef, params, video, moments, _ = whole
    graphdef, _ = nnx.split(
        nnx.eval_shape(lambda: WanVae(jax.random.key(0), dataclasses.replace(config, compute_dtype="bfloat16")))
    )
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    encode = jit(lambda params, x: nnx.merge(graphdef, params).encode(x))
    got = encode(halved, video)
    assert got.mean.dtype == got.log_variance.dtype == jnp.float32
    assert np.linalg.norm(got.mean - moments.mean) < 0.05 * np.linalg.norm(moments.mean)
    dtypes = set(re.findall(r"stablehlo.convolution.*-> tensor<[\dx]*x(\w+)>", encode.lower(halved, video).as_text()))
    assert dtypes == {"bf16"}


@pytest.mark.parametrize("config", [WAN_2_1_VAE, WAN_2_2_VAE], ids=["2.1", "2.2"])
def test_vae_latents_are_normalised_channel_by_channel(config):
    small = dataclasses.replace(config, base_width=8, decoder_base_width=8, num_res_blocks=1)
    model = nnx.eval_shape(lambda: WanVae(jax.random.key(0), small))
    latents = np.random.default_rng(0).standard_normal((2, 3, 1, 1, config.latent_channels)).astype(np.float32)
    latents = jnp.asarray(latents)
    normalised = model.normalise(latents)
    # By hand, with the first and last published numbers.
    first, last = {16: ((-0.7571, 2.8184), (-0.2921, 1.9160)), 48: ((-0.2289, 0.4765), (-0.0667, 0.7744))}[
        config.latent_channels
    ]
    np.testing.assert_allclose(normalised[..., 0], (latents[..., 0] - first[0]) / first[1], rtol=1e-6)
    np.testing.assert_allclose(normalised[..., -1], (latents[..., -1] - last[0]) / last[1], rtol=1e-6)
    np.testing.assert_allclose(model.denormalise(normalised), latents, atol=1e-6)


def test_moments_sample_has_their_mean_and_bounded_variance():
    shape = (1, 1, 200, 200, 1)
    moments = Moments(jnp.full(shape, 2.0), jnp.full(shape, jnp.log(0.25)))
    drawn = moments.sample(jax.random.key(0))
    assert float(jnp.mean(drawn)) == pytest.approx(2.0, abs=0.01)
    assert float(jnp.std(drawn)) == pytest.approx(0.5, abs=0.01)
    # The bounds of diffusers: log variance between -30 and 20.
    wild = Moments(jnp.zeros(shape), jnp.full(shape, 1e3)).sample(jax.random.key(0))
    assert float(jnp.std(wild)) == pytest.approx(np.exp(10.0), rel=0.02)


def test_channel_norm_of_a_black_pixel_is_black_with_a_finite_gradient():
    norm = ChannelNorm(jax.random.key(0), 3)
    value, gradient = jax.value_and_grad(lambda x: norm(x)[0])(jnp.zeros(3))
    assert float(value) == 0.0
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 8, 8, 3), r"video has 4 frames; .* takes 4 n \+ 1"),
        ((1, 0, 8, 8, 3), "video has 0 frames"),
        ((1, 5, 8, 10, 3), "8 x 10 pixels; .* multiples of 4"),
        ((1, 5, 8, 8, 4), r"shape \(1, 5, 8, 8, 4\); expected \[batch frames height width 3\]"),
        ((5, 8, 8, 3), r"shape \(5, 8, 8, 3\)"),
    ],
)
def test_vae_clip_it_does_not_take_is_refused_in_one_line(shape, message):
    model = nnx.eval_shape(lambda: WanVae(jax.random.key(0), PLAIN))
    with pytest.raises(DataError, match=message) as error:
        model.encode(jnp.zeros(shape))
    assert "\n" not in str(error.value)


def test_vae_wrong_chunks_latents_and_later_frames_are_refused():
    model = nnx.eval_shape(lambda: WanVae(jax.random.key(0), PLAIN))
    with pytest.raises(ConfigError, match="chunk=6 frames; expected a positive multiple of 4"):
        model.encode(jnp.zeros((1, 5, 8, 8, 3)), chunk=6)
    with pytest.raises(ConfigError, match="chunk=0 latent frames"):
        model.decode(jnp.zeros((1, 2, 2, 2, 3)), chunk=0)
    with pytest.raises(DataError, match=r"latents have shape \(1, 2, 2, 2, 16\); expected .* 3\]"):
        model.decode(jnp.zeros((1, 2, 2, 2, 16)))
    with pytest.raises(DataError, match=r"5 frames; .* takes 4 n frames .* after the first"):
        model.encode_step(jnp.zeros((1, 5, 8, 8, 3)), cache=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temporal_downsample": (True,)}, "temporal_downsample has 1 entries"),
        ({"width_multipliers": (1, 1, 1, 1), "temporal_downsample": (True,) * 3}, "halves time 3 times"),
        ({"latents_std": (1.0,)}, "latents_std has 1 entries; expected latent_channels=3"),
        ({"patch_size": 2}, "in_channels=3 is not a multiple of patch_size squared"),
        ({"has_level_shortcuts": True, "width_multipliers": (1, 1, 3)}, "cannot divide 4 channels into 12"),
    ],
)
def test_vae_config_that_cannot_be_built_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PLAIN, **change)
