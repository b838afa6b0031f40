"""Checkpoints of the CLIP image encoder: transformers', of every version, and the original Wan's.

Source of the original's names: Wan 2.1, wan/modules/clip.py, ``XLMRobertaCLIP``.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import jax
from einops import rearrange

from wamjax.config.encoders import ClipVisionConfig
from wamjax.errors import ConfigError
from wamjax.models.clip_vision import ACTIVATIONS, ClipVisionEncoder
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.rules import TensorRule

# Published checkpoints have this prefix, and so has CLIPVisionModelWithProjection; CLIPVisionModel of transformers 5
# does not write it any more.
OLD_PREFIX = "vision_model."
_LAYER = {"diffusers": "encoder.layers.{layer}.", "original": "visual.transformer.{layer}."}

# config.json of the one checkpoint under original names, which is published without: the arguments of
# clip_xlm_roberta_vit_h_14 in wan/modules/clip.py, as transformers calls them.
ORIGINAL_CONFIG: Mapping[str, Any] = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 1024,
}

# Ours -> name and pattern in transformers, and in the original where it differs; a linear layer's weight is stored as
# [out in], the patches' as a convolution's.
_Stored = tuple[str, str]
_NAMES: Mapping[str, tuple[_Stored, _Stored]] = {
    "class_token": (("embeddings.class_embedding", ""), ("visual.cls_embedding", "1 1 d -> d")),
    "patch_embed": (
        ("embeddings.patch_embedding.weight", "d c p q -> p q c d"),
        ("visual.patch_embedding.weight", "d c p q -> p q c d"),
    ),
    "positions": (("embeddings.position_embedding.weight", ""), ("visual.pos_embedding", "1 n d -> n d")),
    "input_norm.scale": (("pre_layrnorm.weight", ""), ("visual.pre_norm.weight", "")),
    "input_norm.bias": (("pre_layrnorm.bias", ""), ("visual.pre_norm.bias", "")),
    "output_norm.scale": (("post_layernorm.weight", ""), ("visual.post_norm.weight", "")),
    "output_norm.bias": (("post_layernorm.bias", ""), ("visual.post_norm.bias", "")),
}
# Ours -> transformers, original, pattern in both.
_LAYER_NAMES = {
    "attention_norm.scale": ("layer_norm1.weight", "norm1.weight", ""),
    "attention_norm.bias": ("layer_norm1.bias", "norm1.bias", ""),
    "attention.query": ("self_attn.q_proj.weight", "attn.to_qkv.weight", "(k e) d -> d k e"),
    "attention.query_bias": ("self_attn.q_proj.bias", "attn.to_qkv.bias", "(k e) -> k e"),
    "attention.key": ("self_attn.k_proj.weight", "attn.to_qkv.weight", "(k e) d -> d k e"),
    "attention.key_bias": ("self_attn.k_proj.bias", "attn.to_qkv.bias", "(k e) -> k e"),
    "attention.value": ("self_attn.v_proj.weight", "attn.to_qkv.weight", "(k e) d -> d k e"),
    "attention.value_bias": ("self_attn.v_proj.bias", "attn.to_qkv.bias", "(k e) -> k e"),
    "attention.out": ("self_attn.out_proj.weight", "attn.proj.weight", "d (k e) -> k e d"),
    "attention.out_bias": ("self_attn.out_proj.bias", "attn.proj.bias", ""),
    "mlp_norm.scale": ("layer_norm2.weight", "norm2.weight", ""),
    "mlp_norm.bias": ("layer_norm2.bias", "norm2.bias", ""),
    "up.kernel": ("mlp.fc1.weight", "mlp.0.weight", "f d -> d f"),
    "up.bias": ("mlp.fc1.bias", "mlp.0.bias", ""),
    "down.kernel": ("mlp.fc2.weight", "mlp.2.weight", "d f -> f d"),
    "down.bias": ("mlp.fc2.bias", "mlp.2.bias", ""),
}
# The original holds the three projections in one tensor, row after row: query, key, value.
_FUSED = {"query": (0, 3), "key": (1, 3), "value": (2, 3)}


def parse_config(config: Mapping[str, Any]) -> ClipVisionConfig:
    """Returns the configuration of a ``config.json``; what it leaves out has the value of ``CLIPVisionConfig``.

    Raises:
      ConfigError: The activation is unknown, images or patches are not square, or heads do not divide the width.
    """
    config = config.get("vision_config", config)  # nested in the config of a whole CLIP
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"config.json: hidden_act={activation!r}; expected one of {sorted(ACTIVATIONS)}")
    width, num_heads = config.get("hidden_size", 768), config.get("num_attention_heads", 12)
    if width % num_heads:
        raise ConfigError(f"config.json: hidden_size={width} is not a multiple of num_attention_heads={num_heads}")
    return ClipVisionConfig(
        width=width,
        num_layers=config.get("num_hidden_layers", 12),
        num_heads=num_heads,
        ffn_width=config.get("intermediate_size", 3072),
        image_size=_side(config, "image_size", 224),
        patch_size=_side(config, "patch_size", 32),
        num_channels=config.get("num_channels", 3),
        activation=activation,
        norm_eps=config.get("layer_norm_eps", 1e-5),
    )


def default_config(names: Container[str]) -> dict[str, Any]:
    """Returns the configuration of the published checkpoint where a checkpoint's names are original."""
    return dict(ORIGINAL_CONFIG) if "visual.patch_embedding.weight" in names else {}


