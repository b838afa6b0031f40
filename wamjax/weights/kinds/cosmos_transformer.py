"""CosmosTransformer3DModel: its configuration, its tensor names (diffusers and original Cosmos) and its inputs.

Source: diffusers, ``transformer_cosmos.py`` and ``scripts/convert_cosmos_to_diffusers.py`` (the names of Cosmos-Predict
2); Cosmos-Predict2, ``cosmos_predict2/models/text2image_dit.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from wamjax.config.backbone import BlockConfig, RotaryConfig, VideoTransformerConfig
from wamjax.errors import ConfigError, DataError
from wamjax.models.video_transformer import VideoTransformer
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.rules import TensorRule

# What diffusers' configuration means where a key is absent: the defaults of CosmosTransformer3DModel.
DEFAULTS: Mapping[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "max_size": (128, 240, 240),
    "patch_size": (1, 2, 2),
    "rope_scale": (2.0, 1.0, 1.0),
    "concat_padding_mask": True,
    "extra_pos_embed_type": "learnable",
    "use_crossattn_projection": False,
    "crossattn_proj_in_channels": 1024,
    "encoder_hidden_states_channels": 1024,
    "controlnet_block_every_n": None,
    "img_context_dim_in": None,
}
# Cosmos-Transfer's parts, which are another model.
_UNSUPPORTED = ("controlnet_block_every_n", "img_context_dim_in")
QK_NORM_EPS = 1e-5  # diffusers' default of an attention layer; Cosmos's configuration does not have it

# Tensors outside the blocks: ours, diffusers, original. Weights only: Cosmos has no biases.
_LINEARS = (
    ("time_embedding.hidden", "time_embed.t_embedder.linear_1", "t_embedder.1.linear_1"),
    ("time_embedding.project", "time_embed.t_embedder.linear_2", "t_embedder.1.linear_2"),
    ("head_modulation.down", "norm_out.linear_1", "final_layer.adaln_modulation.1"),
    ("head_modulation.up", "norm_out.linear_2", "final_layer.adaln_modulation.2"),
)
# The three parts of a block: ours, diffusers' norm, the original's suffix.
_PARTS = (
    ("self_modulation", "norm1", "self_attn"),
    ("cross_modulation", "norm2", "cross_attn"),
    ("mlp_modulation", "norm3", "mlp"),
)
_ATTENTIONS = (("self_attention", "attn1", "self_attn"), ("cross_attention", "attn2", "cross_attn"))
_PROJECTIONS = (("query", "q"), ("key", "k"), ("value", "v"))


def parse_config(values: Mapping[str, Any]) -> VideoTransformerConfig:
    """Returns the configuration of a diffusers ``config.json``.

    Raises:
      ConfigError: A value is of another model than Cosmos-Predict.
    """
    given = {**DEFAULTS, **{key: value for key, value in values.items() if key in DEFAULTS}}
    for key in _UNSUPPORTED:
        if given[key]:
            raise ConfigError(f"config.json has {key}={given[key]}; Cosmos-Transfer is not supported (expected null)")
    if given["extra_pos_embed_type"] not in (None, "learnable"):
        raise ConfigError(
            f"config.json has extra_pos_embed_type={given['extra_pos_embed_type']!r}; expected 'learnable' or null"
        )
    width = given["num_attention_heads"] * given["attention_head_dim"]
    projects = given["use_crossattn_projection"]
    context = given["encoder_hidden_states_channels"] if projects else given["text_embed_dim"]
    if context != given["text_embed_dim"]:
        raise ConfigError(
            f"config.json has encoder_hidden_states_channels={context}; its blocks read text_embed_dim="
            f"{given['text_embed_dim']}"
        )
    patch = tuple(given["patch_size"])
    learned = given["extra_pos_embed_type"] == "learnable"
    return VideoTransformerConfig(
        block=BlockConfig(
            width=width,
            num_heads=given["num_attention_heads"],
            ffn_width=int(width * given["mlp_ratio"]),
            context_width=context,
            qk_norm="head",
            qk_norm_eps=QK_NORM_EPS,
            use_bias=False,
            modulation="low_rank",
            modulation_rank=given["adaln_lora_dim"],
            gelu="exact",
        ),
        num_layers=given["num_layers"],
        in_channels=given["in_channels"],
        out_channels=given["out_channels"],
        patch=patch,
        use_patch_bias=False,
        time_width=width,
        text_width=given["crossattn_proj_in_channels"] if projects else context,
        text_embedding="projection" if projects else "none",
        rotary=RotaryConfig(scale=tuple(given["rope_scale"])),
        learned_positions=_patches(tuple(given["max_size"]), patch) if learned else None,
        padding_mask=given["concat_padding_mask"],
    )


def rules(config: VideoTransformerConfig, naming: str) -> tuple[TensorRule, ...]:
    """Returns how each parameter is stored in a checkpoint of ``naming``."""
    pt, ph, pw = config.patch
    patch = {"pt": pt, "ph": ph, "pw": pw}
    is_original = naming == "original"
    # Cosmos embeds a patch as (channel, frame, row, column) and predicts one as (row, column, frame, channel).
    found = [
        TensorRule(
            path="patch_embed.kernel",
            name="net.x_embedder.proj.1.weight" if is_original else "patch_embed.proj.weight",
            pattern="d (c pt ph pw) -> (pt ph pw c) d",
            sizes=patch,
        ),
        TensorRule(
            path="head_out.kernel",
            name="net.final_layer.linear.weight" if is_original else "proj_out.weight",
            pattern="(ph pw pt c) d -> d (pt ph pw c)",
            sizes=patch,
        ),
        TensorRule(
            path="time_embedding.scale",
            name="net.t_embedding_norm.weight" if is_original else "time_embed.norm.weight",
        ),
    ]
    found += [_linear(ours, f"net.{original}" if is_original else diffusers) for ours, diffusers, original in _LINEARS]
    if config.learned_positions is not None:
        prefix = "net.extra_pos_embedder" if is_original else "learnable_pos_embed"
        for ours, axis in (("frames", "t"), ("rows", "h"), ("columns", "w")):
            found.append(TensorRule(path=f"learned_positions.{ours}", name=f"{prefix}.pos_emb_{axis}"))
    if config.text_embedding == "projection":
        name = "net.crossattn_proj.0" if is_original else "crossattn_proj.0"
        found.append(_linear("text_embedding.hidden", name))
        found.append(TensorRule(path="text_embedding.hidden.bias", name=f"{name}.bias"))
    found += _block_rules(config.block, is_original)
    if is_original:
        # Repackaged checkpoints leave the prefix out.
        found = [dataclasses.replace(rule, aliases=(rule.name.removeprefix("net."),)) for rule in found]
    return tuple(found)


def _block_rules(config: BlockConfig, is_original: bool) -> list[TensorRule]:
    block = "net.blocks.{layer}." if is_original else "transformer_blocks.{layer}."
    layers = ("mlp.layer1", "mlp.layer2") if is_original else ("ff.net.0.proj", "ff.net.2")
    found = [_linear(f"blocks.mlp.{ours}", block + name) for ours, name in zip(("up", "down"), layers, strict=True)]
    for ours, diffusers, original in _PARTS:
        names = [f"adaln_modulation_{original}.{i}" if is_original else f"{diffusers}.linear_{i}" for i in (1, 2)]
        found += [_linear(f"blocks.{ours}.{leaf}", block + n) for leaf, n in zip(("down", "up"), names, strict=True)]
    k = {"k": config.num_heads}
    for ours, diffusers, original in _ATTENTIONS:
        name = block + (original if is_original else diffusers)
        for role, letter in _PROJECTIONS:
            tensor = f"{name}.{letter}_proj.weight" if is_original else f"{name}.to_{letter}.weight"
            path = f"blocks.{ours}.{role}.kernel"
            found.append(TensorRule(path=path, name=tensor, pattern="(k e) d -> d k e", sizes=k))
        for role, letter in _PROJECTIONS[:2]:
            norm = f"{name}.{letter}_norm.weight" if is_original else f"{name}.norm_{letter}.weight"
            found.append(TensorRule(path=f"blocks.{ours}.{role}_scale", name=norm))
        out = f"{name}.output_proj.weight" if is_original else f"{name}.to_out.0.weight"
        found.append(TensorRule(path=f"blocks.{ours}.out_kernel", name=out, pattern="d (k e) -> k e d", sizes=k))
    return found


def _linear(ours: str, name: str) -> TensorRule:
    return TensorRule(path=f"{ours}.kernel", name=f"{name}.weight", pattern="o i -> i o")


def outputs(module: VideoTransformer, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Runs the model as the reference's ``forward`` is called.

    Args:
      module: The model.
      inputs: ``hidden_states`` [b c t h w], ``timestep`` [b] or [b 1 t 1 1], ``encoder_hidden_states`` [b l c],
        optionally ``attention_mask`` bool [b l], ``fps``, ``condition_mask`` [b 1 t h w], ``padding_mask`` [1 1 H W]
        (of any size; resized to the latents') and ``target``.

    Returns:
      ``out`` [b c t h w], and ``loss`` if there is a target.

    Raises:
      DataError: Shapes do not fit.
    """
    latents = inputs["hidden_states"]
    if "condition_mask" in inputs:
        latents = jnp.concatenate([latents, inputs["condition_mask"].astype(latents.dtype)], axis=1)
    ids, fps, mask = inputs["timestep"], inputs.get("fps"), inputs.get("attention_mask")
    latents = rearrange(latents, "b c t h w -> b t h w c")
    prediction = module(
        latents,
        ids.reshape(ids.shape[0], -1) if ids.ndim == 5 else ids,
        inputs["encoder_hidden_states"],
        text_mask=None if mask is None else mask.astype(bool),
        padding_mask=_padding_channel(inputs["padding_mask"], latents) if module.config.padding_mask else None,
        fps=None if fps is None else jnp.reshape(fps, ()),
    )
    out = rearrange(prediction, "b t h w c -> b c t h w")
    found = {"out": out}
    if "target" in inputs:
        found["loss"] = jnp.mean(jnp.square(out - inputs["target"]))
    return found


