"""The end of a step: an update that is done where loss and gradient are finite, and skipped and counted elsewhere.

A skipped update leaves parameters, optimizer state and average as they were; only the step goes on. The counts are
part of the state, so a resumed run knows them. When to stop is the loop's (``training.loop``).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wamjax.training.optimizer import update_ema
from wamjax.types import PureDict

SKIPPED = "optimizer/skipped"  # metric: updates skipped so far
SKIPPED_IN_A_ROW = "optimizer/skipped_in_a_row"  # metric: of them, those since the last update that was done


def no_skips() -> dict[str, jax.Array]:
    """Returns the counts of a new state: ``state["skipped"]``."""
    return {"total": jnp.zeros((), jnp.int32), "in_a_row": jnp.zeros((), jnp.int32)}


def apply_gradients(
    state: dict[str, Any],
    loss: jax.Array,
    grads: PureDict,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Updates ``state`` by ``grads``, unless they or the loss are not finite.

    A gradient whose norm overflows fp32 is not finite either: it could not be clipped.

    Args:
      state: ``params``, ``opt``, ``ema``, ``skipped`` and ``step``; all else passes through.
      loss: Total loss.
      grads: Gradients of ``state["params"]``.
      optimizer: What turns them into updates.
      schedule: Its learning rate, for the record. Skipped updates do not advance it.
      ema_decay: Decay of the average; ``state["ema"]`` may be empty.

    Returns:
      The state after the step and the metrics ``optimizer/*``.
    """
    norm, skipped = optax.tree.norm(grads), state["skipped"]
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    num_done = state["step"] - skipped["total"]
    updates, opt = optimizer.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    ema = update_ema(state["ema"], params, ema_decay, num_done) if state["ema"] else {}
    new = {"params": params, "opt": opt, "ema": ema}
    # A choice per element, not a branch: the update is elementwise work that XLA fuses with it, in place.
    kept = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, {name: state[name] for name in new})
    counts = {
        "total": skipped["total"] + ~is_finite,
        "in_a_row": jnp.where(is_finite, 0, skipped["in_a_row"] + 1),
    }
    metrics = {
        "optimizer/grad_norm": norm,
        "optimizer/update_norm": jnp.where(is_finite, optax.tree.norm(updates), 0.0),
        "optimizer/lr": jnp.asarray(schedule(num_done), jnp.float32),
        SKIPPED: counts["total"].astype(jnp.float32),
        SKIPPED_IN_A_ROW: counts["in_a_row"].astype(jnp.float32),
    }
    return {**state, **kept, "skipped": counts, "step": state["step"] + 1}, metrics
