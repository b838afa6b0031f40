"""Updates that are skipped: what stays, what goes on, what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wamjax.training.update import SKIPPED, SKIPPED_IN_A_ROW, apply_gradients, no_skips

SCHEDULE = optax.linear_schedule(0.1, 0.0, 10)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULE))
PARAMS = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
GOOD = jax.tree.map(jnp.ones_like, PARAMS)


def start():
    opt = OPTIMIZER.init(PARAMS)
    return {"params": PARAMS, "frozen": {}, "opt": opt, "ema": PARAMS, "skipped": no_skips(), "step": jnp.int32(0)}


@jax.jit
def step(state, loss, grads):
    return apply_gradients(state, loss, grads, OPTIMIZER, SCHEDULE, 0.9)


def bad(value):
    return {**GOOD, "b": GOOD["b"].at[1, 0].set(value)}


@pytest.mark.parametrize(
    ("loss", "grads"),
    [(1.0, bad(jnp.nan)), (1.0, bad(-jnp.inf)), (jnp.nan, GOOD), (jnp.inf, GOOD), (1.0, bad(1e30))],
    ids=["nan gradient", "infinite gradient", "nan loss", "infinite loss", "norm beyond fp32"],
)
def test_update_that_is_not_finite_changes_nothing_but_the_step_and_the_counts(loss, grads):
    before, _ = step(start(), 1.0, GOOD)
    after, metrics = step(before, loss, grads)
    for name in ("params", "opt", "ema"):
        jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
    assert (after["step"], after["skipped"]) == (2, {"total": 1, "in_a_row": 1})
    assert (metrics[SKIPPED], metrics[SKIPPED_IN_A_ROW], metrics["optimizer/update_norm"]) == (1, 1, 0)


def test_counts_are_carried_and_training_goes_on_as_if_the_skipped_step_had_not_been():
    state, expected, expected_metrics = start(), start(), {}
    for loss in (1.0, jnp.nan, jnp.nan, 1.0, jnp.nan, 1.0):
        state, metrics = step(state, loss, GOOD)
    for _ in range(3):
        expected, expected_metrics = step(expected, 1.0, GOOD)
    for name in ("params", "opt", "ema"):
        jax.tree.map(np.testing.assert_array_equal, state[name], expected[name])
    assert metrics["optimizer/lr"] == expected_metrics["optimizer/lr"], "the record shows the rate that was used"
    assert (state["step"], state["skipped"]) == (6, {"total": 3, "in_a_row": 0})
