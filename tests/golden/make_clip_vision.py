"""Writes the golden fixture of the CLIP image encoder: a tiny random one, with transformers' outputs and gradients.

    python tests/golden/make_clip_vision.py [DIR]

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
from transformers import CLIPVisionConfig, CLIPVisionModel

# An image that patches do not fill, so that the rest must be left out.
TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 14,
    "patch_size": 4,
    "hidden_act": "gelu",
}


def main(folder: Path) -> None:
    """Writes the fixture into ``folder``."""
    write(folder, TINY, batch_size=2, seed=0)


def write(folder: Path, overrides: dict[str, Any], batch_size: int, seed: int) -> None:
    """Writes one fixture."""
    generator = torch.Generator().manual_seed(seed)
    config = CLIPVisionConfig(**overrides)
    model = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms near 1, matrices that keep the size of activations, biases and tables well above nothing.
            is_scale = "norm" in name and name.endswith("weight")
            fan_in = parameter[0].numel() if parameter.ndim > 1 and "position" not in name else 4
            parameter.copy_(float(is_scale) + fan_in**-0.5 * torch.randn(parameter.shape, generator=generator))
    assert isinstance(config.image_size, int)
    pixels = torch.randn(batch_size, config.num_channels, config.image_size, config.image_size, generator=generator)

    outputs = model(pixels, output_hidden_states=True)
    out = outputs.last_hidden_state
    target = torch.randn(out.shape, generator=generator)
    loss = torch.nn.functional.mse_loss(out, target)
    loss.backward()

    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=True))
    parameters = dict(model.named_parameters())
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, folder / "model.safetensors")
    # The final norm is not in this list: it makes the pooled output, which the loss does not see.
    gradients = {name: p.grad.contiguous() for name, p in parameters.items() if p.grad is not None}
    assert parameters.keys() - gradients.keys() == {"post_layernorm.weight", "post_layernorm.bias"}
    save_file(gradients, folder / "grads.safetensors")
    inputs = {"pixel_values": pixels.numpy(), "target": target.numpy()}
    np.savez_compressed(folder / "inputs.npz", allow_pickle=False, **inputs)
    results = {
        "out": out,
        "last_hidden_state": out,
        "pooler_output": outputs.pooler_output,
        "hidden_states_-2": outputs.hidden_states[-2],
        "loss": loss,
    }
    np.savez_compressed(
        folder / "outputs.npz", allow_pickle=False, **{k: v.detach().numpy() for k, v in results.items()}
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "clip_vision")
