"""Moments in bfloat16: what rounding does to them, measured."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wamjax.training.moments import round_at_random, scale_by_adam_in_bfloat16

B2 = 0.999


def second_moments(scale_by, gradients):
    """Runs ``scale_by`` over ``gradients`` ``[steps n]``; returns the last second moment in fp32."""

    def step(state, grads):
        return scale_by.update(grads, state)[1], None

    state = jax.jit(lambda: jax.lax.scan(step, scale_by.init(gradients[0]), gradients)[0])()
    return np.asarray(state.nu, np.float32)


def kept_to_nearest():
    """Adam with a second moment rounded to the nearest bfloat16, as a cast does."""
    exact = optax.scale_by_adam(b2=B2)

    def init(params: Any) -> Any:
        state: Any = exact.init(params)
        return state._replace(nu=state.nu.astype(jnp.bfloat16))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        new: Any
        updates, new = exact.update(updates, state._replace(nu=state.nu.astype(jnp.float32)), params)
        return updates, new._replace(nu=new.nu.astype(jnp.bfloat16))

    return optax.GradientTransformation(init, update)


def test_second_moment_follows_gradients_that_shrink_and_would_not_if_rounded_to_nearest():
    """Gradients of size 1 for 1,000 steps, then of size 0.1 for 2,000, b2 = 0.999.

    In the mean of 512 elements 0.0940 exactly, 0.0939 rounded at random (each element 9 % off the exact one, one
    standard deviation) and 0.67 rounded to the nearest, which stops falling where a step is less than half a unit.
    """
    noise = jax.random.normal(jax.random.key(0), (3000, 512))
    gradients = jnp.concatenate([noise[:1000], 0.1 * noise[1000:]])
    exact = second_moments(optax.scale_by_adam(b2=B2), gradients)
    at_random = second_moments(scale_by_adam_in_bfloat16(0.9, B2, 1e-8), gradients)
    to_nearest = second_moments(kept_to_nearest(), gradients)
    assert at_random.mean() == pytest.approx(exact.mean(), rel=0.01)
    assert np.std(at_random / exact) < 0.12
    assert (to_nearest / exact).min() > 5


def test_rounding_at_random_gives_neighbours_and_keeps_the_mean():
    x = jnp.array([1.0, 1.0 + 2**-9, -3.3, 1e-30, 0.0, jnp.inf, jnp.nan], jnp.float32)
    draws = jax.jit(jax.vmap(lambda key: round_at_random(x, key)))(jax.random.split(jax.random.key(1), 4096))
    draws = np.asarray(draws, np.float32)
    finite = slice(0, 5)
    assert np.all(np.abs(draws[:, finite] - x[finite]) <= 2**-7 * np.abs(x[finite]))
    np.testing.assert_allclose(draws[:, finite].mean(0), x[finite], rtol=2e-4)
    assert np.all(draws[:, [0, 4]] == [1.0, 0.0]), "what bfloat16 has stays as it is"
    assert set(draws[:, 1]) == {1.0, 1.0 + 2**-7}
    assert np.all(np.isinf(draws[:, 5]))
    assert np.all(np.isnan(draws[:, 6]))


def test_first_update_is_exact_and_moments_are_the_same_on_every_mesh():
    grads = {"a": jax.random.normal(jax.random.key(2), (8, 16)), "b": jax.random.normal(jax.random.key(3), (16,))}
    adam = scale_by_adam_in_bfloat16(0.9, B2, 1e-8)
    updates, state = jax.jit(adam.update)(grads, adam.init(grads))
    expected, _ = optax.scale_by_adam(b2=B2).update(grads, optax.scale_by_adam(b2=B2).init(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.mu, state.nu))} == {jnp.dtype(jnp.bfloat16)}
    spread = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
    _, other = jax.jit(adam.update)(jax.device_put(grads, spread), jax.device_put(adam.init(grads), None))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.nu), jax.device_get(other.nu))
