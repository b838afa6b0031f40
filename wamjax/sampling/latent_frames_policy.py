"""The policy of Cosmos Policy: what is not given of the latent frames is denoised at once, along EDM's noise levels.

Everything sees everything, so nothing can be cached: every step runs the whole sequence. Actions, the later state and
the value are the means over the repeats that fill their latent frames.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx

from wamjax.batch import Question, WamBatch
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.models.video_transformer import VideoTransformer
from wamjax.objectives.image_frames import average_vector
from wamjax.objectives.latent_frames import LatentFramesObjective
from wamjax.objectives.objective import abstract_model
from wamjax.sampling.policy import Chunk, LatentCodec, PromptTable, check_pictures
from wamjax.sampling.solvers import SolverConfig, build_schedule, denoiser_velocity, precondition, sample
from wamjax.types import PRNGKey, PureDict


class LatentFramesPolicy:
    """Denoises actions, what follows from them and what it is worth, from pictures and a state.

    ``observe`` takes one picture of every view each time.

    Source: Cosmos Policy's released code: steps of second order (``adams``) between as many of EDM's levels as there
    are steps, the last one to 0. What differs: it steps in fp64.
    """

    def __init__(
        self, config: RunConfig, params: PureDict, *, codec: LatentCodec, prompts: PromptTable, decodes: bool = True
    ) -> None:
        """Makes a policy; arguments as ``latent_policy.LatentPolicy``.

        Raises:
          ConfigError: The run is of another formulation, or asks for what its sampler does not have.
        """
        sampling = config.sampling
        self.config, self.params, self.objective = config, params, LatentFramesObjective(config)
        self._codec, self._prompts, self._decodes = codec, prompts, decodes
        self._graphdef, _ = abstract_model(self.objective)
        self._schedule = build_schedule(
            SolverConfig(
                num_steps=sampling.steps,
                method=sampling.solver,
                sigmas="karras",
                sigma_max=sampling.sigma_max,
                sigma_min=sampling.sigma_min,
            )
        )
        self.denoise = jax.jit(self._denoise)
        self._text: jax.Array | None = None
        self._batch: WamBatch | None = None

    def reset(self, prompt_id: npt.NDArray[Any]) -> None:
        """Starts new rollouts with prompts ``[b]``; forgets everything observed."""
        self._text, self._category = self._prompts.look_up(prompt_id, guided=False)
        self._batch = None

    def observe(self, frames: npt.NDArray[Any], state: npt.NDArray[Any]) -> None:
        """Takes in what is seen now.

        Args:
          frames: uint8 ``[b v H W 3]``: one picture of each view.
          state: fp32 ``[b p]``: normalised state.

        Raises:
          ConfigError: Called before ``reset``, or with another number of pictures.
        """
        views = self.config.layout.frames_per_block
        check_pictures(frames, views, None if self._text is None else len(self._text))
        rows = len(frames)
        pictures = self._codec.encode(np.reshape(frames, (rows * views, 1, *frames.shape[2:])))
        self._batch = self._known(jnp.reshape(pictures, (rows, views, *pictures.shape[2:])), jnp.asarray(state))

    def act(self, key: PRNGKey) -> Chunk:
        """Draws the next chunk: actions, the pictures and the value after them.

        Raises:
          ConfigError: Nothing was observed since the last chunk, or at all.
        """
        if self._batch is None:
            raise ConfigError("Policy.act was called before Policy.observe: there is nothing new to act on")
        actions, pictures, value = self.denoise(self.params, self._batch, key)
        self._batch = None
        if not self._decodes:
            return Chunk(actions, value=value)
        rows, views = pictures.shape[:2]
        video = self._codec.decode(jnp.reshape(pictures, (rows * views, 1, *pictures.shape[2:])))
        return Chunk(actions, jnp.reshape(video, (rows, views, *video.shape[2:])), value)

    def _known(self, pictures: jax.Array, state: jax.Array) -> WamBatch:
        """Returns the sample whose later half is not known; that is filled with zeros."""
        rows, sizes, data = len(state), self.config.layout, self.config.data
        states = jnp.stack([state, jnp.zeros_like(state)], axis=1).astype(jnp.float32)
        return WamBatch(
            latents=jnp.concatenate([pictures, jnp.zeros_like(pictures)], axis=1),
            actions=jnp.zeros((rows, sizes.actions_per_block, data.action_dim)),
            state=states,
            state_mask=jnp.ones_like(states, bool),
            value=jnp.zeros(rows),
            question=jnp.full(rows, int(Question.POLICY), jnp.int32),
            text=self._text,
            provenance=jnp.zeros((rows, 3), jnp.int32),
        )

    def _denoise(self, params: PureDict, known: WamBatch, key: PRNGKey) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns actions ``[b a u]``, later pictures ``[b v h w c]`` and the value ``[b]``."""
        model: VideoTransformer = nnx.merge(self._graphdef, params)
        objective, sizes = self.objective, self.config.layout
        x0, given = objective.frames(known), objective.given(known)

        def network(x: jax.Array, time: jax.Array) -> jax.Array:
            return objective.predict(model, x, x0, given, jnp.full(len(x), time), known.text)

        velocity = denoiser_velocity(precondition(network, "flow"))
        frames = sample(velocity, jax.random.normal(key, x0.shape), self._schedule)
        views, size = sizes.frames_per_block, sizes.actions_per_block * self.config.data.action_dim
        action = 2 + views
        actions = average_vector(frames[:, action], size)
        later = frames[:, action + 2 : action + 2 + views]
        value = average_vector(frames[:, -1], 1)[:, 0]
        return actions.reshape(len(actions), sizes.actions_per_block, -1), later, value
