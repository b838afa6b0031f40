"""The policy of the small model on pixels.

The cache grows with real observations up to the blocks a training sample holds; then the oldest block is dropped and
the cache is filled anew from the last frames, so that positions never leave the range seen in training.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import build_layout
from wamjax.nn.multihead import KeysValues
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.sampling.chunk import Observation, denoise_block, fill_context
from wamjax.sampling.policy import Chunk
from wamjax.types import PRNGKey, PureDict


class PixelPolicy:
    """Joint denoising of video and actions with a cache refilled by real observations."""

    def __init__(self, config: RunConfig, params: PureDict) -> None:
        """Makes a policy of ``params`` (a pure dict of arrays).

        Raises:
          ConfigError: A block has more than one state token (a policy observes one state per chunk).
        """
        if config.layout.states_per_block != 1:
            raise ConfigError(
                f"config.layout.states_per_block={config.layout.states_per_block}; expected 1, because a policy "
                "observes one state per chunk"
            )
        self.config, self.params = config, params
        self.layout = build_layout(config)
        self._graphdef, _ = abstract_model(build_objective(config))
        self._fill = jax.jit(self._fill_orders, static_argnames=("orders",))
        self._denoise = jax.jit(self._denoise_order, static_argnames=("order",))
        self._prompt_id: jax.Array | None = None
        self._frames: np.ndarray | None = None
        self._state: jax.Array | None = None
        self._cache: KeysValues | None = None

    def reset(self, prompt_id: np.ndarray) -> None:
        """Starts new rollouts with prompts ``[b]``; forgets everything observed."""
        self._prompt_id = jnp.asarray(prompt_id, jnp.int32)
        self._frames = self._state = self._cache = None

    def observe(self, frames: np.ndarray, state: np.ndarray) -> None:
        """Takes in what was really seen.

        Args:
          frames: uint8 ``[b f H W 3]``: one frame after ``reset``, then ``frames_per_block`` frames per executed chunk.
          state: fp32 ``[b p]``: normalised state at the last frame.

        Raises:
          ConfigError: Called before ``reset``, or with another number of frames.
        """
        if self._prompt_id is None:
            raise ConfigError("Policy.observe was called before Policy.reset")
        expected = 1 if self._frames is None else self.config.layout.frames_per_block
        if frames.shape[1] != expected:
            raise ConfigError(f"Policy.observe got {frames.shape[1]} frames; expected {expected} at this point")
        sizes = self.config.layout
        self._state = jnp.asarray(state, jnp.float32)[:, None]
        seen = frames if self._frames is None else np.concatenate([self._frames, frames], axis=1)
        longest = 1 + (sizes.num_blocks - 1) * sizes.frames_per_block
        if seen.shape[1] <= longest:
            self._frames, newest = seen, (seen.shape[1] - 1) // sizes.frames_per_block
            orders = (newest, newest)
        else:
            self._frames, self._cache = seen[:, -longest:], None
            orders = (0, sizes.num_blocks - 1)
        self._cache = self._fill(self.params, self._frames, self._prompt_id, self._cache, orders=orders)

    def act(self, key: PRNGKey) -> Chunk:
        """Draws the next chunk.

        Raises:
          ConfigError: Nothing was observed yet.
        """
        if self._frames is None or self._state is None:
            raise ConfigError("Policy.act was called before Policy.observe: there is nothing to act on")
        order = (self._frames.shape[1] - 1) // self.config.layout.frames_per_block + 1
        last = self._frames[:, -1:]
        return self._denoise(self.params, last, self._state, self._prompt_id, self._cache, key, order=order)

    def _fill_orders(
        self,
        params: PureDict,
        frames: jax.Array,
        prompt_id: jax.Array,
        past: KeysValues | None,
        *,
        orders: tuple[int, int],
    ) -> KeysValues:
        model = nnx.merge(self._graphdef, params)
        return fill_context(model, model.codec.encode(frames), prompt_id, self.layout, orders, past)

    def _denoise_order(
        self,
        params: PureDict,
        last_frame: jax.Array,
        state: jax.Array,
        prompt_id: jax.Array,
        past: KeysValues,
        key: PRNGKey,
        *,
        order: int,
    ) -> Chunk:
        model = nnx.merge(self._graphdef, params)
        observation = Observation(last_frame=model.codec.encode(last_frame)[:, 0], state=state, prompt_id=prompt_id)
        video, actions = denoise_block(model, observation, past, key, self.config, self.layout, order)
        return Chunk(actions, model.codec.decode(video))
