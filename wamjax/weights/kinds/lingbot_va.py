"""LingBot-VA as released: Wan's transformer with action tokens, under diffusers' names.

Its class has diffusers' name (``WanTransformer3DModel``) too, so that only ``--kind`` tells it apart.

Source: github.com/Robbyant/lingbot-va, wan_va/modules/model.py. The paper's action stream of its own width is another
model (an ``ActionExpert``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wamjax.config.systems import SharedActionConfig
from wamjax.models.action_transformers import SharedActionTransformer
from wamjax.weights.kinds import wan_transformer
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.recipe import Made, Recipe, copied, torch_linear
from wamjax.weights.rules import TensorRule, linear_rules, nested

# What the configuration means where a key is absent: the defaults of the class, Wan 2.2's 5B model.
DEFAULTS: Mapping[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 48,
    "out_channels": 48,
    "action_dim": 30,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 14336,
    "num_layers": 30,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
# The layers of an embedder, ours -> the reference's; ``condition_embedder_action`` has them a second time.
_TIME = {
    "hidden": "time_embedder.linear_1",
    "out": "time_embedder.linear_2",
    "project": "time_proj",
}
_TEXT = {"hidden": "text_embedder.linear_1", "out": "text_embedder.linear_2"}


def parse_config(values: Mapping[str, Any]) -> SharedActionConfig:
    """Returns the configuration of a ``config.json``.

    Raises:
      ConfigError: A value is not supported.
    """
    given = {**DEFAULTS, **{key: value for key, value in values.items() if key in DEFAULTS}}
    return SharedActionConfig(video=wan_transformer.parse_config(given), action_dim=given["action_dim"])


def rules(config: SharedActionConfig, naming: str) -> tuple[TensorRule, ...]:
    """Returns how each parameter is stored; there is one naming."""
    pt, ph, pw = config.video.patch
    own = (
        TensorRule(  # a linear layer where Wan has a convolution
            path="video.patch_embed.kernel",
            name="patch_embedding_mlp.weight",
            pattern="d (c pt ph pw) -> (pt ph pw c) d",
            sizes={"pt": pt, "ph": ph, "pw": pw},
        ),
        TensorRule(path="video.patch_embed.bias", name="patch_embedding_mlp.bias"),
        *linear_rules("action_embed", "action_embedder"),
        *linear_rules("action_out", "action_proj_out"),
        *_embedder_rules("action_time", _TIME),
        *_embedder_rules("action_text", _TEXT),
    )
    known = {rule.path for rule in own}
    video = nested(wan_transformer.rules(config.video, naming), path="video.")
    return (*own, *(rule for rule in video if rule.path not in known))


def _embedder_rules(ours: str, layers: Mapping[str, str]) -> tuple[TensorRule, ...]:
    pairs = (linear_rules(f"{ours}.{layer}", f"condition_embedder_action.{name}") for layer, name in layers.items())
    return tuple(rule for pair in pairs for rule in pair)


def reference_config(backbone: Mapping[str, Any], options: Mapping[str, int]) -> dict[str, Any]:
    """Returns the class's configuration of a Wan backbone without image branch."""
    video = {**wan_transformer.DEFAULTS, **wan_transformer.diffusers_config(backbone)}
    return {
        "_class_name": "WanTransformer3DModel",
        **{key: video[key] for key in DEFAULTS if key in video},
        **options,
    }


def made(config: SharedActionConfig) -> dict[str, Made]:
    """Returns how the action modules are made.

    The class copies the whole condition embedder for actions and leaves the two linear layers as PyTorch draws them.
    How the released model was begun from its backbone is not published (unverified): here the copy is one of the
    backbone's pretrained embedder.
    """
    embedders = {
        f"{ours}.{layer}.{leaf}": copied(f"{theirs}.{layer}.{leaf}")
        for ours, theirs, layers in (
            ("action_time", "time_embedding", _TIME),
            ("action_text", "text_embedding", _TEXT),
        )
        for layer in layers
        for leaf in ("kernel", "bias")
    }
    enter, leave = torch_linear(config.action_dim), torch_linear(config.video.block.width)
    return {
        **embedders,
        **{f"action_embed.{leaf}": enter for leaf in ("kernel", "bias")},
        **{f"action_out.{leaf}": leave for leaf in ("kernel", "bias")},
    }


KIND = ModelKind(
    class_name="lingbot_va",
    parse_config=parse_config,
    build=SharedActionTransformer,
    rules=rules,
    namings=("diffusers",),
    ignored={
        "*.norm_added_q.weight": "written by early converters; nothing reads it",
        "patch_embedding.weight": "the backbone's convolution; nothing reads it beside patch_embedding_mlp",
        "patch_embedding.bias": "the backbone's convolution; nothing reads it beside patch_embedding_mlp",
    },
    recipe=Recipe(
        base="WanTransformer3DModel",
        path="video.",
        own_tensor="action_embedder.weight",
        options={"action_dim": 30},
        reference_config=reference_config,
        made=made,
    ),
)
