"""The UMT5 encoder and its checkpoints against transformers' outputs, gradients, names and counts."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from tests.weights.golden_folder import (
    GOLDEN,
    build,
    check_golden,
    nest,
    parameter_shapes,
    read_golden,
    to_ours,
)
from wamjax.config.encoders import UMT5_XXL
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError, DataError
from wamjax.models.umt5 import pad_prompts, relative_buckets
from wamjax.parallel.mesh import batch_sharding, build_mesh
from wamjax.parallel.parameters import parameter_axes
from wamjax.parallel.rule_tables import PARAMETER_RULES
from wamjax.parallel.rules import partition_spec, placing
from wamjax.weights.kinds.umt5_encoder import KIND

FOLDER = GOLDEN / "umt5_encoder"


@pytest.fixture(scope="module")
def golden():
    return read_golden(FOLDER)


@pytest.fixture(scope="module")
def config(golden):
    return KIND.parse_config(golden.config)


def test_umt5_equals_transformers_forward_and_gradients(golden):
    check_golden(KIND, golden)


def test_umt5_xxl_has_the_published_number_of_parameters():
    # Summed over transformers 5.23's UMT5EncoderModel of google/umt5-xxl's config.json, on the meta device.
    assert sum(int(np.prod(shape)) for shape in parameter_shapes(KIND, UMT5_XXL).values()) == 5_680_910_336


def test_umt5_original_names_are_those_of_wan(config):
    # wan/modules/t5.py of Wan 2.1: module attributes of T5Encoder, T5SelfAttention, T5Attention, T5FeedForward.
    per_block = {
        "norm1.weight",
        "norm2.weight",
        "pos_embedding.embedding.weight",
        *(f"attn.{letter}.weight" for letter in "qkvo"),
        *(f"ffn.{part}.weight" for part in ("gate.0", "fc1", "fc2")),
    }
    names = {rule.name for rule in KIND.rules(config, "original")}
    assert names == {"token_embedding.weight", "norm.weight", *("blocks.{layer}." + name for name in per_block)}


def test_umt5_table_is_also_read_under_the_name_it_is_tied_to(config):
    (table,) = (rule for rule in KIND.rules(config, "diffusers") if rule.path == "embedding")
    assert table.names_of(0) == ("shared.weight", "encoder.embed_tokens.weight")


@pytest.mark.parametrize("mode", ["forward", pytest.param("gradients", marks=pytest.mark.slow)])
def test_umt5_on_eight_devices_equals_one(golden, mode):
    # Sizes that divide over the mesh; the fixture's do not all.
    config = KIND.parse_config({**golden.config, "num_layers": 2, "num_heads": 4, "d_kv": 4, "d_ff": 16})
    params = nest(_random_parameters(config))
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(2, config.vocab_size, (4, 12)), jnp.int32)
    mask = jnp.asarray(np.arange(12) < np.array([[12], [3], [7], [1]]), jnp.int32)

    def run(params, ids, mask):
        def loss(params):
            return jnp.mean(jnp.square(build(KIND, config, params)(ids, mask) - 1.0))

        return jax.grad(loss)(params) if mode == "gradients" else build(KIND, config, params)(ids, mask)

    expected = jax.jit(run)(params, ids, mask)
    mesh = build_mesh(ParallelConfig(data=1, fsdp=2, context=2, tensor=2))

    def place(names, leaf):
        return NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, PARAMETER_RULES, "parameter"))

    axes = parameter_axes(nnx.split(nnx.eval_shape(lambda: KIND.build(jax.random.key(0), config)))[1])
    shardings = jax.tree.map(place, axes, params, is_leaf=lambda node: isinstance(node, tuple))

    def placed(params, ids, mask):
        with placing(mesh):
            return run(params, ids, mask)

    sharded = jax.device_put(params, shardings)
    query = sharded["blocks"]["attention"]["query"]
    assert query.addressable_shards[0].data.size * 4 == query.size  # over fsdp and tensor
    got = jax.jit(placed, in_shardings=(shardings, batch_sharding(mesh), batch_sharding(mesh)))(sharded, ids, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def test_umt5_padding_changes_no_prompt_row(golden, config):
    model = _model(golden, config)
    ids, mask = golden.inputs["input_ids"], golden.inputs["attention_mask"]
    length = int(mask[1].sum())
    run = jax.jit(lambda ids, mask: pad_prompts(model(ids, mask), mask, 40))
    alone = run(jnp.asarray(ids[1:, :length]), jnp.asarray(mask[1:, :length]))[:, :length]
    padded = run(jnp.asarray(ids), jnp.asarray(mask))
    np.testing.assert_allclose(padded[1, :length], alone[0], atol=1e-5)
    assert padded.shape[1] == 40
    assert not np.any(padded[1, length:])


def test_umt5_in_bfloat16_stays_near_fp32(golden, config):
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    params = nest(to_ours(KIND, config, "diffusers", golden.tensors))
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    inputs = {name: jnp.asarray(array) for name, array in golden.inputs.items()}
    hidden = jax.jit(lambda p: KIND.outputs(build(KIND, half, p), inputs))(params)["last_hidden_state"]
    expected = golden.outputs["last_hidden_state"]
    assert hidden.dtype == jnp.bfloat16
    assert np.linalg.norm(np.asarray(hidden, np.float32) - expected) < 0.05 * np.linalg.norm(expected)


def test_relative_buckets_of_the_published_table():
    # By hand from T5's definition at 32 buckets, 128 tokens: exact below 8, then 8 steps of the logarithm up to 128.
    row = relative_buckets(200, 32, 128)[100]
    before = {0: 0, 1: 1, 7: 7, 8: 8, 11: 8, 12: 9, 16: 10, 22: 10, 23: 11, 32: 12, 45: 12, 46: 13, 64: 14, 90: 14}
    for distance, bucket in {**before, 91: 15, 99: 15}.items():
        assert row[100 - distance] == bucket, distance
        assert row[100 + distance] == (bucket + 16 if distance else 0), distance


def test_umt5_prompt_longer_than_the_model_reads_is_refused():
    with pytest.raises(DataError, match="513 tokens"):
        pad_prompts(jnp.zeros((1, 513, 2)), None)


def test_umt5_id_outside_the_table_does_not_pass_unnoticed(golden, config):
    model = _model(golden, config)
    assert np.isnan(jax.jit(model)(jnp.full((1, 2), config.vocab_size, jnp.int32))).all()


@pytest.mark.parametrize(("key", "value"), [("feed_forward_proj", "relu"), ("is_decoder", True)])
def test_umt5_unsupported_config_is_named(golden, key, value):
    with pytest.raises(ConfigError, match=key):
        KIND.parse_config({**golden.config, key: value})


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the parity extra (transformers)")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_umt5_other_shapes_equal_transformers(tmp_path, seed):
    from tests.golden import make_umt5_encoder

    shapes = [
        {"vocab_size": 90, "d_model": 24, "num_layers": 3, "num_heads": 3, "d_kv": 8, "d_ff": 40},
        {"vocab_size": 64, "d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 4, "d_ff": 8},
        {"vocab_size": 33, "d_model": 8, "num_layers": 4, "num_heads": 1, "d_kv": 16, "d_ff": 64},
    ]
    make_umt5_encoder.write(tmp_path, shapes[seed - 1], lengths=(1, 300, 77), num_tokens=300, seed=seed)
    # Scores are not divided by sqrt(e): fp32 rounding reaches 2e-5 where heads are wide.
    print(check_golden(KIND, read_golden(tmp_path), atol=1e-4))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the parity extra (transformers)")
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (12, 16), (10, 64), (64, 1000)])
def test_relative_buckets_equal_transformers(num_buckets, max_distance):
    import torch
    from transformers import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5Attention

    shape = {"relative_attention_num_buckets": num_buckets, "relative_attention_max_distance": max_distance}
    attention = UMT5Attention(UMT5Config(**shape), has_relative_attention_bias=True, layer_idx=0)
    offsets = torch.arange(600)[None, :] - torch.arange(600)[:, None]
    expected = attention._relative_position_bucket(offsets).numpy()
    np.testing.assert_array_equal(relative_buckets(600, num_buckets, max_distance), expected)


def _model(golden, config):
    params = nest(to_ours(KIND, config, "diffusers", golden.tensors))
    return build(KIND, config, jax.tree.map(jnp.asarray, params))


def _random_parameters(config):
    rng = np.random.default_rng(1)
    shapes = parameter_shapes(KIND, config)
    return {path: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32) for path, shape in shapes.items()}
