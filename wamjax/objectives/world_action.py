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
from wamjax.layout import Layout, Role, Segment, build_layout
from wamjax.models.world_action import Streams, WorldActionModel, make_model
from wamjax.objectives.noising import Noise, Target, action_mask, num_frames, select_frames, total_loss
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.types import PRNGKey


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
    g = derive_geometry(config)
    video = (g.num_latent_frames, *g.grid, g.token_channels)
    return Noise.draw(key, batch_size, config, layout, video=video, actions=(g.num_actions, config.data.action_dim))


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
    video = Target.of_video(latents, noise, everything, config)
    actions = Target.of_actions(batch.actions, noise, everything, config)
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
    return jnp.tile(tokens, (1, num_frames(segment), 1))


def _loss_masks(batch: WamBatch, config: RunConfig, layout: Layout) -> dict[str, jax.Array]:
    """Returns what carries a loss: bool, video ``[b n_role c]``, action ``[b a u]``."""
    return {"video": _video_mask(batch, layout, config), "action": action_mask(batch)}


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
