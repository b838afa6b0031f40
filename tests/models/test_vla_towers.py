"""Vision and language towers against transformers: outputs, and gradients of what goes in."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import QUICK_COMPILE
from wamjax.config.vla import VisionConfig, VlaConfig
from wamjax.errors import DataError
from wamjax.layout import policy_layout
from wamjax.models.block import bare_conditioning
from wamjax.models.mixture import scan_mixture
from wamjax.models.siglip import VisionTower
from wamjax.models.vision_language_action import LanguageTower
from wamjax.nn.norm import rms_norm
from wamjax.nn.rotary import rotation_of

GOLDEN = Path(__file__).parents[1] / "golden/vla_towers"
VISION = VisionConfig(width=12, num_layers=2, num_heads=2, ffn_width=20, image_size=8, patch_size=4)
CONFIG = VlaConfig(
    vision=VISION, width=12, ffn_width=20, expert_width=8, expert_ffn_width=10, num_layers=2, num_heads=4,
    num_key_heads=1, head_dim=6, vocab_size=11, num_images=1, text_tokens=1,
)  # fmt: skip


def stacked(golden, pattern: str) -> np.ndarray:
    """Returns the parameter of every layer, one after the other."""
    return np.stack([golden[f"params.{pattern.format(layer)}"] for layer in range(2)])


def fill(module: nnx.Module, arrays: dict[str, np.ndarray]) -> None:
    """Sets every parameter of ``module``; shapes may differ in how heads are folded."""
    variables = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(module))}
    assert set(variables) == set(arrays)
    for path, variable in variables.items():
        variable.set_value(jnp.asarray(arrays[path].reshape(variable.shape)))
    nnx.update(module, nnx.from_flat_state([(tuple(p.split(".")), v) for p, v in variables.items()]))


def attention(golden, layers: str, out: str, heads: int) -> dict[str, np.ndarray]:
    """Returns the kernels of self-attention; ``[out in]`` there, ``[in heads dim]`` here."""
    arrays = {
        f"blocks.self_attention.{name}.kernel": stacked(golden, f"{layers}.self_attn.{name[0]}_proj.weight").swapaxes(
            1, 2
        )
        for name in ("query", "key", "value")
    }
    weight = stacked(golden, f"{layers}.self_attn.{out}.weight").swapaxes(1, 2)
    return arrays | {"blocks.self_attention.out_kernel": weight.reshape(2, heads, -1, weight.shape[-1])}


def check(golden, run, source: np.ndarray) -> None:
    def weighed(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = run(x)
        return jnp.sum(out * golden["weights"]), out

    gradient, out = jax.jit(jax.grad(weighed, has_aux=True), compiler_options=QUICK_COMPILE)(jnp.asarray(source))
    np.testing.assert_allclose(out, golden["out"], atol=2e-5)
    np.testing.assert_allclose(gradient, golden["gradient"], atol=5e-5)


def siglip() -> VisionTower:
    return VisionTower(jax.random.key(0), VISION, 7, dtype="float32", remat="none")


def test_siglip_equals_transformers() -> None:
    golden, tower, layers = np.load(GOLDEN / "siglip.npz"), siglip(), "encoder.layers.{}"
    arrays = attention(golden, layers, "out_proj", 2)
    for name in ("query", "key", "value"):
        arrays[f"blocks.self_attention.{name}.bias"] = stacked(golden, f"{layers}.self_attn.{name[0]}_proj.bias")
    arrays["blocks.self_attention.out_bias"] = stacked(golden, f"{layers}.self_attn.out_proj.bias")
    for ours, theirs in (("up", "fc1"), ("down", "fc2")):
        arrays[f"blocks.mlp.{ours}.kernel"] = stacked(golden, f"{layers}.mlp.{theirs}.weight").swapaxes(1, 2)
        arrays[f"blocks.mlp.{ours}.bias"] = stacked(golden, f"{layers}.mlp.{theirs}.bias")
    for ours, theirs in (("self", "layer_norm1"), ("mlp", "layer_norm2")):
        for kind, name in (("scale", "weight"), ("bias", "bias")):
            arrays[f"blocks.{ours}_norm_{kind}"] = stacked(golden, f"{layers}.{theirs}.{name}")
    patches = golden["params.embeddings.patch_embedding.weight"]  # [d c p q]
    arrays["patch_embed.kernel"] = patches.transpose(2, 3, 1, 0)
    arrays["patch_embed.bias"] = golden["params.embeddings.patch_embedding.bias"]
    arrays["positions"] = golden["params.embeddings.position_embedding.weight"]
    arrays["norm.scale"] = golden["params.post_layernorm.weight"]
    arrays["norm.bias"] = golden["params.post_layernorm.bias"]
    fill(tower, arrays | {"out.kernel": np.zeros((12, 7), np.float32), "out.bias": np.zeros(7, np.float32)})
    check(golden, lambda pixels: tower.encode(pixels.transpose(0, 2, 3, 1)), golden["pixels"])


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match=r"images of 8 x 12 x 3 .* 8 x 8 x 3"):
        siglip()(jnp.zeros((1, 2, 8, 12, 3), jnp.uint8))


@functools.cache
def gemma() -> LanguageTower:
    golden, tower, layers = np.load(GOLDEN / "gemma.npz"), LanguageTower(jax.random.key(0), CONFIG), "layers.{}"
    arrays = attention(golden, layers, "o_proj", 4)
    for name in ("gate", "up", "down"):
        arrays[f"blocks.mlp.{name}.kernel"] = stacked(golden, f"{layers}.mlp.{name}_proj.weight").swapaxes(1, 2)
    for ours, theirs in (("self", "input_layernorm"), ("mlp", "post_attention_layernorm")):
        arrays[f"blocks.{ours}_norm_scale"] = 1 + stacked(golden, f"{layers}.{theirs}.weight")
    fill(tower, arrays | {"table": golden["params.embed_tokens.weight"]})
    return tower


@pytest.mark.slow
def test_gemma_equals_transformers_where_some_tokens_are_absent() -> None:
    golden, tower = np.load(GOLDEN / "gemma.npz"), gemma()
    seen = jnp.asarray(golden["seen"])
    told = bare_conditioning(2, 5, rotation_of(jnp.cumsum(seen, axis=1) - 1, 6, 10_000.0), seen)
    # Of a prefix, five tokens that all see all.
    whole = policy_layout(image_tokens=4, text_tokens=1, num_actions=1)
    prefix = whole.make_pass([s for s in whole.segments if s.expert == "prefix"], ())

    def run(x: jax.Array) -> jax.Array:
        x = scan_mixture({"prefix": tower.blocks}, {"prefix": x}, prefix, {"prefix": told}, remat="none")["prefix"]
        # A sample's absent tokens compute something that nothing reads.
        return rms_norm(x, 1 + jnp.asarray(golden["params.norm.weight"]), 1e-6) * seen[..., None]

    check(golden, run, golden["embedded"])


def test_gemma_looks_up_scaled_rows() -> None:
    golden, tower = np.load(GOLDEN / "gemma.npz"), gemma()
    np.testing.assert_allclose(tower.embed(jnp.asarray(golden["ids"], jnp.int32)), golden["embedded"], rtol=1e-6)
