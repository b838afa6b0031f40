"""The policy of a vision-language-action model: the prefix once for every observation, then steps of the actions alone.

Pictures and a prompt, with the state written in it, become keys and values that all solver steps look at. Nothing is
looked back on: every observation begins anew.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx

from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout.inference import policy_passes
from wamjax.models.vision_language_action import VisionLanguageActionModel
from wamjax.nn.multihead import KeysValues
from wamjax.objectives.flow_matching import shift_time
from wamjax.objectives.objective import abstract_model
from wamjax.objectives.policy import PolicyObjective
from wamjax.sampling.policy import Chunk, PromptWriter, check_pictures, check_prompts
from wamjax.types import Actions, PRNGKey, PureDict


class ActionPolicy:
    """Denoises a chunk of actions given pictures and a prompt.

    ``observe`` takes one picture of every camera each time, of the sizes the vision tower takes.

    Source: openpi, src/openpi/models/pi0.py, ``sample_actions``.
    """

    def __init__(self, config: RunConfig, params: PureDict, *, prompts: PromptWriter) -> None:
        """Makes a policy.

        Args:
          config: The run; ``config.sampling.steps`` Euler steps at even times, shifted where
            ``config.sampling.shift`` is set.
          params: Pure dict of arrays.
          prompts: Writes prompts.

        Raises:
          ConfigError: The sampler is asked for what it does not have.
        """
        sampling = config.sampling
        self.config, self.params, objective = config, params, PolicyObjective(config)
        self._prompts, self._vla = prompts, objective.vla
        self._graphdef, _ = abstract_model(objective)
        self._read_pass, self._denoise_pass = policy_passes(objective.layout)
        even = np.linspace(1.0, 0.0, sampling.steps + 1)
        self._times = np.asarray(shift_time(even, sampling.shift or 1.0), np.float32)
        self.read, self.denoise = jax.jit(self._read), jax.jit(self._denoise)
        self._prompt_id: npt.NDArray[Any] | None = None
        self._known: tuple[KeysValues, jax.Array] | None = None

    def reset(self, prompt_id: npt.NDArray[Any]) -> None:
        """Starts new rollouts with prompts ``[b]``; forgets everything observed."""
        self._prompt_id, self._known = check_prompts(prompt_id, self._prompts.num_prompts), None

    def observe(self, frames: npt.NDArray[Any], state: npt.NDArray[Any]) -> None:
        """Takes in what is seen now.

        Args:
          frames: uint8 ``[b v H W 3]``: one picture of each camera, of fewer than the model's where some are absent.
          state: fp32 ``[b p]``: normalised state.

        Raises:
          ConfigError: Called before ``reset``, or with pictures of other rollouts or more cameras.
        """
        views = min(frames.shape[1], self._vla.num_images)
        check_pictures(frames, views, None if self._prompt_id is None else len(self._prompt_id))
        absent = self._vla.num_images - views
        images = np.pad(frames, ((0, 0), (0, absent), *(((0, 0),) * 3)))
        mask = np.broadcast_to(np.arange(self._vla.num_images) < views, images.shape[:2])
        text_ids = self._prompts(self._prompt_id, np.asarray(state, np.float32))
        self._known = self.read(self.params, images, mask, text_ids)

    def act(self, key: PRNGKey) -> Chunk:
        """Draws the next chunk.

        Raises:
          ConfigError: Nothing was observed since the last chunk, or at all.
        """
        if self._known is None:
            raise ConfigError("Policy.act was called before Policy.observe: there is nothing new to act on")
        actions = self.denoise(self.params, *self._known, key)
        self._known = None
        return Chunk(actions)

    def _read(
        self, params: PureDict, images: jax.Array, view_mask: jax.Array, text_ids: jax.Array
    ) -> tuple[KeysValues, jax.Array]:
        model: VisionLanguageActionModel = nnx.merge(self._graphdef, params)
        return model.read(images, view_mask, text_ids, self._read_pass)

    def _denoise(self, params: PureDict, past: KeysValues, seen: jax.Array, key: PRNGKey) -> Actions:
        """Returns actions ``[b a u]``, by Euler steps from noise."""
        model: VisionLanguageActionModel = nnx.merge(self._graphdef, params)
        shape = (seen.shape[0], self.config.layout.actions_per_block, self.config.data.action_dim)
        times = jnp.asarray(self._times)

        def step(index: jax.Array, actions: Actions) -> Actions:
            now, after = times[index], times[index + 1]
            velocity = model.denoise(actions, jnp.full(shape[0], now), past, seen, self._denoise_pass)
            return actions + (after - now) * velocity

        return jax.lax.fori_loop(0, self.config.sampling.steps, step, jax.random.normal(key, shape))
