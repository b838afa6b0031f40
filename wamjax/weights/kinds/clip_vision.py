"""Checkpoints of the CLIP image encoder: transformers', of every version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from einops import rearrange

from wamjax.errors import ConfigError
from wamjax.models.clip_vision import ACTIVATIONS, ClipVisionConfig, ClipVisionEncoder
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.rules import TensorRule

# Published checkpoints have this prefix, and so has CLIPVisionModelWithProjection; CLIPVisionModel of transformers 5
# does not write it any more.
OLD_PREFIX = "vision_model."

# Ours -> (transformers, pattern); a linear layer's weight is stored as [out in], the patches' as a convolution's.
_NAMES = {
    "class_token": ("embeddings.class_embedding", ""),
    "patch_embed": ("embeddings.patch_embedding.weight", "d c p q -> p q c d"),
    "positions": ("embeddings.position_embedding.weight", ""),
    "input_norm.scale": ("pre_layrnorm.weight", ""),
    "input_norm.bias": ("pre_layrnorm.bias", ""),
    "output_norm.scale": ("post_layernorm.weight", ""),
    "output_norm.bias": ("post_layernorm.bias", ""),
}
_LAYER_NAMES = {
    "attention_norm.scale": ("layer_norm1.weight", ""),
    "attention_norm.bias": ("layer_norm1.bias", ""),
    "attention.query": ("self_attn.q_proj.weight", "(k e) d -> d k e"),
    "attention.query_bias": ("self_attn.q_proj.bias", "(k e) -> k e"),
    "attention.key": ("self_attn.k_proj.weight", "(k e) d -> d k e"),
    "attention.key_bias": ("self_attn.k_proj.bias", "(k e) -> k e"),
    "attention.value": ("self_attn.v_proj.weight", "(k e) d -> d k e"),
    "attention.value_bias": ("self_attn.v_proj.bias", "(k e) -> k e"),
    "attention.out": ("self_attn.out_proj.weight", "d (k e) -> k e d"),
    "attention.out_bias": ("self_attn.out_proj.bias", ""),
    "mlp_norm.scale": ("layer_norm2.weight", ""),
    "mlp_norm.bias": ("layer_norm2.bias", ""),
    "up.kernel": ("mlp.fc1.weight", "f d -> d f"),
    "up.bias": ("mlp.fc1.bias", ""),
    "down.kernel": ("mlp.fc2.weight", "d f -> f d"),
    "down.bias": ("mlp.fc2.bias", ""),
}


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


def tensor_rules(config: ClipVisionConfig, naming: str) -> tuple[TensorRule, ...]:
    """Returns one rule per parameter; there is one naming."""
    assert naming in KIND.namings, naming
    heads = {"k": config.num_heads, "e": config.width // config.num_heads}
    layers = {f"blocks.{path}": ("encoder.layers.{layer}." + n, p) for path, (n, p) in _LAYER_NAMES.items()}
    return tuple(
        TensorRule(
            path=path,
            name=name,
            pattern=pattern,
            sizes=heads if "k e" in pattern else {},
            aliases=(OLD_PREFIX + name,),
        )
        for path, (name, pattern) in (_NAMES | layers).items()
    )


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
    namings=("diffusers",),
    outputs=reference_outputs,
    ignored={
        "*embeddings.position_ids": "the numbers 0, 1, 2, ...; not a weight",
        "visual_projection.*": "maps the pooled token to the space shared with text, which no video model reads",
        "text_model.*": "the text half of CLIP",
        "text_projection.*": "the text half of CLIP",
        "logit_scale": "the temperature of CLIP's contrastive loss",
    },
)


def _side(config: Mapping[str, Any], key: str, default: int) -> int:
    """Returns a size that must be one number, or a list of equal numbers."""
    value = config.get(key, default)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise ConfigError(f"config.json: {key}={value}; only square images and patches are supported")
    return sides.pop()
