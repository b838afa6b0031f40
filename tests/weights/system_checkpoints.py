"""Tiny checkpoints of systems with action modules: names and shapes as their own classes give them, random values.

Written down by hand from the systems' source; nothing here is taken from the library's rules. Widths divide over the
8 devices of the tests.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]

WIDTH, HEADS, FFN, LAYERS, TEXT, FREQ, CHANNELS, IMAGE = 16, 2, 10, 2, 7, 6, 3, 8
PATCH = 4  # 1 x 2 x 2


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def wan_blocks(width: int, inner: int, ffn: int, *, image: bool = False) -> Shapes:
    """wan/modules/model.py, ``WanAttentionBlock``, with attention of ``inner`` dims."""
    shapes: Shapes = {}
    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        shapes |= {f"{block}modulation": (1, 6, width)}
        shapes |= {f"{block}norm3.weight": (width,), f"{block}norm3.bias": (width,)}
        shapes |= _linear(f"{block}ffn.0", ffn, width) | _linear(f"{block}ffn.2", width, ffn)
        for attention in ("self_attn", "cross_attn"):
            for letter in "qkv":
                shapes |= _linear(f"{block}{attention}.{letter}", inner, width)
            shapes |= _linear(f"{block}{attention}.o", width, inner)
            shapes |= {f"{block}{attention}.norm_{letter}.weight": (inner,) for letter in "qk"}
        if image:
            for letter in "kv":
                shapes |= _linear(f"{block}cross_attn.{letter}_img", inner, width)
            shapes |= {f"{block}cross_attn.norm_k_img.weight": (inner,)}
    return shapes


def embeddings(width: int) -> Shapes:
    """``text_embedding``, ``time_embedding`` and ``time_projection`` of original Wan."""
    return {
        **_linear("text_embedding.0", width, TEXT),
        **_linear("text_embedding.2", width, width),
        **_linear("time_embedding.0", width, FREQ),
        **_linear("time_embedding.2", width, width),
        **_linear("time_projection.1", 6 * width, width),
    }


def wan(*, image: bool = False) -> Shapes:
    """wan/modules/model.py, ``WanModel``."""
    shapes = {
        "patch_embedding.weight": (WIDTH, CHANNELS, 1, 2, 2),
        "patch_embedding.bias": (WIDTH,),
        **embeddings(WIDTH),
        **wan_blocks(WIDTH, WIDTH, FFN, image=image),
        **_linear("head.head", CHANNELS * PATCH, WIDTH),
        "head.modulation": (1, 2, WIDTH),
    }
    if image:
        for name, width in (("0", IMAGE), ("4", WIDTH)):
            shapes |= {f"img_emb.proj.{name}.weight": (width,), f"img_emb.proj.{name}.bias": (width,)}
        shapes |= _linear("img_emb.proj.1", IMAGE, IMAGE) | _linear("img_emb.proj.3", WIDTH, IMAGE)
    return shapes


def wan_diffusers() -> Shapes:
    """diffusers, ``WanTransformer3DModel``, without image branch."""
    embedder = "condition_embedder."
    shapes = {
        "patch_embedding.weight": (WIDTH, CHANNELS, 1, 2, 2),
        "patch_embedding.bias": (WIDTH,),
        **_linear(f"{embedder}time_embedder.linear_1", WIDTH, FREQ),
        **_linear(f"{embedder}time_embedder.linear_2", WIDTH, WIDTH),
        **_linear(f"{embedder}time_proj", 6 * WIDTH, WIDTH),
        **_linear(f"{embedder}text_embedder.linear_1", WIDTH, TEXT),
        **_linear(f"{embedder}text_embedder.linear_2", WIDTH, WIDTH),
        **_linear("proj_out", CHANNELS * PATCH, WIDTH),
        "scale_shift_table": (1, 2, WIDTH),
    }
    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        shapes |= {f"{block}scale_shift_table": (1, 6, WIDTH)}
        shapes |= {f"{block}norm2.weight": (WIDTH,), f"{block}norm2.bias": (WIDTH,)}
        shapes |= _linear(f"{block}ffn.net.0.proj", FFN, WIDTH) | _linear(f"{block}ffn.net.2", WIDTH, FFN)
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes |= _linear(f"{block}{attention}.{name}", WIDTH, WIDTH)
            shapes |= {f"{block}{attention}.norm_{letter}.weight": (WIDTH,) for letter in "qk"}
    return shapes


def dreamzero_modules(categories: int, action_dim: int, state_dim: int, hidden: int) -> Shapes:
    """``CausalWanModel``: ``CategorySpecificLinear`` holds W [category in out] and b [category out]."""
    layers = {
        "action_encoder.W1": (action_dim, WIDTH),
        "action_encoder.W2": (2 * WIDTH, WIDTH),
        "action_encoder.W3": (WIDTH, WIDTH),
        "state_encoder.layer1": (state_dim, hidden),
        "state_encoder.layer2": (hidden, WIDTH),
        "action_decoder.layer1": (WIDTH, hidden),
        "action_decoder.layer2": (hidden, action_dim),
    }
    shapes: Shapes = {}
    for name, (into, out) in layers.items():
        shapes |= {f"{name}.W": (categories, into, out), f"{name}.b": (categories, out)}
    return shapes


def lingbot_va(action_dim: int) -> Shapes:
    """wan_va/modules/model.py: a linear patch embedding, and the condition embedder a second time."""
    shapes = wan_diffusers()
    del shapes["patch_embedding.weight"], shapes["patch_embedding.bias"]
    copies = {
        name.replace("condition_embedder.", "condition_embedder_action."): shape
        for name, shape in shapes.items()
        if name.startswith("condition_embedder.")
    }
    return {
        **shapes,
        **copies,
        **_linear("patch_embedding_mlp", WIDTH, CHANNELS * PATCH),
        **_linear("action_embedder", WIDTH, action_dim),
        **_linear("action_proj_out", action_dim, WIDTH),
    }


def fast_wam(action_dim: int, state_dim: int, width: int, ffn: int) -> Shapes:
    """``MoT.mixtures`` of ``WanVideoDiT`` and ``ActionDiT``, and ``FastWAM.proprio_encoder``."""
    expert = {
        **embeddings(width),
        **wan_blocks(width, WIDTH, ffn),
        **_linear("action_encoder", width, action_dim),
        **_linear("head", action_dim, width),
    }
    return {
        **{f"mixtures.video.{name}": shape for name, shape in wan().items()},
        **{f"mixtures.action.{name}": shape for name, shape in expert.items()},
        **_linear("proprio_encoder", TEXT, state_dim),
    }


WAN_CONFIG: dict[str, Any] = {
    "_class_name": "WanModel",
    "model_type": "ti2v",
    "dim": WIDTH,
    "num_heads": HEADS,
    "ffn_dim": FFN,
    "num_layers": LAYERS,
    "in_dim": CHANNELS,
    "out_dim": CHANNELS,
    "freq_dim": FREQ,
    "text_dim": TEXT,
    "eps": 1e-6,
}
WAN_IMAGE_CONFIG = {**WAN_CONFIG, "model_type": "i2v", "image_dim": IMAGE}
WAN_DIFFUSERS_CONFIG: dict[str, Any] = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": HEADS,
    "attention_head_dim": WIDTH // HEADS,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT,
    "freq_dim": FREQ,
    "ffn_dim": FFN,
    "num_layers": LAYERS,
}
DREAMZERO_CONFIG: dict[str, Any] = {
    **WAN_IMAGE_CONFIG,
    "_class_name": "CausalWanModel",
    "action_dim": 3,
    "max_state_dim": 5,
    "max_num_embodiments": 32,  # the class overrides it with 1
    "hidden_size": 9,
}
FAST_WAM_CONFIG: dict[str, Any] = {
    "video_dit_config": {
        "hidden_dim": WIDTH,
        "num_heads": HEADS,
        "attn_head_dim": WIDTH // HEADS,
        **{key: WAN_CONFIG[key] for key in ("ffn_dim", "num_layers", "in_dim", "out_dim", "freq_dim", "text_dim")},
    },
    "action_dit_config": {"action_dim": 3, "hidden_dim": 8, "ffn_dim": 6},
    "proprio_dim": 5,
}
# Kind -> config.json, names and shapes, of a whole checkpoint.
SYSTEMS: dict[str, tuple[dict[str, Any], Shapes]] = {
    "dreamzero": (DREAMZERO_CONFIG, wan(image=True) | dreamzero_modules(1, 3, 5, 9)),
    "lingbot_va": ({**WAN_DIFFUSERS_CONFIG, "action_dim": 3}, lingbot_va(3)),
    "fast_wam": (FAST_WAM_CONFIG, fast_wam(3, 5, 8, 6)),
}


def random_tensors(shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """Values for each name, some of them in half precision."""
    rng = np.random.default_rng(seed)
    dtypes = (np.float32, np.float32, np.float16)
    return {
        name: rng.normal(size=shape).astype(dtypes[number % 3]) for number, (name, shape) in enumerate(shapes.items())
    }


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Writes a folder as it is published; returns it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder
