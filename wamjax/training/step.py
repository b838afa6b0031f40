"""The training step: pure, from state and batch to state and metrics.

Randomness is ``fold_in(key, step)``: nothing random is carried, so a resumed run draws what the first would have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig
from wamjax.objectives.objective import Objective
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.training.optimizer import update_ema
from wamjax.training.trainable import join_trees
from wamjax.types import PureDict

State = dict[str, Any]  # {"params", "frozen", "opt", "ema", "step"}
Metrics = dict[str, jax.Array]
VALIDATION_STREAM = 1  # fold_in tag that keeps validation noise apart from training noise


def make_train_step(
    config: RunConfig,
    objective: Objective,
    graphdef: nnx.GraphDef[Any],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> Callable[[State, WamBatch], tuple[State, Metrics]]:
    """Returns the step function (not jitted).

    Gradients, optimizer and average know the trained parameters ``state["params"]`` only; ``state["frozen"]`` passes
    through.
    """

    def train_step(state: State, batch: WamBatch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state["step"])
        noise = objective.draw_noise(key, batch.size)

        def loss_fn(params: PureDict) -> tuple[jax.Array, dict[str, StreamLoss]]:
            model = nnx.merge(graphdef, join_trees(params, state["frozen"]))
            losses = objective.losses(model, batch, noise)
            return objective.total(losses), losses

        (loss, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        ema = state["ema"]
        if config.optimizer.ema_decay:
            ema = update_ema(ema, params, config.optimizer.ema_decay, state["step"])
        metrics = {
            "loss/total": loss,
            **{f"loss/{name}": stream.mean() for name, stream in losses.items()},
            "optimizer/grad_norm": optax.tree.norm(grads),
            "optimizer/update_norm": optax.tree.norm(updates),
            "optimizer/lr": jnp.asarray(schedule(state["step"]), jnp.float32),
        }
        return {**state, "params": params, "opt": opt, "ema": ema, "step": state["step"] + 1}, metrics

    return train_step


def make_sample_losses(
    config: RunConfig, objective: Objective, graphdef: nnx.GraphDef[Any]
) -> Callable[..., dict[str, StreamLoss]]:
    """Returns a function from parameters, a batch, an integer index and what is observed to per-sample losses.

    Noise depends on the seed and the index only: calls with one index share their noise, whatever the batch holds.
    ``observed`` is the batch whose clean frames and state the model is shown, the batch itself by default.
    """

    def sample_losses(
        params: PureDict, batch: WamBatch, index: jax.Array, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), VALIDATION_STREAM)
        noise = objective.draw_noise(jax.random.fold_in(key, index), batch.size)
        return objective.losses(nnx.merge(graphdef, params), batch, noise, observed)

    return sample_losses