def _padding_channel(mask: jax.Array, latents: jax.Array) -> jax.Array:
    """Returns ``[b t h w 1]`` of one mask ``[1 1 H W]`` for all samples, resized to the nearest pixel."""
    if mask.ndim != 4 or mask.shape[:2] != (1, 1):
        raise DataError(f"padding_mask of shape {mask.shape}; expected (1, 1, height, width), one for all samples")
    b, t, h, w, _ = latents.shape
    rows, columns = _nearest(mask.shape[2], h), _nearest(mask.shape[3], w)
    return jnp.broadcast_to(mask[0, 0][rows][:, columns][None, None, :, :, None], (b, t, h, w, 1))


def _nearest(size: int, wanted: int) -> np.ndarray:
    """Returns which of ``size`` pixels each of ``wanted`` takes: torch's mode ``nearest``, in its fp32."""
    step = np.float32(size) / np.float32(wanted)
    return np.minimum((np.arange(wanted, dtype=np.float32) * step).astype(np.int64), size - 1)


def _patches(max_size: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, int, int]:
    t, h, w = (size // step for size, step in zip(max_size, patch, strict=True))
    return t, h, w


KIND = ModelKind(
    class_name="CosmosTransformer3DModel",
    parse_config=parse_config,
    build=VideoTransformer,
    rules=rules,
    namings=("diffusers", "original"),
    outputs=outputs,
    ignored={
        "*._extra_state": "state of a quantisation library, empty",
        "*accum_*": "counters of the training run",
        "*pos_embedder.seq": "computed: positions of the rotary embedding",
        "*pos_embedder.dim_*_range": "computed: frequencies of the rotary embedding",
    },
)
