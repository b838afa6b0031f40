"""Writes the golden fixture of the gated delta rule, and of the layer around it, from transformers' Qwen3-Next.

    python tests/golden/make_gated_delta.py [FILE]

Needs torch and transformers; the committed file was written with torch 2.13.0 (CPU) and transformers 5.23.0. Parameters
of the layer are under our names and in our shapes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers.models.qwen3_next import modeling_qwen3_next as reference
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

WIDTH, HEADS, DIM, VALUE_DIM, TOKENS = 12, 2, 4, 6, 70


def main(path: Path) -> None:
    """Writes the fixture to ``path``."""
    torch.manual_seed(0)
    found = {"sizes": np.array([WIDTH, HEADS, DIM, VALUE_DIM])} | rule() | layer()
    np.savez_compressed(path, **found)


def rule() -> dict[str, np.ndarray]:
    """Returns inputs and outputs of both functions; they have tokens before heads."""
    query, key = (torch.nn.functional.normalize(torch.randn(1, TOKENS, HEADS, DIM), dim=-1) for _ in range(2))
    value = torch.randn(1, TOKENS, HEADS, VALUE_DIM)
    log_decay, strength = -0.3 * torch.rand(1, TOKENS, HEADS), torch.rand(1, TOKENS, HEADS)
    args = {"query": query, "key": key, "value": value, "g": log_decay, "beta": strength}
    named = {"query": query, "key": key, "value": value, "log_decay": log_decay, "strength": strength}
    named["chunked"] = reference.torch_chunk_gated_delta_rule(**args)[0]
    named["recurrent"] = reference.torch_recurrent_gated_delta_rule(**args)[0]
    return {name: np.swapaxes(part.numpy(), 1, 2) for name, part in named.items()}


def layer() -> dict[str, np.ndarray]:
    """Returns parameters, input and output of the layer."""
    config = Qwen3NextConfig(
        hidden_size=WIDTH,
        linear_num_key_heads=HEADS,
        linear_num_value_heads=HEADS,
        linear_key_head_dim=DIM,
        linear_value_head_dim=VALUE_DIM,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-6,
        num_hidden_layers=4,
    )
    module = reference.Qwen3NextGatedDeltaNet(config, layer_idx=0).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        x = torch.randn(1, TOKENS, WIDTH)
        out = module(x)
    found = {"layer_in": x.numpy(), "layer_out": out.numpy()}
    return found | {f"layer.{name}": part for name, part in parameters(module).items()}


def parameters(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns the parameters: q, k, v and z of a head lie together there, and so do its two gates."""
    tensors = {name: tensor.detach().numpy() for name, tensor in module.named_parameters()}
    mixed = tensors["in_proj_qkvz.weight"].T.reshape(WIDTH, HEADS, -1)
    query, key, value, gate = np.split(mixed, np.cumsum([DIM, DIM, VALUE_DIM]), axis=-1)
    strength, decay = np.moveaxis(tensors["in_proj_ba.weight"].T.reshape(WIDTH, HEADS, 2), -1, 0)
    taps = np.split(tensors["conv1d.weight"][:, 0].T, np.cumsum([HEADS * DIM] * 2), axis=-1)
    names = ("query_taps", "key_taps", "value_taps")
    return {
        **{f"{name}.kernel": part for name, part in (("query", query), ("key", key), ("value", value), ("gate", gate))},
        **{name: part.reshape(4, HEADS, -1) for name, part in zip(names, taps, strict=True)},
        "strength.kernel": strength,
        "decay.kernel": decay,
        "log_rate": tensors["A_log"],
        "decay_bias": tensors["dt_bias"],
        "output_norm": tensors["norm.weight"],
        "out_kernel": tensors["out_proj.weight"].T.reshape(HEADS, VALUE_DIM, WIDTH),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix("").parent / "gated_delta.npz")
