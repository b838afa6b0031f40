"""The CLIP image encoder and its checkpoints against transformers' outputs, gradients, names and counts."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from tests.weights.clip_original import original_clip
from tests.weights.golden_folder import (
    GOLDEN,
    build,
    check_golden,
    nest,
    parameter_shapes,
    read_golden,
    to_ours,
)
from wamjax.config.encoders import CLIP_VIT_H_14
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError, DataError
from wamjax.parallel.mesh import batch_sharding, build_mesh
from wamjax.parallel.rule_tables import PARAMETER_RULES
from wamjax.parallel.rules import partition_spec, placing
from wamjax.training.program import parameter_axes
from wamjax.weights.kinds.clip_vision import KIND
from wamjax.weights.rules import tensors_of

FOLDER = GOLDEN / "clip_vision"


@pytest.fixture(scope="module")
def golden():
    return read_golden(FOLDER)


@pytest.fixture(scope="module")
def config(golden):
    return KIND.parse_config(golden.config)


def test_clip_vision_equals_transformers_forward_and_gradients(golden):
    check_golden(KIND, golden)


def test_clip_vit_h_14_has_the_published_shape():
    # Parameters: summed over transformers 5.23's CLIPVisionModel of this shape on the meta device. Tokens: 16 x 16 + 1.
    assert sum(int(np.prod(shape)) for shape in parameter_shapes(KIND, CLIP_VIT_H_14).values()) == 630_766_080
    assert CLIP_VIT_H_14.num_patches + 1 == 257


def test_clip_vision_older_names_have_a_prefix(config):
    names = {rule.names_of(2)[1] for rule in KIND.rules(config, "diffusers")}
    assert {"vision_model.pre_layrnorm.weight", "vision_model.encoder.layers.2.mlp.fc1.bias"} <= names


def test_clip_vision_original_names_hold_the_same_parameters(golden, config):
    original = original_clip(golden.tensors)
    arrays = to_ours(KIND, config, "original", original)
    for path, expected in to_ours(KIND, config, "diffusers", golden.tensors).items():
        np.testing.assert_array_equal(arrays[path], expected, err_msg=path)
    # Split as wan/modules/clip.py views the product of the fused layer: rows are (three, head, dim of the head).
    weight = original["visual.transformer.1.attn.to_qkv.weight"]
    by_role = weight.reshape(3, config.num_heads, -1, config.width).transpose(0, 3, 1, 2)
    for role, expected in zip(("query", "key", "value"), by_role, strict=True):
        np.testing.assert_array_equal(arrays[f"blocks.attention.{role}"][1], expected, err_msg=role)


def test_clip_vision_published_without_a_config_is_vit_h_14():
    config = KIND.parse_config(KIND.default_config(["visual.patch_embedding.weight"]))
    assert config == CLIP_VIT_H_14
    tensors = tensors_of(KIND.rules(config, "original"), parameter_shapes(KIND, config))
    assert len(tensors) == 7 + 32 * 12
    assert tensors["visual.transformer.31.attn.to_qkv.weight"].shape == (3 * 1280, 1280)
    assert tensors["visual.transformer.0.attn.to_qkv.bias"].shape == (3 * 1280,)
    assert tensors["visual.pos_embedding"].shape == (1, 257, 1280)
    assert tensors["visual.cls_embedding"].shape == (1, 1, 1280)
    assert KIND.default_config(["vision_model.pre_layrnorm.weight"]) == {}


def test_clip_vision_on_eight_devices_equals_one(golden, config):
    params = jax.tree.map(jnp.asarray, nest(to_ours(KIND, config, "diffusers", golden.tensors)))
    pixels = jnp.asarray(np.tile(golden.inputs["pixel_values"], (2, 1, 1, 1)))
    mesh = build_mesh(ParallelConfig(data=2, fsdp=2, context=1, tensor=2))
    axes = parameter_axes(nnx.split(nnx.eval_shape(lambda: KIND.build(jax.random.key(0), config)))[1])

    def place(names, leaf):
        return NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, PARAMETER_RULES, "parameter"))

    def placed(params, pixels):
        with placing(mesh):
            return KIND.outputs(build(KIND, config, params), {"pixel_values": pixels})

    shardings = jax.tree.map(place, axes, params, is_leaf=lambda node: isinstance(node, tuple))
    got = jax.jit(placed, in_shardings=(shardings, batch_sharding(mesh)))(params, pixels)
    for name in ("out", "pooler_output", "hidden_states_-2"):
        np.testing.assert_allclose(got[name][:2], golden.outputs[name], atol=2e-5)
        np.testing.assert_allclose(got[name][2:], golden.outputs[name], atol=2e-5)


def test_clip_vision_in_bfloat16_stays_near_fp32(golden, config):
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    params = nest(to_ours(KIND, config, "diffusers", golden.tensors))
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    inputs = {"pixel_values": jnp.asarray(golden.inputs["pixel_values"])}
    out = jax.jit(lambda p: KIND.outputs(build(KIND, half, p), inputs))(params)["out"]
    assert out.dtype == jnp.bfloat16
    difference = np.asarray(out, np.float32) - golden.outputs["out"]
    assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(golden.outputs["out"])


def test_clip_vision_image_of_another_size_is_refused(config):
    model = nnx.eval_shape(lambda: KIND.build(jax.random.key(0), config))
    with pytest.raises(DataError, match=r"14 x 15 x 3 .* takes 14 x 14 x 3"):
        model(jnp.zeros((1, 14, 15, 3)))


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "relu"), ("image_size", [224, 112]), ("num_attention_heads", 3)],
)
def test_clip_vision_unsupported_config_is_named(golden, key, value):
    with pytest.raises(ConfigError, match=key):
        KIND.parse_config({**golden.config, key: value})


def test_clip_vision_config_inside_that_of_a_whole_clip(golden, config):
    assert KIND.parse_config({"architectures": ["CLIPModel"], "vision_config": golden.config}) == config


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the parity extra (transformers)")
@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 1, "image_size": 28, "patch_size": 14},
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 8, "image_size": 64, "patch_size": 4},
    ],
)
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_clip_vision_other_shapes_equal_transformers(tmp_path, shape, activation):
    from tests.golden import make_clip_vision

    overrides = {**shape, "intermediate_size": 40, "hidden_act": activation}
    make_clip_vision.write(tmp_path, overrides, batch_size=3, seed=shape["hidden_size"])
    print(check_golden(KIND, read_golden(tmp_path)))
