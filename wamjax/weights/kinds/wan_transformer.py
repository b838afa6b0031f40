"""WanTransformer3DModel: its configuration, its tensor names (diffusers and original Wan) and its inputs.

Source: diffusers, ``transformer_wan.py`` and ``scripts/convert_wan_to_diffusers.py``; Wan 2.1, wan/modules/model.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from wamjax.config.backbone import BlockConfig, VideoTransformerConfig
from wamjax.errors import ConfigError, DataError
from wamjax.models.video_transformer import VideoTransformer
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.rules import TensorRule, also_named, linear_rules

# What diffusers' configuration means where a key is absent: the defaults of WanTransformer3DModel.
DEFAULTS: Mapping[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
CLIP_WIDTH, CLIP_TOKENS = 1280, 257  # of one image, from CLIP ViT-H/14
# Original Wan's model_type -> images whose tokens cross-attention reads beside the text.
_IMAGES_OF_TYPE = {"t2v": 0, "ti2v": 0, "i2v": 1, "flf2v": 2}
TEXT_TOKENS = 512  # where the reference splits image tokens from text tokens

# The pairs (ours, diffusers, original) of what is a Linear with weight and bias outside the blocks.
_LINEARS = (
    ("time_embedding.hidden", "condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("time_embedding.out", "condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("time_embedding.project", "condition_embedder.time_proj", "time_projection.1"),
    ("text_embedding.hidden", "condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("text_embedding.out", "condition_embedder.text_embedder.linear_2", "text_embedding.2"),
)
_IMAGE = {
    "norm_in": ("norm1", "0"),
    "hidden": ("ff.net.0.proj", "1"),
    "out": ("ff.net.2", "3"),
    "norm_out": ("norm2", "4"),
}
# Projections of an attention layer: ours, diffusers, original.
_PROJECTIONS = (("query", "to_q", "q"), ("key", "to_k", "k"), ("value", "to_v", "v"))
_IMAGE_PROJECTIONS = (("image_key", "add_k_proj", "k_img"), ("image_value", "add_v_proj", "v_img"))


def diffusers_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a ``config.json`` of original Wan (``WanModel``) with the keys that diffusers has for the same.

    A key of diffusers that is there too wins, and a configuration that is diffusers' already comes back as it is.

    Raises:
      ConfigError: Heads do not divide the width, or ``model_type`` is not known.
    """
    if "dim" not in values:
        return dict(values)
    width, num_heads = values["dim"], values.get("num_heads", 16)
    if width % num_heads:
        raise ConfigError(f"config.json has dim={width} and num_heads={num_heads}, which does not divide it")
    model_type = values.get("model_type", "t2v")
    if model_type not in _IMAGES_OF_TYPE:
        raise ConfigError(f"config.json has model_type={model_type!r}; only {', '.join(_IMAGES_OF_TYPE)} are supported")
    num_images = _IMAGES_OF_TYPE[model_type]
    renamed = {
        "num_attention_heads": num_heads,
        "attention_head_dim": width // num_heads,
        "in_channels": values.get("in_dim", DEFAULTS["in_channels"]),
        "out_channels": values.get("out_dim", DEFAULTS["out_channels"]),
        "image_dim": CLIP_WIDTH if num_images else None,
        "added_kv_proj_dim": width if num_images else None,
        "pos_embed_seq_len": num_images * CLIP_TOKENS if num_images > 1 else None,
    }
    same = {key: value for key, value in values.items() if key in DEFAULTS}
    if same.get("qk_norm") is True:
        same["qk_norm"] = DEFAULTS["qk_norm"]
    return {**renamed, **same}


