"""Configuration of latent plans as a way for actions to enter, and which runs may have them.

The modules are ``models.latent_plan``; who reads what is ``layout.plan``.
"""

from __future__ import annotations

import dataclasses

from wamjax.config.backbone import BlockConfig, VideoTransformerConfig
from wamjax.config.schema import LayoutConfig, ObjectiveConfig, RunConfig
from wamjax.errors import ConfigError

# Why actions of a formulation cannot be decoded from a plan.
_REASONS = {
    "joint": "it denoises actions together with the video, and a plan is drawn before anything of the future is",
    "alternating": "it reads actions from video that is denoised before, and a plan does without",
    "first_frame": "it denoises actions beside the video, and a plan does without both",
    "video": "it has no actions",
    "latent_frames": "its actions are latent frames of the video",
    "policy": "its actions are denoised by config.vla",
    "queries": "its actions are answers of config.gpt",
}
_UNREAD = {
    "layout": ("window", "clean_context", "action_times"),
    "objective": (
        *("history_noise", "action_shift", "video_beta", "action_beta"),
        *("video_prediction", "video_residual", "action_prediction"),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentPlanConfig:
    """A video transformer that infers plans, and a decoder of actions.

    Attributes:
      video: The video transformer; nothing reads a head of it.
      decoder: Block of the decoder: its width is its own, its ``attention_width`` and heads are the video's.
      decoder_layers: Its blocks.
      plan_dim: Dims z of a plan.
      num_actions: Actions of a chunk.
      action_dim: Dims u of an action.
      state_dim: Dims p of the state, a token of the present; None without.
      hidden_width: Hidden width of the state's encoder.
    """

    video: VideoTransformerConfig
    decoder: BlockConfig
    decoder_layers: int
    plan_dim: int
    num_actions: int
    action_dim: int
    state_dim: int | None
    hidden_width: int


def find_plan(config: RunConfig) -> LatentPlanConfig:
    """Returns the model that a run of formulation ``plan`` trains.

    Raises:
      ConfigError: The run has none, or settings that plans do not read.
    """
    backbone, actions, sizes = config.backbone, config.actions, config.layout
    if backbone is None or actions.modules != "plan":
        raise ConfigError(
            f"config.layout.formulation=plan with config.actions.modules={actions.modules} and config.backbone "
            f"{'none' if backbone is None else 'set'}: a video transformer infers the plan that actions are decoded "
            "from; set config.backbone, and modules to plan"
        )
    if sizes.family != "representation":
        raise ConfigError(
            f"config.layout.family={sizes.family} with formulation=plan: actions of a plan are read from the present "
            "alone, and no video is denoised that they could be read from; set it to representation"
        )
    if backbone.patch[0] != 1 or backbone.padding_mask or not backbone.block.cross_attention:
        raise ConfigError(
            f"config.backbone has patch={backbone.patch}, padding_mask={backbone.padding_mask} and "
            f"cross_attention={backbone.block.cross_attention}; formulation=plan needs one latent frame per token, no "
            "mask, and a prompt that is read by cross-attention"
        )
    if config.prefix.width:
        raise ConfigError(
            f"config.prefix.width={config.prefix.width}: formulation=plan reads its prompt by cross-attention, beside "
            "which a language tower has nothing to do; set it to 0"
        )
    if sizes.states_per_block not in (0, 1):
        raise ConfigError(
            f"config.layout.states_per_block={sizes.states_per_block}; formulation=plan reads the state of the "
            "present: set it to 1, or 0 for none"
        )
    _check_unread(config)
    return LatentPlanConfig(
        video=backbone,
        decoder=_decoder_block(backbone.block, actions.expert_width, actions.expert_ffn_width),
        decoder_layers=actions.plan_layers,
        plan_dim=actions.plan_dim,
        num_actions=sizes.actions_per_block,
        action_dim=config.data.action_dim,
        state_dim=config.data.state_dim if sizes.states_per_block else None,
        hidden_width=actions.hidden_width,
    )


def check_plans(config: RunConfig) -> None:
    """Raises ``ConfigError`` where a run has modules of plans and a formulation that cannot have them."""
    formulation = config.layout.formulation
    if config.actions.modules == "plan" and formulation != "plan":
        raise ConfigError(
            f"config.actions.modules=plan with config.layout.formulation={formulation}: {_REASONS[formulation]}; set "
            "formulation to plan"
        )


def _decoder_block(video: BlockConfig, width: int, ffn_width: int) -> BlockConfig:
    """Returns a block without timesteps or text, with the heads of ``video``."""
    return BlockConfig(
        width=width,
        num_heads=video.num_heads,
        ffn_width=ffn_width,
        attention_width=video.inner_width,
        cross_attention=False,
        gated_mlp=True,
        modulation="none",
        qk_norm="head",
        qk_norm_eps=video.qk_norm_eps,
        norm_eps=video.norm_eps,
        use_bias=False,
        compute_dtype=video.compute_dtype,
        matmul=video.matmul,
    )


def _check_unread(config: RunConfig) -> None:
    """Refuses settings of noise and of several blocks: nothing is noised, and a sample is one window."""
    defaults = {"layout": LayoutConfig(), "objective": ObjectiveConfig()}
    for section, names in _UNREAD.items():
        for name in names:
            value, default = (getattr(part, name) for part in (getattr(config, section), defaults[section]))
            if value != default:
                raise ConfigError(
                    f"config.{section}.{name}={value}: formulation=plan noises nothing and has one window, so that "
                    f"nothing reads it; leave it at {default}"
                )
