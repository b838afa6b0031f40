"""Configuration of video transformers with action modules: what a checkpoint of such a system holds.

One class per way in which actions enter (see ``models.action_transformers``); which system has which is in
``weights.kinds``. Layouts, objectives and samplers are configured apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from wamjax.config.backbone import BlockConfig, LayerAttention, VideoTransformerConfig
from wamjax.config.plan import check_plans
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CategoryActionConfig:
    """Actions and states as tokens of the video's blocks, with encoders and a decoder per embodiment (DreamZero).

    Attributes:
      video: The video transformer.
      action_dim: Dims u of an action, padding included.
      state_dim: Dims p of a state, padding included.
      hidden_width: Hidden width of the state encoder and the action decoder.
      num_categories: Embodiments with weights of their own.
      frames_per_block: Latent frames of one temporal block, after the first frame: what the weights were trained on.
      states_per_block: States of one temporal block.
    """

    video: VideoTransformerConfig
    action_dim: int = 32
    state_dim: int = 64
    hidden_width: int = 1024
    num_categories: int = 1
    frames_per_block: int = 1
    states_per_block: int = 1

    def __post_init__(self) -> None:
        _check_positive(self, "action_dim", "state_dim", "hidden_width", "num_categories")
        _check_positive(self, "frames_per_block", "states_per_block")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedActionConfig:
    """Actions as tokens of the video's blocks, with a time embedding of their own (LingBot-VA as released).

    Attributes:
      video: The video transformer.
      action_dim: Dims u of an action.
      prefix: Block of a language tower; None without.
    """

    video: VideoTransformerConfig
    action_dim: int = 30
    prefix: BlockConfig | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "action_dim")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionExpertConfig:
    """Actions in a stack of their own that attends jointly with the video's (mixture of transformers; Fast-WAM).

    Attributes:
      video: The video transformer.
      expert: Block of the action stack: its width is its own, its ``attention_width`` and heads are the video's.
      action_dim: Dims u of an action.
      state_dim: Dims p of the state that enters as one more text token; None without.
      prefix: Block of a language tower; None without.
    """

    video: VideoTransformerConfig
    expert: BlockConfig
    action_dim: int
    state_dim: int | None = None
    prefix: BlockConfig | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "action_dim", *(() if self.state_dim is None else ("state_dim",)))
        video, expert = self.video.block, self.expert
        if (expert.num_heads, expert.head_dim) != (video.num_heads, video.head_dim):
            raise ConfigError(
                f"the action expert has {expert.num_heads} heads of {expert.head_dim} and the video transformer "
                f"{video.num_heads} of {video.head_dim}; joint attention needs the same: change num_heads and "
                "attention_width of the expert"
            )


ActionSystem = CategoryActionConfig | SharedActionConfig | ActionExpertConfig


def find_system(config: RunConfig) -> ActionSystem:
    """Returns the video transformer with action modules that a run trains.

    Raises:
      ConfigError: The run has no such system, or its modules do not fit its layout.
    """
    backbone, modules, sizes = config.backbone, config.actions.modules, config.layout
    check_plans(config)
    if backbone is None or modules == "none":
        raise ConfigError(
            f"config.actions.modules={modules} with config.layout.formulation={sizes.formulation}: a backbone "
            "denoises video and actions together with modules=category, linear or expert; to train it on video alone "
            "set config.layout.formulation=video"
        )
    if backbone.patch[0] != 1:
        raise ConfigError(
            f"config.backbone.patch={backbone.patch} joins frames; config.layout.formulation={sizes.formulation} needs "
            "one latent frame per token"
        )
    _check_states(config)
    if modules == "category":
        return CategoryActionConfig(
            video=backbone,
            action_dim=config.data.action_dim,
            state_dim=config.data.state_dim,
            hidden_width=config.actions.hidden_width,
            num_categories=config.actions.num_categories,
            frames_per_block=sizes.frames_per_block,
            states_per_block=max(1, sizes.states_per_block),  # its encoder is there where nothing reads it, too
        )
    if backbone.block.modulation != "table":
        raise ConfigError(
            f"config.actions.modules={modules} embeds timesteps of actions as config.backbone.block.modulation=table "
            f"does, not {backbone.block.modulation}; use modules=category"
        )
    if modules == "linear":
        return SharedActionConfig(video=backbone, action_dim=config.data.action_dim, prefix=prefix_block(config))
    return ActionExpertConfig(
        video=backbone,
        expert=dataclasses.replace(
            backbone.block,
            width=config.actions.expert_width,
            ffn_width=config.actions.expert_ffn_width,
            attention_width=backbone.block.inner_width,
            attention=backbone.block.attention_beside,
            image_branch=False,
        ),
        action_dim=config.data.action_dim,
        state_dim=config.data.state_dim if sizes.states_per_block else None,
        prefix=prefix_block(config),
    )


def prefix_block(config: RunConfig) -> BlockConfig | None:
    """Returns the block of a run's language tower; None without one.

    Raises:
      ConfigError: The run has a tower and nothing that attends with it.
    """
    if not config.prefix.width:
        return None
    if config.backbone is None or config.layout.is_plain_clip or config.actions.modules in ("category", "plan"):
        raise ConfigError(
            f"config.prefix.width={config.prefix.width}: a language tower attends with a backbone whose "
            "config.actions.modules are linear or expert; set it to 0"
        )
    block = config.backbone.block
    return BlockConfig(
        width=config.prefix.width,
        num_heads=block.num_heads,
        num_key_heads=config.prefix.num_key_heads,
        ffn_width=config.prefix.ffn_width,
        attention_width=block.inner_width,
        attention=block.attention_beside,
        cross_attention=False,
        gated_mlp=True,
        modulation="none",
        qk_norm="head",
        qk_norm_eps=block.qk_norm_eps,
        norm_eps=block.norm_eps,
        use_bias=False,
        compute_dtype=block.compute_dtype,
        matmul=block.matmul,
    )


def keeps_cache(config: RunConfig) -> bool:
    """Whether a policy keeps keys and values of what is known: layers by a pattern, or recurrences, keep none."""
    return config.backbone is None or not config.backbone.block.attention


def check_has_actions(config: RunConfig) -> None:
    """Refuses a run that is one of two stages, where the other is not there.

    Raises:
      ConfigError: It generates video alone, or reads actions off video.
    """
    if config.inverse_dynamics is not None:
        raise ConfigError(
            f"config.inverse_dynamics of {config.name} reads actions off video that a run of formulation video "
            "generates: name that run's folder as --workdir and this one's as --inverse_dynamics"
        )
    if config.layout.formulation == "video":
        raise ConfigError(
            f"config.layout.formulation=video of {config.name} has no actions: an inverse-dynamics model reads them "
            "off its clips (the folder of its run as --inverse_dynamics)"
        )


def check_mixture_is_whole(context: int) -> None:
    """Raises ``ConfigError`` if ``context`` devices would split the sequence of a mixture of transformers."""
    if context > 1:
        raise ConfigError(
            f"config.parallel.context={context} splits the sequence, which a mixture of transformers "
            "(config.actions.modules=expert, or config.prefix) keeps whole; set it to 1 and use fsdp"
        )


def check_layers_are_whole(attention: Iterable[LayerAttention], context: int) -> None:
    """Raises ``ConfigError`` if ``context`` devices would split the sequence of layers that need it whole."""
    if context > 1 and any(each.kind != "full" for each in attention):
        raise ConfigError(
            f"config.parallel.context={context} splits the sequence, which the window and gated_delta layers of "
            "config.backbone.block.attention keep whole; set it to 1 and use fsdp"
        )


def _check_states(config: RunConfig) -> None:
    """Refuses states that no module of a system reads, and modules that have none to read."""
    sizes, modules = config.layout, config.actions.modules
    reads_text = config.backbone is not None and config.backbone.block.cross_attention
    wanted = {
        "category": None if sizes.formulation == "joint" else 0,
        "linear": 0,
        "expert": 1 if sizes.formulation == "first_frame" and reads_text else 0,
    }[modules]
    reason = {
        "category": f"formulation={sizes.formulation} has no place for states",
        "linear": "it has no module for states",
        "expert": "a state is a text token of the whole sample, for cross-attention and formulation=first_frame alone",
    }[modules]
    if modules == "category" and wanted is None and not sizes.states_per_block:
        raise ConfigError("config.layout.states_per_block=0 with config.actions.modules=category; it reads 1 or more")
    if wanted is not None and sizes.states_per_block not in (0, wanted):
        raise ConfigError(
            f"config.layout.states_per_block={sizes.states_per_block} with config.actions.modules={modules}: {reason}; "
            f"set it to {wanted}"
        )


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)} of {type(config).__name__}; expected 1 or more")
