"""The training step: pure, from state and batch to state and metrics.

Randomness is ``fold_in(key, step)``: nothing random is carried, so a resumed run draws what the first would have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig
from wamjax.layout import Layout
from wamjax.objectives.world_action import (
    Noise,
    StreamLoss,
    draw_noise,
    loss_counts,
    mean_losses,
    total_loss,
    world_action_losses,
)
from wamjax.training.accumulate import accumulate_gradients
from wamjax.training.trainable import join_trees
from wamjax.training.update import apply_gradients
from wamjax.types import PureDict

State = dict[str, Any]  # {"params", "frozen", "opt", "ema", "skipped", "step"}
Metrics = dict[str, jax.Array]
VALIDATION_STREAM = 1  # fold_in tag that keeps validation noise apart from training noise


def make_train_step(
    config: RunConfig,
    layout: Layout,
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
        noise = draw_noise(key, batch.video.shape[0], config, layout)

        counts = loss_counts(batch, layout, config)  # first: a part's loss is its share of the whole batch's means

        def loss_fn(params: PureDict, part: tuple[WamBatch, Noise]) -> tuple[jax.Array, dict[str, jax.Array]]:
            model = nnx.merge(graphdef, join_trees(params, state["frozen"]))
            means = mean_losses(world_action_losses(model, *part, config, layout), counts)
            return total_loss(means, config), means

        loss, means, grads = accumulate_gradients(
            loss_fn, state["params"], (batch, noise), config.train.accumulate
        )
        state, metrics = apply_gradients(state, loss, grads, optimizer, schedule, config.optimizer.ema_decay)
        streams = {f"loss/{name}": mean for name, mean in means.items()}
        return state, {"loss/total": loss, **streams, **metrics}

    return train_step


def make_sample_losses(
    config: RunConfig, layout: Layout, graphdef: nnx.GraphDef[Any]
) -> Callable[..., dict[str, StreamLoss]]:
    """Returns a function from parameters, a batch, an integer index and what is observed to per-sample losses.

    Noise depends on the seed and the index only: calls with one index share their noise, whatever the batch holds.
    ``observed`` is the batch whose clean frames and state the model is shown, the batch itself by default.
    """

    def sample_losses(
        params: PureDict, batch: WamBatch, index: jax.Array, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), VALIDATION_STREAM)
        noise = draw_noise(jax.random.fold_in(key, index), batch.video.shape[0], config, layout)
        return world_action_losses(nnx.merge(graphdef, params), batch, noise, config, layout, observed)

    return sample_losses