def parse_config(values: Mapping[str, Any]) -> VideoTransformerConfig:
    """Returns the configuration of a ``config.json`` of diffusers or of original Wan.

    Raises:
      ConfigError: A value is one that no Wan model has and ours does not support.
    """
    values = diffusers_config(values)
    given = {**DEFAULTS, **{key: value for key, value in values.items() if key in DEFAULTS}}
    width = given["num_attention_heads"] * given["attention_head_dim"]
    if given["qk_norm"] != DEFAULTS["qk_norm"]:
        raise ConfigError(f"config.json has qk_norm={given['qk_norm']!r}; only {DEFAULTS['qk_norm']!r} is supported")
    if given["added_kv_proj_dim"] not in (None, width):
        raise ConfigError(f"config.json has added_kv_proj_dim={given['added_kv_proj_dim']}; expected null or {width}")
    if (given["image_dim"] is None) != (given["added_kv_proj_dim"] is None):
        raise ConfigError(
            f"config.json has image_dim={given['image_dim']} and added_kv_proj_dim={given['added_kv_proj_dim']}; "
            "expected both or neither"
        )
    return VideoTransformerConfig(
        block=BlockConfig(
            width=width,
            num_heads=given["num_attention_heads"],
            ffn_width=given["ffn_dim"],
            image_branch=given["image_dim"] is not None,
            qk_norm_eps=given["eps"],
            norm_eps=given["eps"],
            cross_norm="affine" if given["cross_attn_norm"] else "none",
        ),
        num_layers=given["num_layers"],
        in_channels=given["in_channels"],
        out_channels=given["out_channels"] or given["in_channels"],
        patch=tuple(given["patch_size"]),
        time_width=given["freq_dim"],
        text_width=given["text_dim"],
        image_width=given["image_dim"],
        image_positions=given["pos_embed_seq_len"] if given["image_dim"] is not None else None,
    )


def rules(config: VideoTransformerConfig, naming: str) -> tuple[TensorRule, ...]:
    """Returns how each parameter is stored in a checkpoint of ``naming``."""
    pt, ph, pw = config.patch
    patch = {"pt": pt, "ph": ph, "pw": pw}
    is_original = naming == "original"
    head = "head.head" if is_original else "proj_out"
    found = [
        TensorRule(
            path="patch_embed.kernel",
            name="patch_embedding.weight",
            pattern="d c pt ph pw -> (pt ph pw c) d",
            sizes=patch,
        ),
        TensorRule(path="patch_embed.bias", name="patch_embedding.bias"),
        TensorRule(path="head_out.kernel", name=f"{head}.weight", pattern="o d -> d o"),
        TensorRule(path="head_out.bias", name=f"{head}.bias"),
        TensorRule(
            path="head_modulation",
            name="head.modulation" if is_original else "scale_shift_table",
            pattern="1 s d -> s d",
        ),
    ]
    for ours, diffusers, original in _LINEARS:
        found += linear_rules(ours, original if is_original else diffusers)
    if config.image_width is not None:
        found += _image_rules(config, is_original)
    found += block_rules(config.block, is_original=is_original)
    return also_named(found, "model.diffusion_model.") if is_original else tuple(found)


def _image_rules(config: VideoTransformerConfig, is_original: bool) -> list[TensorRule]:
    found: list[TensorRule] = []
    for ours, (diffusers, original) in _IMAGE.items():
        name = f"img_emb.proj.{original}" if is_original else f"condition_embedder.image_embedder.{diffusers}"
        make = _norm if ours.startswith("norm") else linear_rules
        found += make(f"image_embedding.{ours}", name)
    if config.image_positions is not None:
        name = "img_emb.emb_pos" if is_original else "condition_embedder.image_embedder.pos_embed"
        found.append(TensorRule(path="image_embedding.positions", name=name, pattern="1 m c -> m c"))
    return found


def block_rules(config: BlockConfig, *, is_original: bool) -> list[TensorRule]:
    """Returns the rules of a stack of Wan's blocks: ``blocks.`` in ours, ``blocks.{layer}.`` in the checkpoint."""
    block = "blocks.{layer}."
    names = ("self_attn", "cross_attn") if is_original else ("attn1", "attn2")
    found = [
        TensorRule(
            path="blocks.modulation",
            name=block + ("modulation" if is_original else "scale_shift_table"),
            pattern="1 s d -> s d",
        ),
        *linear_rules("blocks.mlp.up", block + ("ffn.0" if is_original else "ffn.net.0.proj")),
        *linear_rules("blocks.mlp.down", block + ("ffn.2" if is_original else "ffn.net.2")),
    ]
    if config.cross_norm == "affine":
        norm = block + ("norm3" if is_original else "norm2")
        found.append(TensorRule(path="blocks.cross_norm_scale", name=f"{norm}.weight"))
        found.append(TensorRule(path="blocks.cross_norm_bias", name=f"{norm}.bias"))
    for ours, name in zip(("self_attention", "cross_attention"), names, strict=True):
        found += _attention_rules(config, f"blocks.{ours}", block + name, is_original)
    return found


