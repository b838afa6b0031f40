"""Fast-WAM: Wan 2.2's 5B transformer and an action expert that attends jointly with it.

Source: github.com/yuantianyuan01/FastWAM, src/fastwam/models/wan22/{fastwam,mot,action_dit,wan_video_dit}.py,
configs/model/fastwam.yaml and scripts/preprocess_action_dit_backbone.py. Its checkpoints are pickles of two state
dicts, ``mot`` and ``proprio_encoder``; converted to safetensors, the names of the first may keep that prefix. It has
no ``config.json``: ours holds ``video_dit_config``, ``action_dit_config`` and ``proprio_dim`` of its model file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from wamjax.config.backbone import BlockConfig
from wamjax.config.systems import ActionExpertConfig
from wamjax.errors import ConfigError
from wamjax.models.action_expert import ActionExpertTransformer
from wamjax.weights.kinds import wan_transformer
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.recipe import Made, Recipe, interpolated, torch_linear
from wamjax.weights.rules import TensorRule, linear_rules

# What the configurations mean where a key is absent: configs/model/fastwam.yaml.
VIDEO_DEFAULTS: Mapping[str, Any] = {
    "patch_size": (1, 2, 2),
    "in_dim": 48,
    "hidden_dim": 3072,
    "ffn_dim": 14336,
    "freq_dim": 256,
    "text_dim": 4096,
    "out_dim": 48,
    "num_heads": 24,
    "attn_head_dim": 128,
    "num_layers": 30,
    "eps": 1e-6,
}
ACTION_DEFAULTS: Mapping[str, Any] = {"hidden_dim": 1024, "ffn_dim": 4096}
_SHARED = ("num_heads", "attn_head_dim", "num_layers", "text_dim", "freq_dim", "eps")  # of both, and equal
_LEAVES = ("kernel", "bias")
# The layers of the expert outside its blocks that the video's stack has too, by the path both give them.
_COMMON = (
    "text_embedding.hidden",
    "text_embedding.out",
    "time_embedding.hidden",
    "time_embedding.out",
    "time_embedding.project",
)


def parse_config(values: Mapping[str, Any]) -> ActionExpertConfig:
    """Returns the configuration of a ``config.json``.

    Raises:
      ConfigError: The action expert's size of an action is missing, the two stacks do not fit each other, or a value
        is not supported.
    """
    video = {**VIDEO_DEFAULTS, **(values.get("video_dit_config") or {})}
    action = {**{key: video[key] for key in _SHARED}, **ACTION_DEFAULTS, **(values.get("action_dit_config") or {})}
    if "action_dim" not in action:
        raise ConfigError("config.json has no action_dit_config.action_dim; expected the dims of an action")
    for key in ("num_layers", "text_dim", "freq_dim"):
        if action[key] != video[key]:
            raise ConfigError(
                f"config.json has action_dit_config.{key}={action[key]} and video_dit_config.{key}={video[key]}; "
                "the two stacks must agree"
            )
    if video["hidden_dim"] != video["num_heads"] * video["attn_head_dim"]:
        raise ConfigError(
            f"config.json has video_dit_config.hidden_dim={video['hidden_dim']}; expected num_heads * attn_head_dim = "
            f"{video['num_heads'] * video['attn_head_dim']}"
        )
    return ActionExpertConfig(
        video=wan_transformer.parse_config({**video, "dim": video["hidden_dim"]}),
        expert=BlockConfig(
            width=action["hidden_dim"],
            num_heads=action["num_heads"],
            ffn_width=action["ffn_dim"],
            attention_width=action["num_heads"] * action["attn_head_dim"],
            qk_norm_eps=action["eps"],
            norm_eps=action["eps"],
        ),
        action_dim=action["action_dim"],
        state_dim=values.get("proprio_dim"),
    )


def rules(config: ActionExpertConfig, naming: str) -> tuple[TensorRule, ...]:
    """Returns how each parameter is stored; there is one naming."""
    return (
        *_in_mixture(wan_transformer.rules(config.video, naming), "video.", "video"),
        *_in_mixture(_expert_rules(config), "expert.", "action"),
        *(linear_rules("state_embed", "proprio_encoder") if config.state_dim is not None else ()),
    )


def _in_mixture(rules_of_stack: Iterable[TensorRule], path: str, name: str) -> Iterator[TensorRule]:
    """Yields the rules of one stack as part of the whole, whose state dict can be taken at three places."""
    for rule in rules_of_stack:
        mixture = f"mixtures.{name}.{rule.name}"
        aliases = (f"mot.{mixture}", f"{name}_expert.{rule.name}")
        yield dataclasses.replace(rule, path=path + rule.path, name=mixture, aliases=aliases)


def _expert_rules(config: ActionExpertConfig) -> tuple[TensorRule, ...]:
    """Returns the rules of the expert alone: what it has in common with the video's stack has the same names."""
    video = {rule.path: rule for rule in wan_transformer.rules(config.video, "original")}
    return (
        *(video[f"{layer}.{leaf}"] for layer in _COMMON for leaf in _LEAVES),
        *wan_transformer.block_rules(config.expert, is_original=True),
        *linear_rules("action_embed", "action_encoder"),
        *linear_rules("action_out", "head"),
    )


def reference_config(backbone: Mapping[str, Any], options: Mapping[str, int]) -> dict[str, Any]:
    """Returns the configuration of a Wan backbone with an action expert."""
    video = {**wan_transformer.DEFAULTS, **wan_transformer.diffusers_config(backbone)}
    if video["image_dim"] is not None:
        raise ConfigError("the backbone has an image branch; Fast-WAM's has none (expected Wan 2.2 TI2V-5B)")
    names = {"in_dim": "in_channels", "out_dim": "out_channels", "num_heads": "num_attention_heads"}
    names |= {"attn_head_dim": "attention_head_dim"}
    video_config = {key: video[names.get(key, key)] for key in VIDEO_DEFAULTS if key != "hidden_dim"}
    video_config["hidden_dim"] = video["num_attention_heads"] * video["attention_head_dim"]
    action = {key: options[key] for key in ("action_dim", "hidden_dim", "ffn_dim")}
    config: dict[str, Any] = {"_class_name": "FastWAM", "video_dit_config": video_config}
    config["action_dit_config"] = {**{key: video_config[key] for key in _SHARED}, **action}
    if options["proprio_dim"]:
        config["proprio_dim"] = options["proprio_dim"]
    return config


def made(config: ActionExpertConfig) -> dict[str, Made]:
    """Returns how the action expert is made: interpolated from the video's stack, its ends as PyTorch draws them."""
    paths = [f"{layer}.{leaf}" for layer in _COMMON for leaf in _LEAVES]
    paths += [rule.path for rule in wan_transformer.block_rules(config.expert, is_original=True)]
    drawn = {"expert.action_embed": config.action_dim, "expert.action_out": config.expert.width}
    if config.state_dim is not None:
        drawn["state_embed"] = config.state_dim
    return {
        **{f"expert.{path}": interpolated(path) for path in paths},
        **{f"{layer}.{leaf}": torch_linear(fan_in) for layer, fan_in in drawn.items() for leaf in _LEAVES},
    }


KIND = ModelKind(
    class_name="fast_wam",
    class_aliases=("FastWAM",),
    parse_config=parse_config,
    build=ActionExpertTransformer,
    rules=rules,
    namings=("original",),
    recipe=Recipe(
        base="WanTransformer3DModel",
        path="video.",
        own_tensor="*action_encoder.weight",
        options={"action_dim": None, "proprio_dim": 0, **ACTION_DEFAULTS},
        reference_config=reference_config,
        made=made,
    ),
)
