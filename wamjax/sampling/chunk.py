"""Denoising one temporal block at a time, with the clean past in a key-value cache.

What the cache holds, and which tokens a chunk computes, comes from the layout (``context_pass``, ``denoise_pass``).
The functions here are pure; ``rollout`` and ``policy`` jit them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.config.schema import RunConfig
from wamjax.layout import Layout, Pass, Role, Segment
from wamjax.models.world_action import Streams, WorldActionModel
from wamjax.nn.multihead import KeysValues
from wamjax.objectives.flow_matching import shift_time, velocity_from
from wamjax.objectives.noising import select_frames
from wamjax.objectives.world_action import repeat_frame
from wamjax.types import PRNGKey


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What is known when a block is denoised.

    Attributes:
      last_frame: ``[b h w c]`` latent of the last frame before the block.
      state: ``[b s p]`` normalised state tokens of the block.
      prompt_id: int32 ``[b]``.
    """

    last_frame: jax.Array
    state: jax.Array
    prompt_id: jax.Array


def solver_times(config: RunConfig) -> np.ndarray:
    """Returns the ``solver_steps + 1`` times of the Euler solver: 1 down to 0, shifted as in training."""
    even = np.linspace(1.0, 0.0, config.evaluate.solver_steps + 1)
    return np.asarray(shift_time(even, config.objective.shift), dtype=np.float32)


def fill_context(
    model: WorldActionModel,
    latents: jax.Array,
    prompt_id: jax.Array,
    layout: Layout,
    orders: tuple[int, int],
    past: KeysValues | None,
) -> KeysValues:
    """Computes the keys and values of clean frames and appends them to the cache.

    Args:
      model: The model.
      latents: ``[b t h w c]`` holding at least the frames of ``orders``, at their place in the clip.
      prompt_id: int32 ``[b]``.
      layout: The layout.
      orders: First and last order that is computed.
      past: Cache of all earlier orders, ``[layers b k m e]``; None if there is none.

    Returns:
      The cache of all orders up to the last.
    """
    context = layout.context_pass(*orders)
    streams = Streams(
        times=jnp.zeros((latents.shape[0], layout.num_slots)),
        prompt_id=prompt_id,
        clean_video=select_frames(latents, context.segments),
    )
    _, own = model(streams, context, past, return_cache=True)
    assert own is not None
    return own if past is None else KeysValues(*(jnp.concatenate(pair, axis=3) for pair in zip(past, own, strict=True)))


def denoise_block(
    model: WorldActionModel,
    observation: Observation,
    past: KeysValues,
    key: PRNGKey,
    config: RunConfig,
    layout: Layout,
    order: int,
) -> tuple[jax.Array, jax.Array]:
    """Draws one block's video and actions by Euler steps along the flow.

    Args:
      model: The model.
      observation: What is known.
      past: Cache of the orders before ``order``.
      key: Noise key.
      config: The run's configuration.
      layout: The layout.
      order: Which block is denoised.

    Returns:
      Latent frames ``[b frames h w c]`` and actions ``[b a u]``.
    """
    block = layout.denoise_pass(order)
    video_segment, action_segment = (_only(block, role) for role in (Role.NOISY_VIDEO, Role.ACTION))
    batch_size, channels = observation.last_frame.shape[0], observation.last_frame.shape[-1]
    video_key, action_key = jax.random.split(key)
    video = jax.random.normal(video_key, (batch_size, video_segment.num_tokens, channels))
    actions = jax.random.normal(action_key, (batch_size, action_segment.num_tokens, config.data.action_dim))
    velocities = _make_velocities(model, observation, past, config, layout, block)
    times = jnp.asarray(solver_times(config))

    def euler(step: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        now, after = times[step], times[step + 1]
        (video, actions), (video_velocity, action_velocity) = carry, velocities(carry, now)
        return video + (after - now) * video_velocity, actions + (after - now) * action_velocity

    video, actions = jax.lax.fori_loop(0, config.evaluate.solver_steps, euler, (video, actions))
    frames = video_segment.grid
    assert frames is not None
    return video.reshape(batch_size, *frames, channels), actions


def _make_velocities(
    model: WorldActionModel,
    observation: Observation,
    past: KeysValues,
    config: RunConfig,
    layout: Layout,
    block: Pass,
) -> Callable[[tuple[jax.Array, jax.Array], jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns a function from (video, actions) and a time to their velocities."""
    objective = config.objective
    residual = jnp.zeros(())
    if objective.video_residual == "last_clean":
        residual = repeat_frame(observation.last_frame, _only(block, Role.NOISY_VIDEO))

    def velocities(noised: tuple[jax.Array, jax.Array], time: jax.Array) -> tuple[jax.Array, jax.Array]:
        video, actions = noised
        times = jnp.full((video.shape[0], layout.num_slots), time).at[:, 0].set(0.0)
        streams = Streams(
            times=times,
            prompt_id=observation.prompt_id,
            noisy_video=video,
            actions=actions,
            state=observation.state,
        )
        predictions, _ = model(streams, block, past)
        return (
            velocity_from(
                predictions[Role.NOISY_VIDEO] + residual, objective.video_prediction, video, time, objective.min_time
            ),
            velocity_from(predictions[Role.ACTION], objective.action_prediction, actions, time, objective.min_time),
        )

    return velocities


def _only(layout_pass: Pass, role: Role) -> Segment:
    """Returns the one segment of ``role`` in a block's pass."""
    (segment,) = (s for s in layout_pass.segments if s.role is role)
    return segment
