"""Video and actions denoised together by a backbone with action modules, on cached latents (DreamZero)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange

from wamjax.batch import WamBatch
from wamjax.config.clip import patch_grid
from wamjax.config.finetune import lora_config
from wamjax.config.schema import RunConfig
from wamjax.config.systems import CategoryActionConfig, category_actions
from wamjax.errors import ConfigError
from wamjax.layout import Layout, Role, build_layout
from wamjax.models.action_transformers import CategoryActionTransformer
from wamjax.nn.lora import attach_lora
from wamjax.nn.modulation import TIMESTEP_IDS
from wamjax.objectives.noising import Noise, Target, action_mask, select_frames, total_loss
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class JointObjective:
    """Teacher forcing: every block of frames and its actions denoised at a time of their own, given clean frames.

    loss = weight(t) |prediction - (noise - x_0)|^2, means over the frames and over the actions of the batch.

    Source: DreamZero, arXiv 2602.15922, and its released code; what differs: clean frames see their own block whole, as
    the paper says, where the released kernel shows them token by token.
    """

    config: RunConfig
    layout: Layout = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        for name in ("video_prediction", "action_prediction"):
            if getattr(self.config.objective, name) != "velocity":
                raise ConfigError(
                    f"config.objective.{name}={getattr(self.config.objective, name)}; a backbone with action modules "
                    "predicts velocity"
                )
        if self.system.video.padding_mask:
            raise ConfigError("config.backbone takes a padding mask, which formulation joint does not have")
        object.__setattr__(self, "layout", build_layout(self.config))

    @property
    def system(self) -> CategoryActionConfig:
        """The model's configuration."""
        return category_actions(self.config)

    def make_model(self, key: PRNGKey) -> CategoryActionTransformer:
        """Makes the model, its low-rank updates included."""
        model, lora = CategoryActionTransformer(key, self.system), lora_config(self.config.finetune)
        if lora is not None:
            attach_lora(model, key, lora)
        return model

    def draw_noise(self, key: PRNGKey, batch_size: int) -> Noise:
        """Draws noise and one time per block; the first frame has its own."""
        sizes = self.config.layout
        return Noise.draw(
            key,
            batch_size,
            self.config,
            self.layout,
            video=(*patch_grid(self.config), self.system.video.out_patch_channels),
            actions=(sizes.num_blocks * sizes.actions_per_block, self.config.data.action_dim),
        )

    def losses(
        self, model: CategoryActionTransformer, batch: WamBatch, noise: Noise, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        """Returns ``video`` and ``action`` losses; of ``observed`` the clean frames, condition, state and prompt."""
        shown = batch if observed is None else observed
        layout_pass = self.layout.full_pass()
        video = Target.of_video(self._tokens(batch.latents), noise, layout_pass, self.config)
        actions = Target.of_actions(batch.actions, noise, layout_pass, self.config)
        noisy, clean = (self.layout.stream(role) for role in (Role.NOISY_VIDEO, Role.CLEAN_VIDEO))
        seen = select_frames(self._tokens(shown.latents), clean)
        condition = None if shown.condition is None else self._tokens(shown.condition)
        streams = {
            Role.CLEAN_VIDEO: self._join(seen, None if condition is None else select_frames(condition, clean)),
            Role.NOISY_VIDEO: self._join(video.noised, None if condition is None else select_frames(condition, noisy)),
            Role.ACTION: actions.noised,
            Role.STATE: shown.state * shown.state_mask,
        }
        ids = TIMESTEP_IDS * noise.times
        predicted, predicted_actions = model.predict(
            streams, ids, shown.embodiment_id, shown.text, layout_pass, image=shown.image
        )
        masks = self._masks(batch)
        return {
            "video": video.loss(predicted, "velocity", masks["video"]),
            "action": actions.loss(predicted_actions, "velocity", masks["action"]),
        }

    def counts(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns the number of values of all real frames and of all actions that carry a loss."""
        values = self.system.video.out_patch_channels
        masks = self._masks(batch)
        return {
            "video": values * jnp.sum(masks["video"], dtype=jnp.float32),
            "action": jnp.sum(masks["action"], dtype=jnp.float32),
        }

    def total(self, losses: dict[str, StreamLoss]) -> jax.Array:
        """Returns the weighted sum of the masked means."""
        return total_loss(losses, self.config)

    def _tokens(self, latents: jax.Array) -> jax.Array:
        """Returns fp32 ``[b t h w (ph pw c)]``, the values of every patch together, of ``[b t (h ph) (w pw) c]``."""
        _, ph, pw = self.system.video.patch
        pattern = "b t (h ph) (w pw) c -> b t h w (ph pw c)"
        return rearrange(latents.astype(jnp.float32), pattern, ph=ph, pw=pw)

    def _join(self, tokens: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Returns patches whose channels are those of ``tokens`` and then of ``condition``, both ``[b n (p c)]``."""
        if condition is None:
            return tokens
        _, ph, pw = self.system.video.patch
        parts = [rearrange(part, "b n (p c) -> b n p c", p=ph * pw) for part in (tokens, condition)]
        return rearrange(jnp.concatenate(parts, axis=-1), "b n p c -> b n (p c)")

    def _masks(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns what carries a loss: bool, video ``[b n_role 1]``, action ``[b a u]``."""
        grid = patch_grid(self.config)
        frames = jnp.broadcast_to(batch.frame_mask[:, :, None, None, None], (batch.size, *grid, 1))
        return {"video": select_frames(frames, self.layout.stream(Role.NOISY_VIDEO)), "action": action_mask(batch)}