def tensor_rules(config: ClipVisionConfig, naming: str) -> tuple[TensorRule, ...]:
    """Returns one rule per parameter under ``naming``."""
    column = KIND.namings.index(naming)
    is_original = naming == "original"
    heads = {"k": config.num_heads, "e": config.width // config.num_heads}
    stored = {path: columns[column] for path, columns in _NAMES.items()}
    stored |= {f"blocks.{path}": (_LAYER[naming] + row[column], row[-1]) for path, row in _LAYER_NAMES.items()}
    return tuple(
        TensorRule(
            path=path,
            name=name,
            pattern=pattern,
            sizes=heads if "k e" in pattern else {},
            aliases=() if is_original else (OLD_PREFIX + name,),
            part=_part(path) if is_original else (0, 1),
        )
        for path, (name, pattern) in stored.items()
    )


def _part(path: str) -> tuple[int, int]:
    """Returns which part of its tensor a parameter is under original names."""
    _, _, leaf = path.rpartition(".")
    return _FUSED.get(leaf.removesuffix("_bias"), (0, 1))


def reference_outputs(model: ClipVisionEncoder, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Runs ``pixel_values`` ``[b c H W]``; ``out`` is the last hidden state, Wan reads ``hidden_states_-2``."""
    output = model(rearrange(inputs["pixel_values"], "b c H W -> b H W c"))
    return {
        "out": output.last,
        "last_hidden_state": output.last,
        "pooler_output": output.pooled,
        "penultimate": output.penultimate,
        "hidden_states_-2": output.penultimate,
    }


KIND = ModelKind(
    class_name="CLIPVisionModel",
    class_aliases=("CLIPVisionModelWithProjection", "CLIPModel"),
    parse_config=parse_config,
    build=ClipVisionEncoder,
    rules=tensor_rules,
    namings=("diffusers", "original"),
    outputs=reference_outputs,
    ignored={
        "*embeddings.position_ids": "the numbers 0, 1, 2, ...; not a weight",
        "visual_projection.*": "maps the pooled token to the space shared with text, which no video model reads",
        "text_model.*": "the text half of CLIP",
        "text_projection.*": "the text half of CLIP",
        "logit_scale": "the temperature of CLIP's contrastive loss",
        "visual.head": "the original's visual_projection: for the space shared with text",
        "textual.*": "the text half of the original's CLIP",
        "log_scale": "the original's logit_scale",
    },
    default_config=default_config,
)


def _side(config: Mapping[str, Any], key: str, default: int) -> int:
    """Returns a size that must be one number, or a list of equal numbers."""
    value = config.get(key, default)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise ConfigError(f"config.json: {key}={value}; only square images and patches are supported")
    return sides.pop()
