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
from wamjax.objectives.world_action import StreamLoss, draw_noise, total_loss, world_action_losses
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

        def loss_fn(params: PureDict) -> tuple[jax.Array, dict[str, StreamLoss]]:
            model = nnx.merge(graphdef, join_trees(params, state["frozen"]))
            losses = world_action_losses(model, batch, noise, config, layout)
            return total_loss(losses, config), losses

        (loss, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        state, metrics = apply_gradients(state, loss, grads, optimizer, schedule, config.optimizer.ema_decay)
        streams = {f"loss/{name}": stream.mean() for name, stream in losses.items()}
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
