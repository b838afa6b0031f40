"""The policy of two models: a clip is generated from what is seen, and the actions are read off its frames.

Every chunk begins anew from the newest observed frame: there is no cache, and of earlier chunks nothing is left.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx

from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig
from wamjax.config.two_stage import check_stages
from wamjax.errors import ConfigError
from wamjax.objectives.frame_pairs import FramePairsObjective
from wamjax.objectives.objective import abstract_model
from wamjax.objectives.video import VideoObjective
from wamjax.sampling.policy import Chunk, LatentCodec, PromptTable
from wamjax.sampling.solvers import SolverConfig, build_schedule, guided, sample, sample_reusing
from wamjax.types import PRNGKey, PureDict


@dataclasses.dataclass(frozen=True)
class InverseDynamics:
    """The second stage of a system: a run of an inverse-dynamics model.

    Attributes:
      config: The run.
      params: Pure dict of arrays.
    """

    config: RunConfig
    params: PureDict


class ReadActions(NamedTuple):
    """What an inverse-dynamics model makes of windows; it is shown their frames.

    Attributes:
      actions: fp32 ``[b a u]``, normalised.
      video: None.
    """

    actions: jax.Array
    video: None = None


class PairReader:
    """An inverse-dynamics model by itself, reading the actions of windows off their true frames."""

    def __init__(self, config: RunConfig, params: PureDict) -> None:
        """Makes a reader with ``params``."""
        self._objective, self._params = FramePairsObjective(config), params
        self._graphdef, _ = abstract_model(self._objective)
        self._read = jax.jit(self.read)

    def predict(self, batch: WamBatch, key: PRNGKey) -> ReadActions:
        """Reads the windows of ``batch``; nothing is drawn with ``key``."""
        del key
        return ReadActions(self._read(self._params, jnp.asarray(batch.video)))

    def read(self, params: PureDict, video: jax.Array) -> jax.Array:
        """Returns fp32 actions ``[b a u]`` of frames uint8 ``[b f H W 3]``."""
        return self._objective.actions(nnx.merge(self._graphdef, params), video)


class TwoStagePolicy:
    """Generates video from the observed frame and the prompt, and reads actions off its consecutive frames (UniPi).

    ``observe`` takes one frame after ``reset``, then those of the executed chunk: all of a clip but its first.
    """

    def __init__(
        self,
        config: RunConfig,
        params: PureDict,
        *,
        inverse_dynamics: InverseDynamics,
        codec: LatentCodec,
        prompts: PromptTable,
    ) -> None:
        """Makes a policy.

        Args:
          config: Of the video model; ``config.sampling`` says how clips are denoised.
          params: Of it, a pure dict of arrays.
          inverse_dynamics: The second stage.
          codec: Between pixels and latents.
          prompts: Encoded prompts.

        Raises:
          ConfigError: The two make no system (``config.two_stage``).
        """
        check_stages(config, inverse_dynamics.config)
        self.config, self.params, self.inverse_dynamics = config, params, inverse_dynamics
        self.objective = VideoObjective(config)
        self._reader = PairReader(inverse_dynamics.config, inverse_dynamics.params)
        self._codec, self._prompts = codec, prompts
        self._graphdef, _ = abstract_model(self.objective)
        sampling = config.sampling
        self._schedule = build_schedule(
            SolverConfig(
                num_steps=sampling.steps,
                method=sampling.solver,
                sigmas="wan" if sampling.solver == "unipc" else "uniform",
                shift=sampling.shift or config.objective.shift,
            )
        )
        self.denoise, self.read = jax.jit(self._denoise), jax.jit(self._reader.read)
        self._text: jax.Array | None = None
        self._frame: npt.NDArray[Any] | None = None
        self._is_due, self._num_rollouts = False, 0

    def reset(self, prompt_id: npt.NDArray[Any]) -> None:
        """Starts new rollouts with prompts ``[b]``; forgets everything observed."""
        self._text, _ = self._prompts.look_up(prompt_id, guided=self.config.sampling.guidance != 1)
        self._frame, self._is_due, self._num_rollouts = None, False, len(prompt_id)

    def observe(self, frames: npt.NDArray[Any], state: npt.NDArray[Any] | None = None) -> None:
        """Takes in what was really seen.

        Args:
          frames: uint8 ``[b f H W 3]``: one frame after ``reset``, then those of the executed chunk.
          state: Not read: this system sees frames alone.

        Raises:
          ConfigError: Called before ``reset`` or twice without ``act``, or with another number of rollouts or frames.
        """
        del state
        if self._text is None:
            raise ConfigError("Policy.observe was called before Policy.reset: the policy has no prompt")
        if self._is_due:
            raise ConfigError("Policy.observe was called twice without Policy.act between: show a chunk's frames once")
        if len(frames) != self._num_rollouts:
            raise ConfigError(
                f"Policy.observe got frames of {len(frames)} rollouts; Policy.reset began {self._num_rollouts}"
            )
        expected = 1 if self._frame is None else self.config.clip.num_frames - 1
        if frames.shape[1] != expected:
            raise ConfigError(f"Policy.observe got {frames.shape[1]} frames; expected {expected} at this point")
        self._frame, self._is_due = np.asarray(frames[:, -1:]), True

    def act(self, key: PRNGKey) -> Chunk:
        """Draws the next chunk: the clip that follows what was seen last, and its actions.

        Raises:
          ConfigError: Nothing was observed since the last chunk, or at all.
        """
        if self._frame is None or not self._is_due:
            raise ConfigError("Policy.act was called before Policy.observe: there is nothing new to act on")
        latents = self.denoise(self.params, self._codec.encode(self._frame), self._text, key)
        video = self._codec.decode(latents)[:, 1:]
        clip = jnp.concatenate([jnp.asarray(self._frame), video], axis=1)  # what was seen, not what it decodes to
        self._is_due = False
        return Chunk(self.read(self.inverse_dynamics.params, clip), video)

    def _denoise(self, params: PureDict, first: jax.Array, text: jax.Array, key: PRNGKey) -> jax.Array:
        """Returns the latents ``[b t h w c]`` of a clip that goes on from ``first`` ``[b 1 h w c]``."""
        model, objective, sampling = nnx.merge(self._graphdef, params), self.objective, self.config.sampling
        noise = objective.draw_noise(key, len(first)).latents
        known = objective.tokens(jnp.concatenate([first.astype(noise.dtype), noise[:, 1:]], axis=1))
        texts = jnp.split(text, 2) if sampling.guidance != 1 else [text, text]

        def predict(tokens: jax.Array, timestep: jax.Array, told: tuple[jax.Array, jax.Array]) -> jax.Array:
            seen, words = told
            return objective.predict(model, objective.hold(tokens, seen), jnp.full(len(tokens), timestep), words)

        velocity = guided(predict, (known, texts[0]), (known, texts[1]), sampling.guidance)
        if sampling.evaluated_steps:
            tokens = sample_reusing(velocity, known, self._schedule, sampling.evaluated_steps)
        else:
            tokens = sample(velocity, known, self._schedule)
        return objective.latents(objective.hold(tokens, known))
