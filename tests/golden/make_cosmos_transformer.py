"""Writes the golden fixtures of Cosmos's transformer: tiny random ones, with outputs and gradients of diffusers.

    python tests/golden/make_cosmos_transformer.py [DIR]

Needs torch, diffusers and safetensors; the committed folders were written with torch 2.13.0 (CPU), diffusers 0.42.1 and
numpy 2.4.6. The folders have the form that ``wamjax weights verify`` reads. diffusers resizes the padding mask with
torchvision; its one call, nearest resizing, is given here by torch itself.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import CosmosTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.transformers import transformer_cosmos
from safetensors.torch import save_file

TINY = {
    "in_channels": 4,
    "out_channels": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 12,  # pairs per axis: 2, 2, 2 (the NTK exponent of an axis with one pair is undefined)
    "num_layers": 2,
    "mlp_ratio": 0.5,
    "text_embed_dim": 5,
    "adaln_lora_dim": 3,
    "max_size": (5, 10, 12),
    "rope_scale": (1.0, 3.0, 4.0),
    "extra_pos_embed_type": None,
}
LEARNED = {"extra_pos_embed_type": "learnable", "rope_scale": (2.0, 1.0, 1.5), "num_layers": 1}
PROJECTED = {"use_crossattn_projection": True, "crossattn_proj_in_channels": 7, "encoder_hidden_states_channels": 5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One fixture: a configuration, and the sizes of its inputs.

    Attributes:
      overrides: Keys of diffusers' configuration.
      grid: Latent frames, rows and columns of patches.
      mask_size: Height and width of the padding mask before resizing; None without.
      fps: Frame rate; None for images.
      has_condition_mask: Whether the last input channel is the condition mask.
      times: ``sample``, or ``frame``: one timestep per latent frame.
      masks_text: Whether some text tokens are hidden.
    """

    overrides: dict[str, Any]
    grid: tuple[int, int, int]
    batch_size: int = 2
    text_tokens: int = 7
    mask_size: tuple[int, int] | None = None
    fps: int | None = None
    has_condition_mask: bool = False
    times: str = "sample"
    masks_text: bool = False


CASES = {
    "video": Case(overrides=TINY, grid=(3, 2, 3), mask_size=(7, 10), fps=10, has_condition_mask=True),
    "frames": Case(overrides={**TINY, **LEARNED, **PROJECTED}, grid=(3, 3, 2), mask_size=(6, 4), times="frame"),
}


def main(folder: Path) -> None:
    """Writes every fixture into a folder of its own under ``folder``."""
    for seed, (name, case) in enumerate(CASES.items()):
        write(folder / name, case, seed)


def write(folder: Path, case: Case, seed: int) -> None:
    """Writes one fixture."""
    nearest = types.SimpleNamespace(NEAREST="nearest")
    functional = types.SimpleNamespace(
        resize=lambda mask, size, interpolation: torch.nn.functional.interpolate(mask, size, mode=interpolation)
    )
    stub = types.SimpleNamespace(functional=functional, InterpolationMode=nearest)
    setattr(transformer_cosmos, "transforms", stub)  # noqa: B010
    generator = torch.Generator().manual_seed(seed)
    model = CosmosTransformer3DModel(**case.overrides).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms near 1, biases and tables of the size of activations, matrices that keep it.
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            is_table = "pos_emb" in name
            spread = 0.3 if parameter.ndim == 1 else 1.0 if is_table else parameter[0].numel() ** -0.5
            parameter.copy_(float(is_norm) + spread * torch.randn(parameter.shape, generator=generator))
    inputs = _inputs(case, model.config, generator)
    arguments: dict[str, Any] = {name: value for name, value in inputs.items() if name != "target"}
    if case.fps is not None:
        arguments["fps"] = case.fps
    out = model(**arguments).sample
    loss = torch.nn.functional.mse_loss(out, inputs["target"])
    loss.backward()

    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder)
    parameters = dict(model.named_parameters())
    gradients = {name: p.grad.contiguous() for name, p in parameters.items() if p.grad is not None}
    assert gradients.keys() == parameters.keys()
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, folder / "model.safetensors")
    save_file(gradients, folder / "grads.safetensors")
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    if case.fps is not None:
        arrays["fps"] = np.asarray(case.fps)
    np.savez_compressed(folder / "inputs.npz", allow_pickle=False, **arrays)
    outputs = {"out": out, "loss": loss}
    np.savez_compressed(
        folder / "outputs.npz", allow_pickle=False, **{k: v.detach().numpy() for k, v in outputs.items()}
    )


def _inputs(case: Case, config: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    pixels = [size * step for size, step in zip(case.grid, config.patch_size, strict=True)]
    b, channels = case.batch_size, config.in_channels - case.has_condition_mask
    text_width = config.crossattn_proj_in_channels if config.use_crossattn_projection else config.text_embed_dim
    timestep = torch.rand(b, generator=generator)  # sigma / (sigma + 1)
    if case.times == "frame":
        timestep = torch.rand(b, 1, pixels[0], 1, 1, generator=generator)
        timestep[:, :, 0] = 0.0
    inputs = {
        "hidden_states": normal(b, channels, *pixels),
        "timestep": timestep,
        "encoder_hidden_states": normal(b, case.text_tokens, text_width),
        "target": normal(b, config.out_channels, *pixels),
    }
    if case.has_condition_mask:
        inputs["condition_mask"] = torch.zeros(b, 1, *pixels)
        inputs["condition_mask"][:, :, :1] = 1.0
    if case.mask_size is not None:
        inputs["padding_mask"] = (torch.rand(1, 1, *case.mask_size, generator=generator) < 0.4).float()
    if case.masks_text:
        inputs["attention_mask"] = torch.arange(case.text_tokens)[None] < torch.arange(b)[:, None] + 3
    return inputs


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "cosmos_transformer")
