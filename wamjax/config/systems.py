"""Configuration of video transformers with action modules: what a checkpoint of such a system holds.

One class per way in which actions enter (see ``models.action_transformers``); which system has which is in
``weights.kinds``. Layouts, objectives and samplers are configured apart.
"""

from __future__ import annotations

import dataclasses

from wamjax.config.backbone import BlockConfig, VideoTransformerConfig
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
    """

    video: VideoTransformerConfig
    action_dim: int = 30

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
    """

    video: VideoTransformerConfig
    expert: BlockConfig
    action_dim: int
    state_dim: int | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "action_dim", *(() if self.state_dim is None else ("state_dim",)))
        video, expert = self.video.block, self.expert
        if (expert.num_heads, expert.head_dim) != (video.num_heads, video.head_dim):
            raise ConfigError(
                f"the action expert has {expert.num_heads} heads of {expert.head_dim} and the video transformer "
                f"{video.num_heads} of {video.head_dim}; joint attention needs the same: change num_heads and "
                "attention_width of the expert"
            )


def category_actions(config: RunConfig) -> CategoryActionConfig:
    """Returns the video transformer with action modules that a run trains.

    Raises:
      ConfigError: The run has no such system.
    """
    if config.backbone is None or config.actions.modules != "category":
        raise ConfigError(
            f"config.actions.modules={config.actions.modules} with config.layout.formulation=joint: a backbone "
            "denoises video and actions together with modules=category; to train it on video alone set "
            "config.layout.formulation=video"
        )
    if config.backbone.patch[0] != 1:
        raise ConfigError(
            f"config.backbone.patch={config.backbone.patch} joins frames; config.layout.formulation=joint needs one "
            "latent frame per token"
        )
    return CategoryActionConfig(
        video=config.backbone,
        action_dim=config.data.action_dim,
        state_dim=config.data.state_dim,
        hidden_width=config.actions.hidden_width,
        num_categories=config.actions.num_categories,
        frames_per_block=config.layout.frames_per_block,
        states_per_block=config.layout.states_per_block,
    )


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)} of {type(config).__name__}; expected 1 or more")
