"""A vision-language-action model against plain numpy, written from openpi's description with dense masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.tiny import QUICK_COMPILE
from wamjax.config.vla import VisionConfig, VlaConfig
from wamjax.layout import policy_layout
from wamjax.models.vision_language_action import VisionLanguageActionModel
from wamjax.parallel.parameters import flatten_params

VISION = VisionConfig(width=8, num_layers=1, num_heads=2, ffn_width=12, image_size=8, patch_size=4)
CONFIG = VlaConfig(
    vision=VISION, width=12, ffn_width=20, expert_width=10, expert_ffn_width=14, num_layers=2, num_heads=4,
    num_key_heads=1, head_dim=6, vocab_size=11, num_images=2, text_tokens=3,
)  # fmt: skip
LAYOUT = policy_layout(image_tokens=8, text_tokens=3, num_actions=4)
RNG = np.random.default_rng(0)
ACTIONS = RNG.normal(size=(2, 4, 5)).astype(np.float32)
TIMES = np.array([0.3, 0.9], np.float32)
IMAGES = RNG.integers(0, 256, (2, 2, 8, 8, 3), dtype=np.uint8)
VIEWS = np.array([[True, True], [True, False]])
IDS = np.array([[4, 9, 2], [7, -1, -1]], np.int32)


@functools.cache
def model() -> VisionLanguageActionModel:
    made = VisionLanguageActionModel(jax.random.key(0), CONFIG, 5)
    rng = np.random.default_rng(1)
    for _, variable in nnx.to_flat_state(nnx.state(made)):
        variable.set_value(jnp.asarray(rng.normal(0, 0.3, variable.shape), jnp.float32))
    return made


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rotate(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotates ``[n k e]``, dims j and j + e/2 together."""
    angle = positions[:, None, None] / 10_000.0 ** (np.arange(3) * 2 / 6)
    a, b = x[..., :3], x[..., 3:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def by_hand(sample: int, image_tokens: np.ndarray) -> np.ndarray:
    """Returns the prediction ``[a u]`` of one sample, token by token over what is there; fp64."""
    state = nnx.to_pure_dict(nnx.state(model()))
    p = {path: np.asarray(leaf, np.float64) for path, leaf in flatten_params(state).items()}

    def linear(x: np.ndarray, path: str, layer: int | None = None) -> np.ndarray:
        at = slice(None) if layer is None else layer
        bias = p.get(f"{path}.bias")
        return x @ p[f"{path}.kernel"][at] + (0 if bias is None else bias[at])

    periods = 4e-3 * (4.0 / 4e-3) ** np.linspace(0, 1, 5)
    sinusoid = np.concatenate([f(2 * np.pi * TIMES[sample] / periods) for f in (np.sin, np.cos)])
    embedding = silu(linear(sinusoid, "expert.time_embedding.hidden"))
    embedding = silu(linear(embedding, "expert.time_embedding.out"))

    def adaptive(x: np.ndarray, path: str, layer: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        scale, shift, gate = np.split(linear(embedding, f"{path}.vectors", layer), 3)
        return rms(x) * (1 + scale) + shift, gate

    there = np.concatenate([np.repeat(VIEWS[sample], 4), IDS[sample] >= 0, np.ones(4, bool)])
    words = p["prefix.table"][IDS[sample]] * np.sqrt(12)
    prefix = np.concatenate([image_tokens, words])[there[:11]]
    actions = linear(ACTIONS[sample].astype(np.float64), "expert.action_embed")
    n = len(prefix)
    positions = np.arange(n + 4)
    # openpi: a token sees those whose cumulative sum of "begins a block" is no more than its own.
    begins = np.cumsum(np.concatenate([np.zeros(n), [1], np.zeros(3)]))
    mask = begins[None, :] <= begins[:, None]
    for layer in range(2):
        scales = [p[f"prefix.blocks.{part}_norm_scale"][layer] for part in ("self", "mlp")]
        normed, gate = adaptive(actions, "expert.blocks.self_norm", layer)
        inputs = {"prefix": rms(prefix) * scales[0], "expert": normed}
        query, key, value = (
            np.concatenate(
                [
                    np.einsum("nd,dke->nke", x, p[f"{name}.blocks.self_attention.{part}.kernel"][layer])
                    for name, x in inputs.items()
                ]
            )
            for part in ("query", "key", "value")
        )
        query, key = rotate(query, positions), rotate(key, positions)
        scores = np.einsum("nke,me->knm", query, key[:, 0]) / np.sqrt(6)
        weights = np.exp(scores - scores.max(-1, keepdims=True)) * mask
        heads = np.einsum("knm,me->nke", weights / weights.sum(-1, keepdims=True), value[:, 0])
        out = {
            name: np.einsum("nke,ked->nd", part, p[f"{name}.blocks.self_attention.out_kernel"][layer])
            for name, part in (("prefix", heads[:n]), ("expert", heads[n:]))
        }
        prefix, actions = prefix + out["prefix"], actions + gate * out["expert"]

        def mlp(x: np.ndarray, name: str, layer: int = layer) -> np.ndarray:
            path = f"{name}.blocks.mlp"
            hidden = gelu(linear(x, f"{path}.gate", layer)) * linear(x, f"{path}.up", layer)
            return linear(hidden, f"{path}.down", layer)

        normed, gate = adaptive(actions, "expert.blocks.mlp_norm", layer)
        prefix, actions = prefix + mlp(rms(prefix) * scales[1], "prefix"), actions + gate * mlp(normed, "expert")
    return linear(adaptive(actions, "expert.out_norm")[0], "expert.action_out")


def test_prediction_equals_plain_numpy_on_the_tokens_that_are_there() -> None:
    made = model()

    def run() -> tuple[jax.Array, jax.Array]:
        out = made.predict(
            jnp.asarray(ACTIONS), jnp.asarray(TIMES), jnp.asarray(IMAGES), jnp.asarray(VIEWS), jnp.asarray(IDS),
            LAYOUT.full_pass(),
        )  # fmt: skip
        return out, made.vision(jnp.asarray(IMAGES))

    predicted, image_tokens = jax.jit(run, compiler_options=QUICK_COMPILE)()
    for sample in range(2):
        expected = by_hand(sample, np.asarray(image_tokens[sample], np.float64))
        np.testing.assert_allclose(predicted[sample], expected, atol=2e-4, rtol=2e-4)


def test_gradients_are_zero_exactly_where_nothing_is_seen() -> None:
    made = model()

    def read(images: jax.Array, actions: jax.Array, table: jax.Array) -> jax.Array:
        changed = nnx.clone(made)
        changed.prefix.table.set_value(table)
        out = changed.predict(
            actions, jnp.asarray(TIMES), images, jnp.asarray(VIEWS), jnp.asarray(IDS), LAYOUT.full_pass()
        )
        return out[1, 2].sum()  # one action of the second sample

    gradient = jax.jit(jax.grad(read, argnums=(0, 1, 2)), compiler_options=QUICK_COMPILE)
    images, actions, table = gradient(jnp.asarray(IMAGES, jnp.float32), jnp.asarray(ACTIONS), made.prefix.table[...])
    seen = (np.asarray(images) != 0).any(axis=(2, 3, 4))
    np.testing.assert_array_equal(seen, [[False, False], [True, False]])  # its own images that are there
    np.testing.assert_array_equal((np.asarray(actions) != 0).any(axis=2), [[False] * 4, [True] * 4])
    np.testing.assert_array_equal(np.flatnonzero((np.asarray(table) != 0).any(axis=1)), [7])  # its one word
