"""The world-action loss: one batch in, video and action flow-matching losses out.

Which tokens are noised, at which slot's time, and which carry a loss comes from the layout. Means are over the masks
of the whole global batch, so a loss does not depend on how the batch is split over devices.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.batch import WamBatch
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import RunConfig
from wamjax.layout import Layout, Pass, Role, Segment, build_layout
from wamjax.models.world_action import Streams, WorldActionModel, make_model
from wamjax.nn.modulation import spread_slots
from wamjax.objectives.flow_matching import add_noise, draw_times, velocity_from
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
    """

    times: jax.Array
    weights: jax.Array
    video: jax.Array
    actions: jax.Array


@dataclasses.dataclass(frozen=True)
class WorldActionObjective:
    """Video and actions denoised together by the small world-action model (``objectives.objective.Objective``)."""

    config: RunConfig
    layout: Layout = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", build_layout(self.config))

    def make_model(self, key: PRNGKey) -> WorldActionModel:
        """Makes the model, its low-rank updates included."""
        return make_model(key, self.config)

    def draw_noise(self, key: PRNGKey, batch_size: int) -> Noise:
        """As ``draw_noise``."""
        return draw_noise(key, batch_size, self.config, self.layout)

    def losses(
        self, model: WorldActionModel, batch: WamBatch, noise: Noise, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        """As ``world_action_losses``."""
        return world_action_losses(model, batch, noise, self.config, self.layout, observed)

    def counts(self, batch: WamBatch) -> dict[str, jax.Array]:
        """As ``loss_counts``."""
        return loss_counts(batch, self.config, self.layout)

    def total(self, losses: dict[str, StreamLoss]) -> jax.Array:
        """As ``total_loss``."""
        return total_loss(losses, self.config)


def draw_noise(key: PRNGKey, batch_size: int, config: RunConfig, layout: Layout) -> Noise:
    """Draws noise and one time per slot; slot 0 is clean."""
    time_key, video_key, action_key = jax.random.split(key, 3)
    g = derive_geometry(config)
    times, weights = draw_times(time_key, (batch_size, layout.num_slots), config.objective)
    video_shape = (batch_size, g.num_latent_frames, *g.grid, g.token_channels)
    return Noise(
        times=times.at[:, 0].set(0.0),
        weights=weights,
        video=jax.random.normal(video_key, video_shape),
        actions=jax.random.normal(action_key, (batch_size, g.num_actions, config.data.action_dim)),
    )


def world_action_losses(
    model: WorldActionModel,
    batch: WamBatch,
    noise: Noise,
    config: RunConfig,
    layout: Layout,
    observed: WamBatch | None = None,
) -> dict[str, StreamLoss]:
    """Returns the flow-matching losses of one batch at given noise.

    loss = weight(t) |velocity(prediction) - (noise - x_0)|^2, over the tokens that carry a loss.

    Args:
      model: The model.
      batch: The windows.
      noise: Times and noise, as ``draw_noise`` gives them.
      config: The run's configuration.
      layout: The layout that ``config`` describes.
      observed: Whose clean frames and state the model is shown; ``batch`` itself by default. Another batch here tells
        how much the model relies on what it sees: what it is asked to predict stays ``batch``.

    Returns:
      ``video`` and ``action`` losses.
    """
    everything = layout.full_pass()
    observed = batch if observed is None else observed
    latents = model.codec.encode(batch.video)
    seen = latents if observed is batch else model.codec.encode(observed.video)
    video = _Target.of_video(latents, noise, everything, config)
    actions = _Target.of_actions(batch.actions, noise, everything, config)
    streams = Streams(
        times=noise.times,
        prompt_id=batch.prompt_id,
        clean_video=select_frames(seen, layout.stream(Role.CLEAN_VIDEO)),
        noisy_video=video.noised,
        actions=actions.noised,
        state=observed.state * observed.state_mask,
    )
    predictions, _ = model(streams, everything)
    masks = _loss_masks(batch, config, layout)
    residual = video_residual(seen, layout.stream(Role.NOISY_VIDEO), config)
    return {
        "video": video.loss(
            predictions[Role.NOISY_VIDEO] + residual, config.objective.video_prediction, masks["video"]
        ),
        "action": actions.loss(predictions[Role.ACTION], config.objective.action_prediction, masks["action"]),
    }


def loss_counts(batch: WamBatch, config: RunConfig, layout: Layout) -> dict[str, jax.Array]:
    """Returns what each stream's loss of a batch is a mean over, fp32."""
    masks = _loss_masks(batch, config, layout)
    return {name: jnp.sum(mask, dtype=jnp.float32) for name, mask in masks.items()}


def total_loss(losses: dict[str, StreamLoss], config: RunConfig) -> jax.Array:
    """Returns the weighted sum of the masked means."""
    factors = config.objective
    return factors.video_weight * losses["video"].mean() + factors.action_weight * losses["action"].mean()


def select_frames(latents: jax.Array, segments: tuple[Segment, ...]) -> jax.Array:
    """Returns the tokens ``[b n_role c]`` of the latent frames that ``segments`` hold, from ``[b t h w c]``."""
    pieces = [latents[:, s.first_frame : s.first_frame + _num_frames(s)] for s in segments]
    frames = jnp.concatenate(pieces, axis=1)
    return frames.reshape(frames.shape[0], -1, frames.shape[-1])


def video_residual(latents: jax.Array, segments: tuple[Segment, ...], config: RunConfig) -> jax.Array:
    """Returns what is added to the patch head's output: ``[b n_role c]``.

    With ``video_residual = last_clean``: the last frame before each block, repeated (zeros for the first frame, which
    has none before it); with ``none``: zero.
    """
    if config.objective.video_residual == "none":
        return jnp.zeros((), latents.dtype)
    pieces = []
    for segment in segments:
        before = latents[:, segment.first_frame - 1] if segment.first_frame else jnp.zeros_like(latents[:, 0])
        pieces.append(repeat_frame(before, segment))
    return jnp.concatenate(pieces, axis=1)


def repeat_frame(frame: jax.Array, segment: Segment) -> jax.Array:
    """Returns the tokens ``[b n c]`` of ``frame`` ``[b h w c]`` repeated over the frames of ``segment``."""
    tokens = frame.reshape(frame.shape[0], -1, frame.shape[-1])
    return jnp.tile(tokens, (1, _num_frames(segment), 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Target:
    """A noised stream with what its prediction is compared with."""

    x0: jax.Array  # [b n_role c]
    noised: jax.Array  # [b n_role c]
    times: jax.Array  # [b n_role 1]
    weights: jax.Array  # [b n_role 1]
    min_time: float

    @classmethod
    def of_video(cls, latents: jax.Array, noise: Noise, layout_pass: Pass, config: RunConfig) -> _Target:
        segments = tuple(s for s in layout_pass.segments if s.role is Role.NOISY_VIDEO)
        return cls._make(
            select_frames(latents, segments), select_frames(noise.video, segments), noise, segments, config
        )

    @classmethod
    def of_actions(cls, actions: jax.Array, noise: Noise, layout_pass: Pass, config: RunConfig) -> _Target:
        segments = tuple(s for s in layout_pass.segments if s.role is Role.ACTION)
        return cls._make(actions, noise.actions, noise, segments, config)

    @classmethod
    def _make(
        cls, x0: jax.Array, sample: jax.Array, noise: Noise, segments: tuple[Segment, ...], config: RunConfig
    ) -> _Target:
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


def _num_frames(segment: Segment) -> int:
    assert segment.grid is not None
    return segment.grid[0]


def _loss_masks(batch: WamBatch, config: RunConfig, layout: Layout) -> dict[str, jax.Array]:
    """Returns what carries a loss: bool, video ``[b n_role c]``, action ``[b a u]``."""
    action_mask = (batch.action_mask & batch.has_action[:, None])[..., None] & batch.action_dim_mask[:, None]
    return {"video": _video_mask(batch, layout, config), "action": action_mask}


def _video_mask(batch: WamBatch, layout: Layout, config: RunConfig) -> jax.Array:
    """Returns ``[b n_role c]``: whether a value belongs to a real frame and to a view that is present."""
    view_pixels = jnp.asarray(_view_pixels(config))  # [v h w c]
    present = jnp.any(batch.view_mask[:, :, None, None, None] & view_pixels, axis=1)
    mask = batch.frame_mask[:, :, None, None, None] & present[:, None]
    return select_frames(mask, layout.stream(Role.NOISY_VIDEO))


def _view_pixels(config: RunConfig) -> np.ndarray:
    """Returns bool ``[v h w c]``: whether a token's value lies inside a view's rectangle."""
    height, width = config.data.canvas
    masks = []
    for _, top, left, rows, columns in config.data.views or (("", 0, 0, height, width),):
        canvas = np.zeros((height, width, 3), dtype=bool)
        canvas[top : top + rows, left : left + columns] = True
        masks.append(canvas)
    _, ph, pw = config.model.patch
    cut = np.stack(masks).reshape(len(masks), height // ph, ph, width // pw, pw, 3)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(len(masks), height // ph, width // pw, -1)
