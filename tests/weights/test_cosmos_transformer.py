"""Cosmos's transformer and its checkpoints against diffusers' outputs, gradients and names."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import QUICK_COMPILE
from tests.weights.golden_folder import (
    GOLDEN,
    build,
    check_golden,
    nest,
    parameter_shapes,
    read_golden,
    to_ours,
    to_reference,
)
from wamjax.errors import ConfigError, DataError
from wamjax.weights.kinds.cosmos_transformer import KIND

jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
FOLDER = GOLDEN / "cosmos_transformer"
CASES = ("video", "frames")


def _read(case):
    golden = read_golden(FOLDER / case)
    config = KIND.parse_config(golden.config)
    params = jax.tree.map(jnp.asarray, nest(to_ours(KIND, config, "diffusers", golden.tensors)))
    return golden, config, params


@pytest.mark.parametrize("case", CASES)
def test_cosmos_equals_diffusers_forward_and_gradients(case):
    check_golden(KIND, read_golden(FOLDER / case))


@pytest.mark.parametrize("naming", KIND.namings)
@pytest.mark.parametrize("case", CASES)
def test_cosmos_every_parameter_has_one_rule(case, naming):
    config = KIND.parse_config(read_golden(FOLDER / case).config)
    paths = [rule.path for rule in KIND.rules(config, naming)]
    assert sorted(paths) == sorted(parameter_shapes(KIND, config))


@pytest.mark.parametrize("case", CASES)
def test_cosmos_tensors_of_both_namings_come_back_byte_for_byte(case):
    golden = read_golden(FOLDER / case)
    config = KIND.parse_config(golden.config)
    arrays = to_ours(KIND, config, "diffusers", golden.tensors)
    assert {path: array.shape for path, array in arrays.items()} == parameter_shapes(KIND, config)
    original = to_reference(KIND, config, "original", arrays)
    back = to_reference(KIND, config, "diffusers", to_ours(KIND, config, "original", original))
    assert back.keys() == golden.tensors.keys()
    for name, tensor in golden.tensors.items():
        assert back[name].shape == tensor.shape
        assert back[name].tobytes() == np.ascontiguousarray(tensor).tobytes(), name


def test_cosmos_original_names_are_those_of_cosmos_predict2():
    # cosmos_predict2/models/text2image_dit.py: attributes of MiniTrainDIT, Block, Attention, FinalLayer.
    config = KIND.parse_config(read_golden(FOLDER / "video").config)
    per_block = {
        *(f"{kind}_attn.{part}" for kind in ("self", "cross") for part in ("q_proj", "k_proj", "v_proj")),
        *(f"{kind}_attn.{part}" for kind in ("self", "cross") for part in ("q_norm", "k_norm", "output_proj")),
        *(f"adaln_modulation_{part}.{i}" for part in ("self_attn", "cross_attn", "mlp") for i in (1, 2)),
        *("mlp.layer1", "mlp.layer2"),
    }
    layers = {
        *("x_embedder.proj.1", "t_embedder.1.linear_1", "t_embedder.1.linear_2", "t_embedding_norm"),
        *("final_layer.linear", "final_layer.adaln_modulation.1", "final_layer.adaln_modulation.2"),
        *("blocks.{layer}." + name for name in per_block),
    }
    found = KIND.rules(config, "original")
    assert {rule.name for rule in found} == {f"net.{layer}.weight" for layer in layers}
    assert all(f"net.{rule.aliases[0]}" == rule.name for rule in found)


def test_cosmos_in_bfloat16_stays_near_fp32():
    golden, config, params = _read("video")
    half = dataclasses.replace(config, block=dataclasses.replace(config.block, compute_dtype="bfloat16"))
    inputs = {name: jnp.asarray(array) for name, array in golden.inputs.items()}
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    out = jit(lambda p: KIND.outputs(build(KIND, half, p), inputs))(params)["out"]
    expected = golden.outputs["out"]
    assert out.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(out - expected) / np.linalg.norm(expected) < 0.03


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("controlnet_block_every_n", 7),
        ("img_context_dim_in", 1152),
        ("extra_pos_embed_type", "sincos"),
        ("encoder_hidden_states_channels", 6),
    ],
)
def test_cosmos_unsupported_config_is_named(key, value):
    config = read_golden(FOLDER / "frames").config
    with pytest.raises(ConfigError, match=key):
        KIND.parse_config({**config, key: value})


@pytest.mark.parametrize(
    ("case", "name", "shape", "message"),
    [
        ("video", "padding_mask", (2, 1, 4, 6), "one for all samples"),
        ("video", "condition_mask", None, "4"),
        ("frames", "timestep", (2, 2), "3 latent frames"),
        ("frames", "hidden_states", (2, 4, 6, 6, 4), "positions this model has learned"),
    ],
)
def test_cosmos_inputs_that_do_not_fit_are_refused_in_one_line(case, name, shape, message):
    golden, config, params = _read(case)
    inputs = {key: jnp.asarray(array) for key, array in golden.inputs.items() if key != "target"}
    del inputs[name]
    if shape is not None:
        inputs[name] = jnp.zeros(shape)
    with pytest.raises(DataError, match=message) as error:
        KIND.outputs(build(KIND, config, params), inputs)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs the parity extra (diffusers)")
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_cosmos_other_shapes_equal_diffusers(tmp_path, seed):
    from tests.golden.make_cosmos_transformer import LEARNED, PROJECTED, TINY, Case, write

    wide = {**TINY, "num_attention_heads": 3, "attention_head_dim": 20, "max_size": (16, 40, 40), "mlp_ratio": 2.0}
    case = {
        1: Case(overrides=wide, grid=(5, 7, 4), mask_size=(14, 8), has_condition_mask=True, times="frame", fps=16),
        2: Case(overrides={**wide, **LEARNED}, grid=(3, 5, 2), mask_size=(80, 33), batch_size=3, fps=30),
        3: Case(overrides={**wide, **PROJECTED, "patch_size": (1, 3, 1)}, grid=(2, 6, 9), mask_size=(5, 5)),
        4: Case(
            overrides={**wide, "concat_padding_mask": False, "attention_head_dim": 24}, grid=(6, 3, 3), masks_text=True
        ),
    }[seed]
    write(tmp_path, case, seed)
    print(check_golden(KIND, read_golden(tmp_path)))
