"""A ``FlopCount`` as a table for the console and the report."""

from __future__ import annotations

from wamjax.flops.model import COMPONENTS, FlopCount

_LABELS = {
    "self_projections": "self-attention projections",
    "self_scores": "self-attention scores",
    "cross_qo": "cross-attention q, out",
    "cross_kv": "cross-attention k, v",
    "cross_scores": "cross-attention scores",
    "ffn": "feed-forward",
    "patch": "patch embedding",
    "head": "video head",
    "text_embed": "text embedding",
    "image_embed": "image embedding",
    "time_embed": "time embedding",
    "action_state": "action and state",
}


def describe(count: FlopCount) -> str:
    """Returns a table of ``count``: FLOPs of one sample by component, tokens, pairs and the 6NT estimate beside."""
    lines = [
        "FLOPs per sample (1 multiply-add = 2; matrix products only)",
        f"{'component':28} {'forward':>20} {'train, model':>20} {'train, hardware':>20} {'share':>7}",
    ]
    for name in COMPONENTS:
        if not count.hardware[name]:
            continue
        share = count.model[name] / count.model_total
        lines.append(
            f"{_LABELS[name]:28} {count.forward[name]:20,} {count.model[name]:20,} {count.hardware[name]:20,} {share:7.1%}"
        )
    lines += [
        f"{'total':28} {count.forward_total:20,} {count.model_total:20,} {count.hardware_total:20,} {1:7.1%}",
        f"model FLOPs are {count.model_total / count.forward_total:.4f} x forward (3 by convention), hardware FLOPs "
        f"{count.hardware_total / count.forward_total:.4f} x",
        f"6NT estimate: {count.six_n_t:,}; counted model FLOPs are {count.model_total / count.six_n_t:.3f} x that",
        "tokens: " + ", ".join(f"{stream} {number:,}" for stream, number in count.tokens.items()),
        f"attended pairs: {count.num_pairs:,} of {count.num_dense_pairs:,} dense "
        f"({count.num_pairs / count.num_dense_pairs:.1%}); the kernel computes {count.num_executed_pairs:,}",
        f"parameters: {count.num_parameters:,}",
    ]
    return "\n".join(lines)
