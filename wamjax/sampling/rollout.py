"""Predicting recorded windows chunk by chunk from their true past (open loop), for evaluation."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig
from wamjax.layout import build_layout
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.sampling.chunk import Observation, denoise_block, fill_context
from wamjax.types import PRNGKey, PureDict


class Prediction(NamedTuple):
    """What the model expects of a window.

    Attributes:
      video: uint8 ``[b t-1 H W 3]``: every frame after the first.
      actions: fp32 ``[b a u]``, normalised.
    """

    video: jax.Array
    actions: jax.Array


class ChunkSampler:
    """Predicts each block of a window from the true frames before it."""

    def __init__(self, config: RunConfig, params: PureDict) -> None:
        """Makes a sampler of ``params`` (a pure dict of arrays)."""
        self.config, self.params = config, params
        self.layout = build_layout(config)
        self._graphdef, _ = abstract_model(build_objective(config))
        self._predict = jax.jit(self._predict_window)

    def predict(self, batch: WamBatch, key: PRNGKey) -> Prediction:
        """Samples every block of ``batch``; equal keys give equal samples."""
        return self._predict(self.params, batch, key)

    def _predict_window(self, params: PureDict, batch: WamBatch, key: PRNGKey) -> Prediction:
        model = nnx.merge(self._graphdef, params)
        config, layout = self.config, self.layout
        latents = model.codec.encode(batch.video)
        state, per_block = batch.state * batch.state_mask, config.layout.states_per_block
        cache, frames, actions = None, [], []
        for order in range(1, config.layout.num_blocks + 1):
            cache = fill_context(model, latents, batch.prompt_id, layout, (order - 1, order - 1), cache)
            first = (order - 1) * config.layout.frames_per_block
            observation = Observation(
                last_frame=latents[:, first],
                state=state[:, (order - 1) * per_block : order * per_block],
                prompt_id=batch.prompt_id,
            )
            block_key = jax.random.fold_in(key, order)
            video, chunk = denoise_block(model, observation, cache, block_key, config, layout, order)
            frames.append(video)
            actions.append(chunk)
        pixels = model.codec.decode(jnp.concatenate(frames, axis=1))
        return Prediction(pixels, jnp.concatenate(actions, axis=1))
