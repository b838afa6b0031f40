"""Weights per category: a sample uses the slice of its own, and no other sample's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wamjax.nn.category import CategoryActionEncoder, CategoryLinear, CategoryMlp

CATEGORIES = 3


def randomised(module: nnx.Module, seed: int = 0) -> dict[str, np.ndarray]:
    """Fills every parameter with noise, biases too; returns them by dotted path."""
    rng, values = np.random.default_rng(seed), {}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        values[".".join(map(str, path))] = rng.normal(size=variable.shape).astype(np.float32)
        variable.set_value(jnp.asarray(values[".".join(map(str, path))]))
    return values


@pytest.mark.parametrize("num_categories", [CATEGORIES, 1])
def test_category_linear_equals_a_loop_over_samples(num_categories):
    layer = CategoryLinear(jax.random.key(0), num_categories, (4, 6), (None, None), dtype="float32")
    values = randomised(layer)
    x = np.random.default_rng(1).normal(size=(4, 5, 4)).astype(np.float32)
    category = np.array([2, 0, 1, 2]) % num_categories
    out = layer(jnp.asarray(x), jnp.asarray(category))
    for b, c in enumerate(category):
        np.testing.assert_allclose(out[b], x[b] @ values["kernel"][c] + values["bias"][c], atol=1e-5)


def test_category_mlp_is_two_layers_with_relu_between():
    layer = CategoryMlp(jax.random.key(0), CATEGORIES, (4, 6, 3), (None, None, None), dtype="float32")
    values = randomised(layer)
    x, category = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32), np.array([1, 2])
    out = layer(jnp.asarray(x), jnp.asarray(category))
    for b, c in enumerate(category):
        hidden = np.maximum(x[b] @ values["hidden.kernel"][c] + values["hidden.bias"][c], 0)
        np.testing.assert_allclose(out[b], hidden @ values["out.kernel"][c] + values["out.bias"][c], atol=1e-4)


def test_action_encoder_puts_sines_before_cosines_of_the_timestep_after_the_action():
    width = 8
    encoder = CategoryActionEncoder(jax.random.key(0), CATEGORIES, 3, width, dtype="float32")
    values = randomised(encoder)
    rng, category = np.random.default_rng(1), np.array([2, 1])
    actions, ids = rng.normal(size=(2, 5, 3)).astype(np.float32), rng.integers(0, 1000, (2, 5)).astype(np.float32)
    out = encoder(jnp.asarray(actions), jnp.asarray(ids), jnp.asarray(category))
    for b, c in enumerate(category):
        angles = ids[b, :, None] * 10_000.0 ** (-np.arange(width // 2) / (width // 2))
        lifted = actions[b] @ values["lift.kernel"][c] + values["lift.bias"][c]
        mixed = np.concatenate([lifted, np.sin(angles), np.cos(angles)], axis=-1)
        mixed = mixed @ values["mix.kernel"][c] + values["mix.bias"][c]
        expected = (mixed / (1 + np.exp(-mixed))) @ values["out.kernel"][c] + values["out.bias"][c]
        np.testing.assert_allclose(out[b], expected, atol=2e-3, rtol=1e-4)  # an fp32 angle of 999 is 3e-5 off


def test_gradients_of_other_categories_are_exactly_zero():
    layer = CategoryLinear(jax.random.key(0), CATEGORIES, (4, 6), (None, None), dtype="float32")
    graphdef, state = nnx.split(layer)
    x, category = jnp.ones((2, 3, 4)), jnp.array([0, 2])
    gradients = jax.grad(lambda params: jnp.sum(jnp.square(nnx.merge(graphdef, params)(x, category) + 1)))(
        nnx.to_pure_dict(state)
    )
    for leaf in gradients.values():
        assert [bool(jnp.any(part)) for part in leaf] == [True, False, True]
