"""Writes the golden fixture of the UMT5 encoder: a tiny random one, with outputs and gradients of transformers.

    python tests/golden/make_umt5_encoder.py [DIR]

Needs torch, transformers and safetensors; the committed folder was written with torch 2.13.0 (CPU), transformers
5.23.0 and numpy 2.4.6. The folder has the form that ``wamjax weights verify`` reads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

PROMPT_TOKENS = 512
# Heads whose width times number is not the model's; fewer buckets and a shorter reach than published, so that a short
# prompt meets exact, logarithmic and saturated buckets on both sides.
TINY = {
    "vocab_size": 48,
    "d_model": 16,
    "num_layers": 2,
    "num_heads": 4,
    "d_kv": 6,
    "d_ff": 20,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 16,
}


def main(folder: Path) -> None:
    """Writes the fixture into ``folder``."""
    write(folder, TINY, lengths=(23, 9), num_tokens=23, seed=0)


def write(folder: Path, overrides: dict[str, Any], lengths: tuple[int, ...], num_tokens: int, seed: int) -> None:
    """Writes one fixture: prompts of ``lengths``, padded to ``num_tokens``."""
    generator = torch.Generator().manual_seed(seed)
    config = UMT5Config(**overrides)
    model = UMT5EncoderModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms near 1, biases of the size of scores, matrices that keep the size of activations.
            is_norm = name.endswith("layer_norm.weight")
            spread = 1.0 if "relative" in name or "shared" in name else 0.3 if is_norm else parameter.shape[-1] ** -0.5
            parameter.copy_(float(is_norm) + spread * torch.randn(parameter.shape, generator=generator))
    input_ids = torch.zeros(len(lengths), num_tokens, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, length in enumerate(lengths):
        input_ids[row, :length] = torch.randint(2, config.vocab_size, (length,), generator=generator)
        attention_mask[row, :length] = 1
    # Random where a prompt may be and zero after it, as the output is: rows of zeros cost nothing in the file.
    target = torch.zeros(len(lengths), PROMPT_TOKENS, config.d_model)
    target[:, :num_tokens] = torch.randn(len(lengths), num_tokens, config.d_model, generator=generator)

    hidden = model(input_ids, attention_mask).last_hidden_state
    rows = [row[:length] for row, length in zip(hidden, lengths, strict=True)]
    out = torch.stack([torch.cat([row, row.new_zeros(PROMPT_TOKENS - len(row), row.shape[1])]) for row in rows])
    loss = torch.nn.functional.mse_loss(out, target)
    loss.backward()

    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=True))
    parameters = dict(model.named_parameters())
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, folder / "model.safetensors")
    gradients = {name: p.grad.contiguous() for name, p in parameters.items() if p.grad is not None}
    assert gradients.keys() == parameters.keys()
    save_file(gradients, folder / "grads.safetensors")
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "target": target}
    np.savez_compressed(folder / "inputs.npz", allow_pickle=False, **{k: v.numpy() for k, v in inputs.items()})
    outputs = {"last_hidden_state": hidden, "out": out, "loss": loss}
    np.savez_compressed(
        folder / "outputs.npz", allow_pickle=False, **{k: v.detach().numpy() for k, v in outputs.items()}
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "umt5_encoder")
