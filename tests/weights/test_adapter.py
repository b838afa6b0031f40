"""Adapter files against peft and diffusers, and against the definition of an update."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.tiny import QUICK_COMPILE
from tests.weights.golden_folder import GOLDEN, build, flatten, nest, read_golden, to_ours, to_reference
from wamjax.config.finetune import LoraConfig, is_update
from wamjax.errors import ConfigError, DataError
from wamjax.nn.lora import attach_lora
from wamjax.training.trainable import join_trees, split_tree
from wamjax.weights.adapter import load_adapter, merge_adapter, save_adapter
from wamjax.weights.kinds import cosmos_transformer, wan_transformer

FOLDER = GOLDEN / "lora"
FILE = FOLDER / "lora.safetensors"
WAN, COSMOS = wan_transformer.KIND, cosmos_transformer.KIND
HASH = "0123456789abcdef"
_ATTENTIONS = ("self_attention.query", "self_attention.key", "self_attention.out_kernel", "cross_attention.value")
LORA = LoraConfig(rank=3, alpha=6.0, targets=(*(f"blocks.{n}" for n in (*_ATTENTIONS, "mlp")), "head_out"))


def read(kind, folder):
    golden = read_golden(folder)
    config = kind.parse_config(golden.config)
    params = jax.tree.map(jnp.asarray, nest(to_ours(kind, config, "diffusers", golden.tensors)))
    return golden, config, params


def adapted(kind, config, lora):
    model = kind.build(jax.random.key(0), config)
    paths = attach_lora(model, jax.random.key(1), lora)
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state), paths


def random_updates(params, seed=0):
    rng = np.random.default_rng(seed)
    updates = split_tree(params, is_update)[0]
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), updates)


def as_update_tree(adapter):
    """The updates of an adapter as the parameters of a model that has them attached."""
    flat = {}
    for path, update in adapter.updates.items():
        for part, value in update.items():
            flat[f"{path.removesuffix('kernel')}lora.{part}"] = jnp.asarray(value)
    return nest(flat)


def test_merged_weights_give_the_output_of_peft():
    golden, config, params = read(WAN, GOLDEN / "wan_transformer" / "t2v")
    adapter = load_adapter(FILE, WAN, config, base_hash=HASH)
    assert (adapter.config.rank, adapter.config.alpha, adapter.base_hash) == (3, 6.0, None)
    inputs = {name: jnp.asarray(array) for name, array in golden.inputs.items()}
    merged = merge_adapter(params, adapter)
    run = jax.jit(lambda p: WAN.outputs(build(WAN, config, p), inputs)["out"], compiler_options=QUICK_COMPILE)
    expected = np.load(FOLDER / "lora.npz")["out"]
    assert np.abs(np.asarray(run(params)) - expected).max() > 0.1  # the updates matter
    np.testing.assert_allclose(run(merged), expected, atol=2e-5)


def test_five_adamw_steps_on_updates_alone_equal_peft():
    golden, config, params = read(WAN, GOLDEN / "wan_transformer" / "t2v")
    graphdef, start, paths = adapted(WAN, config, LORA)
    updates = as_update_tree(load_adapter(FILE, WAN, config, base_hash=HASH))
    assert flatten(updates).keys() == {path for path in flatten(start) if is_update(path)}
    assert len(paths) == 7
    inputs = {name: jnp.asarray(array) for name, array in golden.inputs.items()}
    optimizer = optax.flatten(optax.adamw(3e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1))

    def step(updates, state):
        def loss(updates):
            return WAN.outputs(nnx.merge(graphdef, join_trees(updates, params)), inputs)["loss"]

        value, gradients = jax.value_and_grad(loss)(updates)
        changes, state = optimizer.update(gradients, state, updates)
        return optax.apply_updates(updates, changes), state, value

    step = jax.jit(step, compiler_options=QUICK_COMPILE)
    state, losses = optimizer.init(updates), []
    for _ in range(6):
        updates, state, value = step(updates, state)
        losses.append(float(value))
    np.testing.assert_allclose(losses, np.load(FOLDER / "lora.npz")["losses"], rtol=1e-5)


def test_a_file_of_diffusers_comes_back_byte_for_byte(tmp_path):
    _, config, _ = read(WAN, GOLDEN / "wan_transformer" / "t2v")
    updates = as_update_tree(load_adapter(FILE, WAN, config, base_hash=HASH))
    save_adapter(tmp_path / "own.safetensors", WAN, config, updates, LORA, base_hash=HASH)
    own, theirs = load_file(tmp_path / "own.safetensors"), load_file(FILE)
    assert own.keys() == theirs.keys()
    assert all(own[name].tobytes() == theirs[name].tobytes() for name in theirs)
    with safe_open(tmp_path / "own.safetensors", framework="numpy") as file:
        details = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (details["transformer.r"], details["transformer.lora_alpha"]) == (3, 6.0)
    assert "blocks.1.attn1.to_out.0" in details["transformer.target_modules"]


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        pytest.param(WAN, "wan_transformer/i2v", id="wan"),
        pytest.param(COSMOS, "cosmos_transformer", id="cosmos", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_of_a_backbone_is_updated_by_scaled_b_a(kind, folder, tmp_path):
    where = GOLDEN / folder
    where = where if (where / "config.json").exists() else next(iter(sorted(where.glob("*/config.json")))).parent
    golden, config, params = read(kind, where)
    lora = LoraConfig(rank=2, alpha=5.0, targets=("*",))
    _, start, paths = adapted(kind, config, lora)
    save_adapter(tmp_path / "a.safetensors", kind, config, random_updates(start), lora, base_hash=HASH)
    adapter = load_adapter(tmp_path / "a.safetensors", kind, config, base_hash=HASH)
    assert set(adapter.updates) == set(paths)
    merged = to_reference(kind, config, "diffusers", flatten(merge_adapter(params, adapter)))
    stored, num_updated = load_file(tmp_path / "a.safetensors"), 0
    for name, weight in golden.tensors.items():
        module = f"transformer.{name.removesuffix('.weight')}"
        expected = weight
        if f"{module}.lora_A.weight" in stored:
            first, second = (stored[f"{module}.lora_{letter}.weight"] for letter in "AB")
            delta = second.reshape(second.shape[0], -1) @ first.reshape(first.shape[0], -1)
            expected, num_updated = weight + 2.5 * delta.reshape(weight.shape), num_updated + 1
        np.testing.assert_allclose(merged[name], expected, atol=2e-6, err_msg=name)
    assert 2 * num_updated == len(stored)


def test_layers_without_an_update_stay_as_they_are(tmp_path):
    _, config, params = read(WAN, GOLDEN / "wan_transformer" / "t2v")
    tensors = {name: value for name, value in load_file(FILE).items() if ".blocks.1.attn1.to_q." in name}
    save_file({name.removeprefix("transformer."): value for name, value in tensors.items()}, tmp_path / "a.safetensors")
    adapter = load_adapter(tmp_path / "a.safetensors", WAN, config, base_hash=HASH)
    assert adapter.config.alpha == 3.0  # no settings: the rank
    merged, before = flatten(merge_adapter(params, adapter)), flatten(params)
    changed = [path for path in before if not np.array_equal(merged[path], before[path])]
    assert changed == ["blocks.self_attention.query.kernel"]
    np.testing.assert_array_equal(merged[changed[0]][0], before[changed[0]][0])


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            lambda t: t | {"transformer.blocks.9.attn1.to_q.lora_A.weight": t.pop(next(iter(t)))},
            r"1 of 26 tensors are no",
        ),
        (lambda t: {n: v for n, v in t.items() if not n.endswith("proj_out.lora_B.weight")}, r"without .*lora_B"),
        (lambda t: t | {n: v[:2] for n, v in t.items() if "proj_out.lora_A" in n}, r"ranks \[2, 3\]"),
        (lambda t: t | {n: v[:, :5] for n, v in t.items() if "proj_out.lora_A" in n}, r"\(3, 5\); expected \(3, 16\)"),
    ],
    ids=["foreign", "half a pair", "two ranks", "shape"],
)
def test_a_file_that_does_not_fit_is_refused(spoil, expected, tmp_path):
    _, config, _ = read(WAN, GOLDEN / "wan_transformer" / "t2v")
    save_file(spoil(load_file(FILE)), tmp_path / "bad.safetensors")
    with pytest.raises(DataError, match=expected):
        load_adapter(tmp_path / "bad.safetensors", WAN, config, base_hash=HASH)


def test_updates_scaled_otherwise_are_refused(tmp_path):
    _, config, _ = read(WAN, GOLDEN / "wan_transformer" / "t2v")
    details = json.dumps({"transformer.lora_alpha": 6, "transformer.use_dora": True})
    save_file(load_file(FILE), tmp_path / "dora.safetensors", metadata={"lora_adapter_metadata": details})
    with pytest.raises(DataError, match="use_dora=True; only plain updates"):
        load_adapter(tmp_path / "dora.safetensors", WAN, config, base_hash=HASH)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    _, config, _ = read(WAN, GOLDEN / "wan_transformer" / "t2v")
    updates = as_update_tree(load_adapter(FILE, WAN, config, base_hash=HASH))
    save_adapter(tmp_path / "own.safetensors", WAN, config, updates, LORA, base_hash=HASH)
    assert load_adapter(tmp_path / "own.safetensors", WAN, config, base_hash=HASH).base_hash == HASH
    with pytest.raises(ConfigError, match=f"trained on the weights with hash {HASH}; those at hand have other"):
        load_adapter(tmp_path / "own.safetensors", WAN, config, base_hash="other")


def test_a_model_without_updates_has_none_to_write(tmp_path):
    _, config, params = read(WAN, GOLDEN / "wan_transformer" / "t2v")
    with pytest.raises(ConfigError, match="has no low-rank update to write"):
        save_adapter(tmp_path / "a.safetensors", WAN, config, params, LORA, base_hash=HASH)


@pytest.mark.slow
@pytest.mark.parity
def test_fixture_is_what_peft_writes_today(tmp_path):
    if not all(importlib.util.find_spec(name) for name in ("torch", "diffusers", "peft")):
        pytest.skip("torch, diffusers and peft are not installed (the parity extra)")
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-W", "ignore", "tests/golden/make_lora.py", str(tmp_path)], cwd=root, check=True)
    fresh, kept = load_file(tmp_path / "lora.safetensors"), load_file(FILE)
    assert all(np.array_equal(fresh[name], kept[name]) for name in kept)
    for name, value in np.load(FOLDER / "lora.npz").items():
        np.testing.assert_allclose(np.load(tmp_path / "lora.npz")[name], value, atol=2e-5)
