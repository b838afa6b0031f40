"""The image encoder's tensors renamed from transformers to original Wan's, apart from the library's own rules."""

import numpy as np

# transformers -> original, of what is renamed alone.
_RENAMED = {
    "embeddings.patch_embedding.weight": "patch_embedding.weight",
    "pre_layrnorm": "pre_norm",
    "post_layernorm": "post_norm",
    "encoder.layers": "transformer",
    "layer_norm": "norm",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}


def original_clip(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``tensors`` of transformers' CLIPVisionModel as ``XLMRobertaCLIP.visual`` holds them."""
    left = dict(tensors)
    original = {
        "visual.cls_embedding": left.pop("embeddings.class_embedding")[None, None],
        "visual.pos_embedding": left.pop("embeddings.position_embedding.weight")[None],
    }
    for query in [name for name in left if ".q_proj." in name]:
        rows = [left.pop(query.replace("q_proj", projection)) for projection in ("q_proj", "k_proj", "v_proj")]
        left[query.replace("self_attn.q_proj", "attn.to_qkv")] = np.concatenate(rows)
    for name, tensor in left.items():
        for theirs, ours in _RENAMED.items():
            name = name.replace(theirs, ours)
        original[f"visual.{name}"] = tensor
    return original