def _attention_rules(config: BlockConfig, ours: str, name: str, is_original: bool) -> list[TensorRule]:
    """Returns the rules of one attention layer.

    Wan rotates neighbouring pairs of head dims and we rotate halves, so the queries and keys that are rotated have
    their dims reordered within each head: even ones first. Nothing else notices.
    """
    is_rotated = ours.endswith("self_attention")
    k, heads = {"k": config.num_heads}, "(k e)"
    rotated, rotated_heads = {**k, "two": 2}, "(k e two)"
    found: list[TensorRule] = []
    pairs = (*_PROJECTIONS, *(_IMAGE_PROJECTIONS if config.image_branch and not is_rotated else ()))
    for role, diffusers, original in pairs:
        tensor = f"{name}.{original if is_original else diffusers}"
        if is_rotated and role != "value":
            weight, bias, sizes = f"{rotated_heads} d -> d k (two e)", f"{rotated_heads} -> k (two e)", rotated
        else:
            weight, bias, sizes = f"{heads} d -> d k e", f"{heads} -> k e", k
        found.append(TensorRule(path=f"{ours}.{role}.kernel", name=f"{tensor}.weight", pattern=weight, sizes=sizes))
        found.append(TensorRule(path=f"{ours}.{role}.bias", name=f"{tensor}.bias", pattern=bias, sizes=sizes))
    pattern, sizes = (f"{rotated_heads} -> k (two e)", rotated) if is_rotated else (f"{heads} -> k e", k)
    norms = [("query_scale", "norm_q"), ("key_scale", "norm_k")]
    if config.image_branch and not is_rotated:
        norms.append(("image_key_scale", "norm_k_img" if is_original else "norm_added_k"))
    for role, norm in norms:
        found.append(TensorRule(path=f"{ours}.{role}", name=f"{name}.{norm}.weight", pattern=pattern, sizes=sizes))
    out = f"{name}.o" if is_original else f"{name}.to_out.0"
    found.append(TensorRule(path=f"{ours}.out_kernel", name=f"{out}.weight", pattern="d (k e) -> k e d", sizes=k))
    found.append(TensorRule(path=f"{ours}.out_bias", name=f"{out}.bias"))
    return found


def _norm(ours: str, name: str) -> list[TensorRule]:
    return [
        TensorRule(path=f"{ours}.scale", name=f"{name}.weight"),
        TensorRule(path=f"{ours}.bias", name=f"{name}.bias"),
    ]


def outputs(module: VideoTransformer, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Runs the model as the reference's ``forward`` is called.

    Args:
      module: The model.
      inputs: ``hidden_states`` [b c t h w], ``timestep`` [b] or [b n], ``encoder_hidden_states`` [b l c], optionally
        ``encoder_hidden_states_image`` (``pos_embed_seq_len`` given: one image of a pair per row, [2b m c]) and
        ``target``.

    Returns:
      ``out`` [b c t h w], and ``loss`` if there is a target.

    Raises:
      DataError: Image tokens come with a text that is not 512 tokens long.
    """
    text, image = inputs["encoder_hidden_states"], inputs.get("encoder_hidden_states_image")
    if image is not None:
        # The reference splits image and text where 512 tokens are left, whatever their numbers are.
        if text.shape[1] != TEXT_TOKENS:
            raise DataError(
                f"encoder_hidden_states has {text.shape[1]} tokens; with an image the reference takes {TEXT_TOKENS}"
            )
        image = image.reshape(text.shape[0], -1, image.shape[-1])
    latents = rearrange(inputs["hidden_states"], "b c t h w -> b t h w c")
    out = rearrange(module(latents, inputs["timestep"], text, image=image), "b t h w c -> b c t h w")
    found = {"out": out}
    if "target" in inputs:
        found["loss"] = jnp.mean(jnp.square(out - inputs["target"]))
    return found


KIND = ModelKind(
    class_name="WanTransformer3DModel",
    parse_config=parse_config,
    build=VideoTransformer,
    rules=rules,
    namings=("diffusers", "original"),
    outputs=outputs,
    class_aliases=("WanModel",),
    ignored={"*.norm_added_q.weight": "written by early converters; nothing reads it"},
)
