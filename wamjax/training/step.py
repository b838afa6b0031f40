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
from wamjax.training.accumulate import accumulate_gradients
from wamjax.training.trainable import join_trees
from wamjax.training.update import apply_gradients
from wamjax.types import PureDict

State = dict[str, Any]  # {"params", "frozen", "opt", "ema", "skipped", "step"}
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
        # Drawn once: XLA would draw it again within everything that reads it, in the layout of each.
        noise = jax.lax.optimization_barrier(objective.draw_noise(key, batch.size))

        counts = objective.counts(batch)  # first, because a part's loss is its share of the whole batch's mean

        def loss_fn(params: PureDict, part: tuple[WamBatch, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
            model = nnx.merge(graphdef, join_trees(params, state["frozen"]))
            losses = {name: loss.as_part(counts[name]) for name, loss in objective.losses(model, *part).items()}
            return objective.total(losses), {name: loss.mean() for name, loss in losses.items()}

        parts = config.train.accumulate
        loss, means, grads = accumulate_gradients(loss_fn, state["params"], (batch, noise), parts)
        state, metrics = apply_gradients(state, loss, grads, optimizer, schedule, config.optimizer.ema_decay)
        losses = {"loss/total": loss, **{f"loss/{name}": mean for name, mean in means.items()}}
        if batch.has_action is not None:  # the action loss is a mean over these samples alone
            metrics["data/has_action"] = jnp.mean(batch.has_action, dtype=jnp.float32)
        return state, {**losses, **metrics}

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
