"""The policy of a GPT over steps: one forward pass over what was seen, and the newest step's action is executed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from einops import rearrange
from flax import nnx

from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout.inference import answer_pass
from wamjax.models.gpt_policy import GptPolicy
from wamjax.objectives.objective import abstract_model
from wamjax.objectives.queries import QueriesObjective
from wamjax.sampling.policy import Chunk, PictureEncoder, PromptTable, check_pictures
from wamjax.types import PRNGKey, PureDict


class QueriesPolicy:
    """Looks back on as many steps as a training sample holds; a chunk is one action.

    ``observe`` takes one picture of every camera each time. Steps that have not come yet are zeros, which no earlier
    step sees. Nothing is drawn: the key is not read. No frames are asked for.

    Source: bytedance/GR-1, evaluation/calvin_evaluation.py: the last dim, a gripper's, is -1 or 1.
    """

    def __init__(self, config: RunConfig, params: PureDict, *, codec: PictureEncoder, prompts: PromptTable) -> None:
        """Makes a policy.

        Args:
          config: The run.
          params: Pure dict of arrays.
          codec: The image encoder.
          prompts: Encoded prompts, of one token each.
        """
        self.config, self.params, objective = config, params, QueriesObjective(config)
        self._codec, self._prompts, self._gpt = codec, prompts, objective.gpt
        self._graphdef, _ = abstract_model(objective)
        self._pass = answer_pass(objective.layout)
        self.answer = jax.jit(self._answer)
        self._text: jax.Array | None = None
        self._forget()

    def _forget(self) -> None:
        self._images: npt.NDArray[Any] | None = None
        self._states: npt.NDArray[Any] | None = None
        self._num_seen, self._is_due = 0, False

    def reset(self, prompt_id: npt.NDArray[Any]) -> None:
        """Starts new rollouts with prompts ``[b]``; forgets everything observed."""
        self._text, _ = self._prompts.look_up(prompt_id, guided=False)
        self._forget()

    def observe(self, frames: npt.NDArray[Any], state: npt.NDArray[Any]) -> None:
        """Takes in what is seen now.

        Args:
          frames: uint8 ``[b v H W 3]``: one picture of each camera.
          state: fp32 ``[b p]``: normalised state.

        Raises:
          ConfigError: Called before ``reset`` or twice without ``act``, or with pictures of other rollouts or cameras.
        """
        check_pictures(frames, self._gpt.num_views, None if self._text is None else len(self._text))
        if self._is_due:
            raise ConfigError("Policy.observe was called twice without Policy.act between: nothing was executed")
        features = np.asarray(self._codec.encode_pictures(frames), np.float32)
        state = np.asarray(state, np.float32)
        if self._images is None or self._states is None:
            steps = self.config.layout.num_blocks
            self._images, self._states = (np.zeros((len(x), steps, *x.shape[1:]), x.dtype) for x in (features, state))
        if self._num_seen == self._images.shape[1]:  # the oldest step is dropped
            self._images, self._states = (np.roll(x, -1, axis=1) for x in (self._images, self._states))
            self._num_seen -= 1
        self._images[:, self._num_seen], self._states[:, self._num_seen] = features, state
        self._num_seen, self._is_due = self._num_seen + 1, True

    def act(self, key: PRNGKey) -> Chunk:
        """Returns the action ``[b 1 u]`` of the newest step.

        Raises:
          ConfigError: Nothing was observed since the last one, or at all.
        """
        del key
        if not self._is_due:
            raise ConfigError("Policy.act was called before Policy.observe: there is nothing new to act on")
        self._is_due = False
        return Chunk(self.answer(self.params, self._images, self._text, self._states, self._num_seen - 1))

    def _answer(
        self, params: PureDict, images: jax.Array, text: jax.Array, states: jax.Array, newest: jax.Array
    ) -> jax.Array:
        """Returns the action ``[b 1 u]`` of step ``newest`` of features ``[b s v n c]`` and states ``[b s p]``."""
        model: GptPolicy = nnx.merge(self._graphdef, params)
        image = rearrange(images, "b s v n c -> b (s v n) c").astype(jnp.bfloat16)
        actions = model.act(image, text.astype(jnp.bfloat16), states, self._pass)
        own = jax.lax.dynamic_slice_in_dim(actions, newest, 1, axis=1)
        return own.at[..., -1].set(jnp.where(own[..., -1] > 0, 1.0, -1.0))
