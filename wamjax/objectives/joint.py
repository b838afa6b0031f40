"""Video and actions denoised by a backbone with action modules, on cached latents, whatever the layout."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from wamjax.batch import WamBatch
from wamjax.config.clip import patch_grid
from wamjax.config.finetune import lora_config
from wamjax.config.schema import RunConfig
from wamjax.config.systems import ActionSystem, find_system
from wamjax.errors import ConfigError
from wamjax.layout import VIDEO_ROLES, Layout, Role, build_layout
from wamjax.models.systems import ActionTransformer, make_system
from wamjax.nn.lora import attach_lora
from wamjax.nn.modulation import TIMESTEP_IDS
from wamjax.objectives.latent_tokens import join_condition, patch_tokens
from wamjax.objectives.noising import Noise, Target, action_mask, noise_history, select_frames, total_loss
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class JointObjective:
    """Flow matching of the noised frames and actions of a layout, given what of it is clean.

    loss = weight(t) |prediction - (noise - x_0)|^2, means over the frames and over the actions of the batch. Which
    tokens share a time, and what is clean, is the layout's to say (``layout.formulations``).

    Source: DreamZero (arXiv 2602.15922), LingBot-VA (arXiv 2601.21998), Fast-WAM (arXiv 2603.16666) and their released
    code. What differs: LingBot-VA takes the mean of each frame first, and then over frames.
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
            raise ConfigError(
                "config.backbone takes a padding mask, which a backbone with action modules does not have"
            )
        self._check_unused()
        object.__setattr__(self, "layout", build_layout(self.config))

    def _check_unused(self) -> None:
        """Refuses settings that the formulation does not read."""
        objective, sizes = self.config.objective, self.config.layout
        has_history = sizes.formulation == "alternating" or (
            sizes.formulation == "first_frame" and sizes.family == "inverse_dynamics"
        )
        if objective.history_noise and not has_history:
            raise ConfigError(
                f"config.objective.history_noise={objective.history_noise}; only formulation alternating, and "
                "first_frame of family inverse_dynamics, have clean video that may be noised: set it to 0"
            )
        if objective.action_shift and sizes.formulation == "joint" and sizes.action_times == "shared":
            raise ConfigError(
                f"config.objective.action_shift={objective.action_shift}; actions have the timestep of their block's "
                "video: set config.layout.action_times=own, or action_shift=0"
            )
        for name, home, given in (
            ("window", "alternating", sizes.window != 0),
            ("clean_context", "joint", sizes.clean_context != "block_causal"),
            ("action_times", "joint", sizes.action_times != "shared"),
            ("family", "first_frame", sizes.family != "joint"),
        ):
            if given and sizes.formulation != home:
                raise ConfigError(
                    f"config.layout.{name}={getattr(sizes, name)} belongs to formulation {home}; this one is "
                    f"{sizes.formulation}"
                )

    @property
    def system(self) -> ActionSystem:
        """The model's configuration."""
        return find_system(self.config)

    def make_model(self, key: PRNGKey) -> ActionTransformer:
        """Makes the model, its low-rank updates included."""
        model, lora = make_system(key, self.system), lora_config(self.config.finetune)
        if lora is not None:
            attach_lora(model, key, lora)
        return model

    def draw_noise(self, key: PRNGKey, batch_size: int) -> Noise:
        """Draws noise, and one time for each that the layout tells apart."""
        return Noise.draw(
            key,
            batch_size,
            self.config,
            self.layout,
            video=(*patch_grid(self.config), self.system.video.out_patch_channels),
            actions=(self.layout.tokens_by_stream()[Role.ACTION], self.config.data.action_dim),
        )

    def losses(
        self, model: ActionTransformer, batch: WamBatch, noise: Noise, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        """Returns ``video`` and ``action`` losses; of ``observed`` the clean frames, condition, state and prompt."""
        shown = batch if observed is None else observed
        layout_pass = self.layout.full_pass()
        video = Target.of_video(self._tokens(batch.latents), noise, layout_pass, self.config)
        actions = Target.of_actions(batch.actions, noise, layout_pass, self.config)
        streams = {Role.ACTION: actions.noised}
        if Role.CLEAN_ACTION in self.layout.roles:
            streams[Role.CLEAN_ACTION] = shown.actions
        if self.config.layout.states_per_block:
            streams[Role.STATE] = shown.state * shown.state_mask
        for role in VIDEO_ROLES:
            segments = self.layout.stream(role)
            if segments:
                frames = video.noised
                if role is not Role.NOISY_VIDEO:
                    seen = select_frames(self._tokens(shown.latents), segments)
                    frames = noise_history(seen, noise, segments)
                streams[role] = join_condition(frames, shown.condition, segments, self.system.video.patch)
        text_mask = jnp.any(shown.text != 0, axis=-1) if self.config.clip.masks_text else None
        predicted, _ = model.predict(
            streams,
            TIMESTEP_IDS * noise.times,
            shown.embodiment_id,
            shown.text,
            layout_pass,
            image=shown.image,
            text_mask=text_mask,
        )
        masks = self._masks(batch)
        return {
            "video": video.loss(predicted[Role.NOISY_VIDEO], "velocity", masks["video"]),
            "action": actions.loss(predicted[Role.ACTION], "velocity", masks["action"]),
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
        return patch_tokens(latents, self.system.video.patch)

    def _masks(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns what carries a loss: bool, video ``[b n_role 1]``, action ``[b a u]``."""
        grid = patch_grid(self.config)
        frames = jnp.broadcast_to(batch.frame_mask[:, :, None, None, None], (batch.size, *grid, 1))
        return {"video": select_frames(frames, self.layout.stream(Role.NOISY_VIDEO)), "action": action_mask(batch)}
