"""Adam whose moments are kept in bfloat16: half the optimizer's memory.

The moments of a step are computed in fp32 and the update from them; only what is kept for the next step is rounded.
The first moment is rounded to the nearest value. The second may not be: bfloat16 has 8 significant bits, so a value
that changes by less than 1/512 of itself is rounded back to where it was, and with b2 = 0.999 the second moment can
fall by at most 1/1000 a step. It would never fall. It is rounded up or down at random instead, with the probability
that makes the mean exact. What either does to a moment is measured in ``tests/training/test_moments.py``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wamjax.types import PRNGKey

_SEED = 0x5EC0  # of the rounding alone; any number does


def scale_by_adam_in_bfloat16(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Returns ``optax.scale_by_adam`` with both moments kept in bfloat16.

    Rounding depends on the number of updates done and on the place in the array only: a resumed run rounds as one that
    never stopped, and any mesh as one device.

    Args:
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        mu, nu = (optax.tree.zeros_like(params, dtype=jnp.bfloat16) for _ in range(2))
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=mu, nu=nu)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m.astype(jnp.float32) + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda n, g: b2 * n.astype(jnp.float32) + (1 - b2) * g**2, state.nu, updates)
        scale_mu, scale_nu = (1 / (1 - decay ** jnp.asarray(count, jnp.float32)) for decay in (b1, b2))
        scaled = jax.tree.map(lambda m, n: m * scale_mu / (jnp.sqrt(n * scale_nu) + eps), mu, nu)
        leaves, structure = jax.tree.flatten(nu)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(_SEED), count), max(1, len(leaves)))
        kept_nu = [round_at_random(leaf, key) for leaf, key in zip(leaves, keys, strict=True)]
        kept_mu = optax.tree.cast(mu, jnp.bfloat16)
        return scaled, optax.ScaleByAdamState(count=count, mu=kept_mu, nu=structure.unflatten(kept_nu))

    return optax.GradientTransformation(init, update)


def round_at_random(x: jax.Array, key: PRNGKey) -> jax.Array:
    """Rounds fp32 to one of the two neighbouring bfloat16, each with the probability that keeps the mean.

    bfloat16 is the upper half of fp32: a random lower half is added before the lower half is cut off, and carries into
    the upper one as often as it should.

    Args:
      x: fp32; what is not finite stays what it is.
      key: Randomness.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))
