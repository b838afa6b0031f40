"""Noised streams of a layout and what their predictions are compared with, whatever the model.

Which tokens are noised, and at which slot's time, comes from the layout; frames are ``[b t h w c]`` with the values of
one video token last.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig
from wamjax.layout import Layout, Pass, Role, Segment
from wamjax.nn.modulation import spread_slots
from wamjax.objectives.flow_matching import add_noise, draw_times, time_grid, velocity_from
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.types import PRNGKey


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """The randomness of one loss: equal noise makes two losses comparable.

    Attributes:
      times: fp32 ``[b slots]``, slot 0 is 0.
      weights: fp32 ``[b slots]``, the loss weight of each slot's time.
      video: ``[b t h w c]`` standard normal.
      actions: ``[b a u]`` standard normal.
      history: ``[b t h w c]`` standard normal, for clean frames that noise may be added to; None where there are none.
    """

    times: jax.Array
    weights: jax.Array
    video: jax.Array
    actions: jax.Array
    history: jax.Array | None = None

    @classmethod
    def draw(
        cls,
        key: PRNGKey,
        batch_size: int,
        config: RunConfig,
        layout: Layout,
        *,
        video: tuple[int, ...],
        actions: tuple[int, int],
    ) -> Noise:
        """Draws noise and one time per slot; slot 0 is clean. ``video`` is (t, h, w, c), ``actions`` (a, u)."""
        time_key, video_key, action_key = jax.random.split(key, 3)
        times, weights = draw_slot_times(time_key, batch_size, config, layout)
        history = None
        if history_slots(layout):
            history = jax.random.normal(jax.random.fold_in(video_key, 1), (batch_size, *video))
        return cls(
            times=times,
            weights=weights,
            video=jax.random.normal(video_key, (batch_size, *video)),
            actions=jax.random.normal(action_key, (batch_size, *actions)),
            history=history,
        )


def draw_slot_times(key: PRNGKey, batch_size: int, config: RunConfig, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Draws a time for every slot of ``layout``; returns (times, weights), fp32 ``[b slots]``.

    Slots that only actions carry are drawn with the actions' shift. Those of clean frames are 0, or, for a share
    ``history_noise`` of the samples, uniform over the ids of the video's grid up to ``history_max_time``.
    """
    objective = config.objective
    times, weights = draw_times(key, (batch_size, layout.num_slots), objective)
    own = sorted(set(layout.slots_of((Role.ACTION,))) - set(layout.slots_of((Role.NOISY_VIDEO,))))
    if own:
        shifted = dataclasses.replace(objective, shift=objective.action_shift or objective.shift, video_beta=())
        drawn = draw_times(jax.random.fold_in(key, 1), (batch_size, len(own)), shifted)
        times, weights = (whole.at[:, own].set(part) for whole, part in zip((times, weights), drawn, strict=True))
    history = history_slots(layout)
    if history:
        id_key, choice_key = jax.random.split(jax.random.fold_in(key, 2))
        grid = time_grid(objective)
        count = max(1, int((grid <= objective.history_max_time).sum()))
        ids = jax.random.randint(id_key, (batch_size, len(history)), 0, count)
        is_noised = jax.random.bernoulli(choice_key, objective.history_noise, (batch_size, 1))
        times = times.at[:, history].set(jnp.where(is_noised, jnp.asarray(grid)[ids], 0.0))
    return times.at[:, 0].set(0.0), weights


def history_slots(layout: Layout) -> list[int]:
    """Returns the slots of clean frames that noise may be added to."""
    return [slot for slot in layout.slots_of((Role.CLEAN_VIDEO, Role.CONDITION_VIDEO)) if slot]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A noised stream with what its prediction is compared with."""

    x0: jax.Array  # [b n_role c]
    noised: jax.Array  # [b n_role c]
    times: jax.Array  # [b n_role 1]
    weights: jax.Array  # [b n_role 1]
    min_time: float

    @classmethod
    def of_video(cls, latents: jax.Array, noise: Noise, layout_pass: Pass, config: RunConfig) -> Target:
        """Noises the frames of ``latents`` ``[b t h w c]`` that the pass denoises."""
        segments = tuple(s for s in layout_pass.segments if s.role is Role.NOISY_VIDEO)
        return cls._make(
            select_frames(latents, segments), select_frames(noise.video, segments), noise, segments, config
        )

    @classmethod
    def of_actions(cls, actions: jax.Array, noise: Noise, layout_pass: Pass, config: RunConfig) -> Target:
        """Noises ``actions`` ``[b a u]``."""
        segments = tuple(s for s in layout_pass.segments if s.role is Role.ACTION)
        return cls._make(actions, noise.actions, noise, segments, config)

    @classmethod
    def _make(
        cls, x0: jax.Array, sample: jax.Array, noise: Noise, segments: tuple[Segment, ...], config: RunConfig
    ) -> Target:
        runs = tuple((s.timestep_slot, s.num_tokens) for s in segments)
        times = spread_slots(noise.times, runs)[..., None]
        weights = spread_slots(noise.weights, runs)[..., None]
        noised = add_noise(x0, sample, times)
        return cls(x0=x0, noised=noised, times=times, weights=weights, min_time=config.objective.min_time)

    def loss(self, prediction: jax.Array, kind: str, mask: jax.Array) -> StreamLoss:
        """Weighted squared velocity error; for x0 both velocities divide by the same clamped time."""
        if kind == "velocity":
            target = (self.noised - self.x0) / self.times  # noise - x0, without keeping the noise alive
            error = prediction - target
        else:
            error = velocity_from(prediction, "x0", self.noised, self.times, self.min_time) - velocity_from(
                self.x0, "x0", self.noised, self.times, self.min_time
            )
        weighted = self.weights * jnp.square(error) * mask
        axes = tuple(range(1, weighted.ndim))
        count = jnp.sum(jnp.broadcast_to(mask, weighted.shape), axis=axes, dtype=jnp.float32)
        return StreamLoss(total=jnp.sum(weighted, axis=axes), count=count)


def noise_history(frames: jax.Array, noise: Noise, segments: tuple[Segment, ...]) -> jax.Array:
    """Returns clean tokens ``[b n_role c]`` of ``segments`` with the noise that their slots' times say."""
    if noise.history is None or not any(s.noised for s in segments):
        return frames
    times = spread_slots(noise.times, tuple((s.timestep_slot, s.num_tokens) for s in segments))[..., None]
    return add_noise(frames, select_frames(noise.history, segments), times)


def action_mask(batch: WamBatch) -> jax.Array:
    """Returns which actions carry a loss: bool ``[b a u]``."""
    return (batch.action_mask & batch.has_action[:, None])[..., None] & batch.action_dim_mask[:, None]


def total_loss(losses: dict[str, StreamLoss], config: RunConfig) -> jax.Array:
    """Returns the weighted sum of the masked means."""
    factors = config.objective
    return factors.video_weight * losses["video"].mean() + factors.action_weight * losses["action"].mean()


def select_frames(latents: jax.Array, segments: tuple[Segment, ...]) -> jax.Array:
    """Returns the tokens ``[b n_role c]`` of the latent frames that ``segments`` hold, from ``[b t h w c]``."""
    pieces = [latents[:, s.first_frame : s.first_frame + num_frames(s)] for s in segments]
    frames = jnp.concatenate(pieces, axis=1)
    return frames.reshape(frames.shape[0], -1, frames.shape[-1])


def num_frames(segment: Segment) -> int:
    """Returns the latent frames of a video segment."""
    assert segment.grid is not None
    return segment.grid[0]
