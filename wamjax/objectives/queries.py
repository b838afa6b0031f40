"""Frames and actions that learned queries of a GPT ask for: regression, and a gripper's two classes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange

from wamjax.batch import WamBatch
from wamjax.config.finetune import lora_config
from wamjax.config.gpt import GptPolicyConfig
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Layout, build_layout
from wamjax.models.gpt_policy import GptPolicy
from wamjax.nn.lora import attach_lora
from wamjax.objectives.noising import action_mask
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.types import PRNGKey

# Of ImageNet, with which MAE's pictures are normed. Source: bytedance/GR-1, evaluation/calvin_evaluation.py.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class QueriesObjective:
    """Mean squared error of a later frame's normed patches, smooth L1 of an arm's action, entropy of a gripper's.

    Nothing is noised. A sample without actions has the first loss alone, which is how GR-1 is pretrained on video.

    Source: GR-1 (arXiv 2312.13139), section 3.3, and bytedance/GR-1, models/gr1.py, for the patches. Unverified: the
    weights of the three (``config.objective``), for the training code is not public.
    """

    config: RunConfig
    layout: Layout = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        for name, other in (("backbone", self.config.backbone), ("vla", self.config.vla)):
            if other is not None:
                raise ConfigError(f"config.gpt and config.{name} are two models of one run: set one of them")
        if self.config.actions.modules != "none" or self.config.prefix.width:
            raise ConfigError(
                f"config.actions.modules={self.config.actions.modules}, config.prefix.width="
                f"{self.config.prefix.width} belong to a backbone; set them to none and 0"
            )
        if min(self.config.data.action_dim, self.config.data.state_dim) < 2:
            raise ConfigError(
                f"config.data.action_dim={self.config.data.action_dim}, state_dim={self.config.data.state_dim}; "
                "config.gpt reads an arm and a gripper: set both to 2 or more"
            )
        if self.config.parallel.context != 1:
            raise ConfigError(
                f"config.parallel.context={self.config.parallel.context} would split sequences of config.gpt, which "
                "are short; set it to 1 and use fsdp"
            )
        object.__setattr__(self, "layout", build_layout(self.config))

    @property
    def gpt(self) -> GptPolicyConfig:
        """The model's configuration."""
        assert self.config.gpt is not None, "this objective is for GPT policies"
        return self.config.gpt

    def make_model(self, key: PRNGKey) -> GptPolicy:
        """Makes the model, its low-rank updates included."""
        data = self.config.data
        model = GptPolicy(key, self.gpt, self.config.layout.num_blocks, data.action_dim, data.state_dim)
        lora = lora_config(self.config.finetune)
        if lora is not None:
            attach_lora(model, key, lora)
        return model

    def draw_noise(self, key: PRNGKey, batch_size: int) -> jax.Array:
        """Returns nothing, one row per sample: this loss is not random."""
        return jnp.zeros((batch_size, 0))

    def losses(
        self, model: GptPolicy, batch: WamBatch, noise: jax.Array, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        """Returns ``video``, ``action`` and ``gripper`` losses; of ``observed`` the features and the state."""
        shown = batch if observed is None else observed
        actions, frames = model.predict(
            shown.image, shown.text, shown.state * shown.state_mask, self.layout.full_pass()
        )
        masks = self._masks(batch)
        error = actions[..., :-1] - batch.actions[..., :-1]
        size = jnp.abs(error)
        values = {
            "video": jnp.square(frames - self.targets(batch.video)),
            "action": jnp.where(size < 1.0, 0.5 * jnp.square(error), size - 0.5),  # PyTorch's smooth L1
            "gripper": _two_classes(actions[..., -1:], batch.actions[..., -1:] > 0),
        }
        return {name: _masked(values[name], masks[name]) for name in values}

    def counts(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns the number of values of all frames, actions and grippers that carry a loss."""
        masks, gpt = self._masks(batch), self.gpt
        per_frame = gpt.num_views * gpt.num_patches * gpt.patch_values
        each = {"video": per_frame, "action": 1, "gripper": 1}
        return {name: each[name] * jnp.sum(mask, dtype=jnp.float32) for name, mask in masks.items()}

    def total(self, losses: dict[str, StreamLoss]) -> jax.Array:
        """Returns the weighted sum of the masked means."""
        factors = self.config.objective
        return (
            factors.video_weight * losses["video"].mean()
            + factors.action_weight * losses["action"].mean()
            + factors.gripper_weight * losses["gripper"].mean()
        )

    def targets(self, video: jax.Array) -> jax.Array:
        """Returns fp32 ``[b s' v n (p q c)]``, patches of the frames asked for, of mean 0 and deviation 1 each.

        ``video`` is uint8 ``[b s (v H) W 3]``, cameras one below the other.
        """
        later = video[:, self.gpt.ahead :].astype(jnp.float32) / 255.0
        later = (later - jnp.asarray(_MEAN)) / jnp.asarray(_STD)
        pattern = "b s (v h p) (w q) c -> b s v (h w) (p q c)"
        patch = self.gpt.patch_size
        patches = rearrange(later, pattern, v=self.gpt.num_views, p=patch, q=patch)
        deviation = jnp.std(patches, axis=-1, keepdims=True, ddof=1)
        return (patches - jnp.mean(patches, axis=-1, keepdims=True)) / (deviation + _NORM_EPS)

    def _masks(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns what carries a loss: bool, video ``[b s' 1 1 1]``, action ``[b s u-1]``, gripper ``[b s 1]``."""
        actions = action_mask(batch)
        frames = batch.frame_mask[:, self.gpt.ahead :, None, None, None]
        return {"video": frames, "action": actions[..., :-1], "gripper": actions[..., -1:]}


def _masked(values: jax.Array, mask: jax.Array) -> StreamLoss:
    wide = jnp.broadcast_to(mask, values.shape)
    axes = tuple(range(1, values.ndim))
    return StreamLoss(
        total=jnp.sum(jnp.where(wide, values, 0.0), axis=axes), count=jnp.sum(wide, axis=axes, dtype=jnp.float32)
    )


def _two_classes(logits: jax.Array, is_one: jax.Array) -> jax.Array:
    """Returns the entropy of ``is_one`` under the probability sigmoid(logits)."""
    return jax.nn.softplus(logits) - logits * is_one
