"""Wan's transformer and its checkpoints against diffusers' outputs, gradients, training losses and names."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny import QUICK_COMPILE
from tests.weights.golden_folder import (
    GOLDEN,
    build,
    check_golden,
    nest,
    read_golden,
    to_ours,
    to_reference,
)
from wamjax.config import presets
from wamjax.errors import ConfigError, DataError
from wamjax.weights.kinds.wan_transformer import KIND

jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
FOLDER = GOLDEN / "wan_transformer"
CASES = ("t2v", "i2v", "flf2v", "ti2v")


def _read(case):
    golden = read_golden(FOLDER / case)
    config = KIND.parse_config(golden.config)
    params = jax.tree.map(jnp.asarray, nest(to_ours(KIND, config, "diffusers", golden.tensors)))
    return golden, config, params


@pytest.mark.parametrize("case", CASES)
def test_wan_equals_diffusers_forward_and_gradients(case):
    check_golden(KIND, read_golden(FOLDER / case))


def test_wan_losses_of_five_adamw_steps_equal_torch():
    golden, config, params = _read("t2v")
    inputs = {name: jnp.asarray(array) for name, array in golden.inputs.items()}
    optimizer = optax.flatten(
        optax.adamw(3e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
    )  # one vector: compiles soon

    @jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(lambda p: KIND.outputs(build(KIND, config, p), inputs)["loss"])(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(6):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    expected = np.load(FOLDER / "t2v" / "adamw.npz")["losses"]
    assert expected[0] > 1.2 * expected[-1]  # the steps are large enough to tell optimizers apart
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_wan_original_names_and_tensors_are_those_of_wan():
    # wan/modules/model.py of Wan 2.1: attributes of WanModel, WanAttentionBlock, WanI2VCrossAttention, MLPProj, Head.
    golden = read_golden(FOLDER / "flf2v")
    config = KIND.parse_config(golden.config)
    original = to_reference(KIND, config, "original", to_ours(KIND, config, "diffusers", golden.tensors))
    layers = {
        *("patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"),
        *("time_projection.1", "head.head", *(f"img_emb.proj.{i}" for i in (0, 1, 3, 4))),
        *(f"blocks.0.{part}" for part in ("norm3", "ffn.0", "ffn.2", "cross_attn.k_img", "cross_attn.v_img")),
        *(f"blocks.0.{kind}_attn.{letter}" for kind in ("self", "cross") for letter in "qkvo"),
    }
    names = {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    names |= {f"blocks.0.{kind}_attn.norm_{letter}.weight" for kind in ("self", "cross") for letter in "qk"}
    names |= {"blocks.0.cross_attn.norm_k_img.weight", "blocks.0.modulation", "head.modulation", "img_emb.emb_pos"}
    assert original.keys() == names
    # The two libraries store the same tensors under other names.
    pairs = {
        "blocks.0.norm3.weight": "blocks.0.norm2.weight",
        "blocks.0.self_attn.q.weight": "blocks.0.attn1.to_q.weight",
        "blocks.0.cross_attn.k_img.bias": "blocks.0.attn2.add_k_proj.bias",
        "blocks.0.modulation": "blocks.0.scale_shift_table",
        "head.modulation": "scale_shift_table",
        "img_emb.proj.3.weight": "condition_embedder.image_embedder.ff.net.2.weight",
    }
    for ours, theirs in pairs.items():
        np.testing.assert_array_equal(original[ours], golden.tensors[theirs])


def test_wan_timesteps_per_frame_equal_the_same_per_token():
    golden, config, params = _read("ti2v")
    model = build(KIND, config, params)
    inputs = {name: jnp.asarray(array) for name, array in golden.inputs.items()}
    frames = jnp.asarray([[0.0, 999.0], [250.0, 3.5]])
    run = jit(lambda ids: KIND.outputs(model, {**inputs, "timestep": ids})["out"])
    np.testing.assert_allclose(run(frames), run(jnp.repeat(frames, 6, axis=1)), atol=1e-5)


def test_wan_in_bfloat16_stays_near_fp32():
    golden, config, params = _read("t2v")
    half = dataclasses.replace(config, block=dataclasses.replace(config.block, compute_dtype="bfloat16"))
    inputs = {name: jnp.asarray(array) for name, array in golden.inputs.items()}
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    out = jit(lambda p: KIND.outputs(build(KIND, half, p), inputs))(params)["out"]
    expected = golden.outputs["out"]
    assert out.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(out - expected) / np.linalg.norm(expected) < 0.03


@pytest.mark.parametrize(
    ("original", "preset"),
    [
        # config.json of Wan-AI/Wan2.1-T2V-1.3B, Wan2.1-I2V-14B-480P, Wan2.1-FLF2V-14B-720P and Wan2.2-TI2V-5B
        (("t2v", 1536, 8960, 12, 30, 16, 16), presets.WAN_2_1_T2V_1_3B),
        (("i2v", 5120, 13824, 40, 40, 36, 16), presets.WAN_2_1_I2V_14B),
        (("flf2v", 5120, 13824, 40, 40, 36, 16), presets.WAN_2_1_FLF2V_14B),
        (("ti2v", 3072, 14336, 24, 30, 48, 48), presets.WAN_2_2_TI2V_5B),
    ],
)
def test_wan_original_config_is_read_like_diffusers(original, preset):
    keys = ("model_type", "dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim")
    config = {"_class_name": "WanModel", "eps": 1e-6, "freq_dim": 256, "text_len": 512}
    assert KIND.parse_config({**config, **dict(zip(keys, original, strict=True))}) == preset


@pytest.mark.parametrize(
    ("key", "value"), [("qk_norm", "rms_norm"), ("added_kv_proj_dim", 7), ("image_dim", 8), ("attention_head_dim", 9)]
)
def test_wan_unsupported_config_is_named(key, value):
    config = read_golden(FOLDER / "t2v").config
    with pytest.raises(ConfigError, match="head" if key == "attention_head_dim" else key):
        KIND.parse_config({**config, key: value})


@pytest.mark.parametrize(
    ("case", "name", "index", "message"),
    [
        ("t2v", "hidden_states", np.s_[:, :3], "5"),
        ("t2v", "hidden_states", np.s_[:, :, :, :3], "multiple of the patch"),
        ("t2v", "timestep", np.s_[:1], "timesteps of shape"),
        ("flf2v", "encoder_hidden_states_image", np.s_[:, :4], "8 image tokens"),
        ("flf2v", "encoder_hidden_states", np.s_[:, :9], "512"),
        ("flf2v", "encoder_hidden_states_image", None, "needs image tokens"),
    ],
)
def test_wan_inputs_that_do_not_fit_are_refused_in_one_line(case, name, index, message):
    golden, config, params = _read(case)
    inputs = {key: jnp.asarray(array) for key, array in golden.inputs.items() if key != "target"}
    array = inputs.pop(name)
    if index is not None:
        inputs[name] = array[index]
    with pytest.raises(DataError, match=message) as error:
        KIND.outputs(build(KIND, config, params), inputs)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs the parity extra (diffusers)")
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_wan_other_shapes_equal_diffusers(tmp_path, seed):
    from tests.golden.make_wan_transformer import TINY, Case, write

    image = {"image_dim": 20, "added_kv_proj_dim": 60, "in_channels": 11, "num_attention_heads": 3}
    case = {
        1: Case(overrides={**TINY, "attention_head_dim": 20, "num_layers": 3}, grid=(5, 7, 4), batch_size=3),
        2: Case(overrides={**TINY, "attention_head_dim": 24, "patch_size": (2, 1, 3)}, grid=(3, 5, 2), times="token"),
        3: Case(overrides={**TINY, **image, "attention_head_dim": 20}, grid=(2, 6, 9), text_tokens=300, images=1),
        4: Case(
            overrides={**TINY, **image, "attention_head_dim": 20, "pos_embed_seq_len": 34, "eps": 1e-5},
            grid=(3, 3, 3),
            text_tokens=512,
            images=2,
            image_tokens=17,
        ),
    }[seed]
    write(tmp_path, case, seed)
    print(check_golden(KIND, read_golden(tmp_path), atol=5e-5))
