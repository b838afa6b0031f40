"""Checkpoints of the UMT5 encoder: transformers' (in diffusers folders) and the original Wan's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from wamjax.config.encoders import Umt5Config
from wamjax.errors import ConfigError
from wamjax.models.umt5 import Umt5Encoder, pad_prompts
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.rules import TensorRule

GATED_GELU = "gated-gelu"  # the only feed-forward layer of published UMT5 checkpoints

# Ours -> (transformers, original Wan); both store a linear layer's weight as [out in].
_LAYER_NAMES = {
    "attention_norm": ("layer.0.layer_norm.weight", "norm1.weight"),
    "attention.query": ("layer.0.SelfAttention.q.weight", "attn.q.weight"),
    "attention.key": ("layer.0.SelfAttention.k.weight", "attn.k.weight"),
    "attention.value": ("layer.0.SelfAttention.v.weight", "attn.v.weight"),
    "attention.out": ("layer.0.SelfAttention.o.weight", "attn.o.weight"),
    "attention.relative_bias": (
        "layer.0.SelfAttention.relative_attention_bias.weight",
        "pos_embedding.embedding.weight",
    ),
    "mlp_norm": ("layer.1.layer_norm.weight", "norm2.weight"),
    "gate": ("layer.1.DenseReluDense.wi_0.weight", "ffn.gate.0.weight"),
    "up": ("layer.1.DenseReluDense.wi_1.weight", "ffn.fc1.weight"),
    "down": ("layer.1.DenseReluDense.wo.weight", "ffn.fc2.weight"),
}
_PATTERNS = {
    "attention.query": "(k e) d -> d k e",
    "attention.key": "(k e) d -> d k e",
    "attention.value": "(k e) d -> d k e",
    "attention.out": "d (k e) -> k e d",
    "gate": "f d -> d f",
    "up": "f d -> d f",
    "down": "d f -> f d",
}


def parse_config(config: Mapping[str, Any]) -> Umt5Config:
    """Returns the configuration of a ``config.json``; what it leaves out has the value of ``UMT5Config``.

    Raises:
      ConfigError: The feed-forward layer is not the gated GELU, or the model is a decoder.
    """
    feed_forward = config.get("feed_forward_proj", GATED_GELU)
    if feed_forward != GATED_GELU:
        raise ConfigError(f"config.json: feed_forward_proj={feed_forward!r}; only {GATED_GELU!r} is supported")
    if config.get("is_decoder", False):
        raise ConfigError("config.json: is_decoder=true; only the encoder of UMT5 is supported")
    return Umt5Config(
        vocab_size=config.get("vocab_size", 250_112),
        width=config.get("d_model", 512),
        num_layers=config.get("num_layers", 8),
        num_heads=config.get("num_heads", 6),
        head_dim=config.get("d_kv", 64),
        ffn_width=config.get("d_ff", 1024),
        num_buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
        norm_eps=config.get("layer_norm_epsilon", 1e-6),
    )


def tensor_rules(config: Umt5Config, naming: str) -> tuple[TensorRule, ...]:
    """Returns one rule per parameter."""
    column = KIND.namings.index(naming)
    block = ("encoder.block.{layer}.", "blocks.{layer}.")[column]
    table = (("shared.weight", "encoder.embed_tokens.weight"), ("token_embedding.weight",))[column]
    final_norm = ("encoder.final_layer_norm.weight", "norm.weight")[column]
    heads = {"k": config.num_heads, "e": config.head_dim}
    return (
        TensorRule(path="embedding", name=table[0], aliases=table[1:]),  # transformers ties the two
        TensorRule(path="norm", name=final_norm),
        *(
            TensorRule(
                path=f"blocks.{path}",
                name=block + names[column],
                pattern=_PATTERNS.get(path, ""),
                sizes=heads if "k e" in _PATTERNS.get(path, "") else {},
            )
            for path, names in _LAYER_NAMES.items()
        ),
    )


def reference_outputs(model: Umt5Encoder, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Runs ``input_ids`` and ``attention_mask``; ``out`` is what a Wan transformer is given as text."""
    hidden = model(inputs["input_ids"], inputs.get("attention_mask"))
    return {"last_hidden_state": hidden, "out": pad_prompts(hidden, inputs.get("attention_mask"))}


KIND = ModelKind(
    class_name="UMT5EncoderModel",
    parse_config=parse_config,
    build=Umt5Encoder,
    rules=tensor_rules,
    namings=("diffusers", "original"),
    outputs=reference_outputs,
)
