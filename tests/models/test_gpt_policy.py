"""A GPT that answers queries: its resampler against plain numpy, and what answers depend on by exact-zero gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import QUICK_COMPILE
from wamjax.config.gpt import GptPolicyConfig
from wamjax.layout import query_layout
from wamjax.models.gpt_policy import GptPolicy, patch_places
from wamjax.models.resampler import Resampler
from wamjax.parallel.parameters import flatten_params

CONFIG = GptPolicyConfig(
    width=8, num_layers=1, num_heads=2, ffn_width=12, num_views=2, image_size=8, patch_size=4, image_width=6,
    text_width=5, num_latents=2, resampler_layers=1, resampler_heads=2, resampler_head_dim=4, decoder_layers=1,
    decoder_heads=2, ahead=1,
)  # fmt: skip
STEPS, TOKENS = 3, 2 * 5  # of both pictures: one of the whole and four patches each


def randomised(module: nnx.Module) -> None:
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(module)):
        variable.set_value(jnp.asarray(rng.normal(0, 0.4, variable.shape), jnp.float32))


def test_resampler_equals_plain_numpy() -> None:
    resampler = Resampler(jax.random.key(0), 6, 2, 2, (3, 4), dtype="float32")
    randomised(resampler)
    p = {k: np.asarray(x, np.float64) for k, x in flatten_params(nnx.to_pure_dict(nnx.state(resampler))).items()}
    tokens = np.random.default_rng(1).normal(size=(2, 5, 6)).astype(np.float32)

    def norm(x: np.ndarray, path: str, at: int | slice = slice(None)) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return normed * p[f"{path}.scale"][at] + p[f"{path}.bias"][at]

    placed = tokens + p["place"]
    latents = np.broadcast_to(p["latents"], (2, 2, 6))
    for layer in range(2):
        asking = norm(latents, "layers.latent_norm", layer)
        read = np.concatenate([norm(placed, "layers.token_norm", layer), asking], axis=1)
        query, key, value = (
            np.einsum("bnd,dke->bkne", x, p[f"layers.{name}.kernel"][layer])
            for name, x in (("query", asking), ("key", read), ("value", read))
        )
        scores = np.einsum("bkne,bkme->bknm", query, key) / 2.0  # head dim 4
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads = np.einsum("bknm,bkme->bkne", weights / weights.sum(-1, keepdims=True), value)
        latents = latents + np.einsum("bkne,ked->bnd", heads, p["layers.out_kernel"][layer])
        hidden = norm(latents, "layers.mlp_norm", layer) @ p["layers.up.kernel"][layer]
        hidden = np.asarray(jax.nn.gelu(hidden, approximate=False))
        latents = latents + hidden @ p["layers.down.kernel"][layer]
    out = jax.jit(resampler, compiler_options=QUICK_COMPILE)(jnp.asarray(tokens))
    np.testing.assert_allclose(out, norm(latents, "norm"), atol=2e-4)


@pytest.mark.slow
def test_answers_depend_on_what_was_shown_up_to_their_step() -> None:
    model = GptPolicy(jax.random.key(0), CONFIG, STEPS, 3, 4)
    randomised(model)
    layout = query_layout(steps=STEPS, observed=CONFIG.observed_tokens, asked=2 * CONFIG.view_tokens, ahead=1)
    rng = np.random.default_rng(2)
    image = jnp.asarray(rng.normal(size=(1, STEPS * TOKENS, 6)), jnp.float32)
    text, state = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 1, 5), (1, STEPS, 4)))

    def read(image: jax.Array, state: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
        answers = model.predict(image, text, state, layout.full_pass())
        return jnp.sum(weights[0] * answers[0]) + jnp.sum(weights[1] * answers[1])

    gradient = jax.jit(jax.grad(read, argnums=(0, 1)), compiler_options=QUICK_COMPILE)
    nothing = jnp.zeros((1, STEPS, 3)), jnp.zeros((1, STEPS - 1, 2, 4, 48))
    asked = [(step, (nothing[0].at[:, step].set(1.0), nothing[1])) for step in range(STEPS)]
    asked += [(step, (nothing[0], nothing[1].at[:, step, 0].set(1.0))) for step in range(STEPS - 1)]
    for step, weights in asked:
        by_image, by_state = map(np.asarray, gradient(image, state, weights))
        shown = np.arange(STEPS) <= step
        pictures = (by_image.reshape(STEPS, 2, 5, 6) != 0).any(axis=3)
        np.testing.assert_array_equal(pictures, np.broadcast_to(shown[:, None, None], (STEPS, 2, 5)))
        # The gripper's state is one of two classes: no gradient.
        np.testing.assert_array_equal((by_state[0, :, :3] != 0).any(axis=1), shown)
        assert not by_state[..., 3].any()


def test_places_of_patches_tell_columns_and_rows_apart() -> None:
    places = patch_places(3, 8)
    assert places.shape == (9, 8)
    np.testing.assert_allclose(places[5], np.concatenate([places[2][:4], places[3][4:]]))  # row 1, column 2
    np.testing.assert_allclose(places[1][:4], [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)], atol=1e-6)
