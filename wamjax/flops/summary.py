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
        lines.append(_row(_LABELS[name], count.forward[name], count.model[name], count.hardware[name], share))
    forward, model, hardware = count.forward_total, count.model_total, count.hardware_total
    lines.append(_row("total", forward, model, hardware, 1.0))
    lines.append(
        f"model FLOPs are {model / forward:.4f} x forward (3 by convention), hardware {hardware / forward:.4f} x"
    )
    lines.append(f"6NT estimate: {count.six_n_t:,}; counted model FLOPs are {model / count.six_n_t:.3f} x that")
    lines.append("tokens: " + ", ".join(f"{stream} {number:,}" for stream, number in count.tokens.items()))
    if count.num_dense_pairs:
        lines.append(
            f"attended pairs: {count.num_pairs:,} of {count.num_dense_pairs:,} dense "
            f"({count.num_pairs / count.num_dense_pairs:.1%}); the kernel computes {count.num_executed_pairs:,}"
        )
        lines.append(f"executed scores of self-attention: {count.executed_score_flops:,} FLOPs per forward pass")
    kept = count.num_parameters - count.num_trained_parameters
    lines.append(f"parameters: {count.num_parameters:,}" + (f", {kept:,} of them kept" if kept else ""))
    return "\n".join(lines)


def _row(label: str, forward: int, model: int, hardware: int, share: float) -> str:
    return f"{label:28} {forward:20,} {model:20,} {hardware:20,} {share:7.1%}"
