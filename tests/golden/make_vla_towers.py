"""Writes the golden fixtures of the towers of vision-language-action models: tiny random SigLIP and Gemma.

    python tests/golden/make_vla_towers.py [DIR]

Needs torch and transformers; the committed files were written with torch 2.13.0 (CPU), transformers 5.23.0 and numpy
2.4.6. A file holds the parameters under the names of transformers, the inputs, the outputs, and the gradient of the sum
of the outputs times ``weights`` by the inputs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import GemmaConfig, GemmaModel, SiglipVisionConfig, SiglipVisionModel


def main(folder: Path) -> None:
    """Writes both files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_siglip(folder / "siglip.npz", torch.Generator().manual_seed(0))
    _write_gemma(folder / "gemma.npz", torch.Generator().manual_seed(1))


def _write_siglip(path: Path, generator: torch.Generator) -> None:
    config = SiglipVisionConfig(
        hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
        hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, vision_use_head=False,
    )  # fmt: skip
    model = _randomised(SiglipVisionModel(config), generator)
    pixels = torch.randn(2, 3, 8, 8, generator=generator, requires_grad=True)
    out = model(pixel_values=pixels).last_hidden_state
    _save(path, model, generator, out, pixels, {"pixels": pixels})


def _write_gemma(path: Path, generator: torch.Generator) -> None:
    """All tokens see all that are there, as in a prefix; the second sample lacks some in front and at the end."""
    config = GemmaConfig(
        hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
        head_dim=6, vocab_size=11, rms_norm_eps=1e-6, rope_theta=10_000.0, hidden_activation="gelu_pytorch_tanh",
        attn_implementation="eager",
    )  # fmt: skip
    model = _randomised(GemmaModel(config), generator)
    seen = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0]], dtype=torch.bool)
    mask = torch.zeros(2, 1, 5, 5).masked_fill(~seen[:, None, None, :], torch.finfo(torch.float32).min)
    ids = torch.randint(0, 11, (2, 5), generator=generator)
    # transformers 5 scales by sqrt(width) where it looks up ids; embeddings that are given are scaled already.
    embedded = (model.embed_tokens(ids)).detach().requires_grad_(True)
    out = model(inputs_embeds=embedded, attention_mask=mask, position_ids=seen.cumsum(1) - 1).last_hidden_state
    by_ids = model(input_ids=ids, attention_mask=mask, position_ids=seen.cumsum(1) - 1).last_hidden_state
    inputs = {"ids": ids, "seen": seen, "embedded": embedded, "by_ids": by_ids}
    _save(path, model, generator, out * seen[..., None], embedded, inputs)


def _randomised(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms near where they start (Gemma's scales at 0), matrices that keep the size of activations.
            is_scale = "norm" in name and name.endswith("weight") and isinstance(model, SiglipVisionModel)
            fan_in = parameter[0].numel() if parameter.ndim > 1 and "position" not in name else 4
            parameter.copy_(float(is_scale) + fan_in**-0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _save(
    path: Path,
    model: torch.nn.Module,
    generator: torch.Generator,
    out: torch.Tensor,
    source: torch.Tensor,
    inputs: dict[str, torch.Tensor],
) -> None:
    weights = torch.randn(out.shape, generator=generator)
    (gradient,) = torch.autograd.grad((out * weights).sum(), source)
    arrays = {f"params.{name}": parameter for name, parameter in model.named_parameters()}
    arrays |= {**inputs, "out": out, "weights": weights, "gradient": gradient}
    np.savez_compressed(path, allow_pickle=False, **{name: x.detach().numpy() for name, x in arrays.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "vla_towers")
