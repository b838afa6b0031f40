"""Writes the golden fixtures of Wan's transformer: tiny random ones, with outputs and gradients of diffusers.

    python tests/golden/make_wan_transformer.py [DIR]

Needs torch, diffusers and safetensors; the committed folders were written with torch 2.13.0 (CPU), diffusers 0.42.1 and
numpy 2.4.6. The folders have the form that ``wamjax weights verify`` reads; ``adamw.npz`` beside the first one holds
the losses of five steps of torch.optim.AdamW.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]
from safetensors.torch import save_file

ADAMW = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
ADAMW_STEPS = 5
TEXT_TOKENS = 512  # where the reference splits image tokens from text tokens
# Head dims of 6 and 8 have one pair per axis, the latter one more for frames. Sizes that could be swapped differ.
TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 5,
    "out_channels": 3,
    "text_dim": 6,
    "freq_dim": 10,
    "ffn_dim": 20,
    "num_layers": 2,
}
SMALLER = {**TINY, "attention_head_dim": 6, "num_layers": 1, "ffn_dim": 10, "freq_dim": 4, "text_dim": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One fixture: what differs from ``TINY``, and the sizes of its inputs.

    Attributes:
      overrides: Keys of diffusers' configuration.
      grid: Latent frames, rows and columns of patches.
      batch_size: Samples.
      text_tokens: Text tokens before padding.
      images: Images per sample; 0 has no image branch.
      image_tokens: Tokens of one image.
      times: ``sample``, or ``token``: those of the first frame are 0, as in Wan 2.2 TI2V.
    """

    overrides: dict[str, Any]
    grid: tuple[int, int, int]
    batch_size: int = 2
    text_tokens: int = 7
    images: int = 0
    image_tokens: int = 5
    times: str = "sample"


CASES = {
    "t2v": Case(overrides=TINY, grid=(3, 2, 3)),
    "i2v": Case(
        overrides={**SMALLER, "image_dim": 7, "added_kv_proj_dim": 12}, grid=(2, 3, 2), text_tokens=40, images=1
    ),
    "flf2v": Case(
        overrides={**SMALLER, "image_dim": 6, "added_kv_proj_dim": 12, "pos_embed_seq_len": 10},
        grid=(2, 1, 3),
        text_tokens=40,  # far from all equal: keys that are cancel in the gradients
        images=2,
    ),
    "ti2v": Case(overrides={**SMALLER, "out_channels": 5, "cross_attn_norm": False}, grid=(2, 2, 3), times="token"),
}


def main(folder: Path) -> None:
    """Writes every fixture into a folder of its own under ``folder``."""
    for seed, (name, case) in enumerate(CASES.items()):
        write(folder / name, case, seed)
    trace_adamw(folder / "t2v", CASES["t2v"], seed=0)


def build(case: Case, seed: int) -> tuple[WanTransformer3DModel, dict[str, torch.Tensor]]:
    """Returns a model with every parameter random, and its inputs."""
    generator = torch.Generator().manual_seed(seed)
    model = WanTransformer3DModel(**case.overrides).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms near 1, biases and tables of the size of activations, matrices that keep it.
            is_norm = "norm" in name and name.endswith("weight")
            spread = 0.3 if parameter.ndim == 1 else 1.0 if "table" in name else parameter[0].numel() ** -0.5
            parameter.copy_(float(is_norm) + spread * torch.randn(parameter.shape, generator=generator))
    return model, _inputs(case, model.config, generator)


def _inputs(case: Case, config: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    pixels = [size * step for size, step in zip(case.grid, config.patch_size, strict=True)]
    num_tokens, batch_size = int(np.prod(case.grid)), case.batch_size
    text = torch.zeros(batch_size, TEXT_TOKENS if case.images else case.text_tokens + 2, config.text_dim)
    text[:, : case.text_tokens] = normal(batch_size, case.text_tokens, config.text_dim)
    timestep = 1000 * torch.rand(batch_size, generator=generator)
    timestep[0] = 999.0  # where roundings of the sinusoid show most
    if case.times == "token":
        first = num_tokens // case.grid[0]
        timestep = timestep[:, None].repeat(1, num_tokens)
        timestep[:, :first] = 0.0
        timestep[1, -1] = 3.5  # no two frames of tokens need share a timestep
    inputs = {
        "hidden_states": normal(batch_size, config.in_channels, *pixels),
        "timestep": timestep,
        "encoder_hidden_states": text,
        "target": normal(batch_size, config.out_channels, *pixels),
    }
    if case.images:
        inputs["encoder_hidden_states_image"] = normal(batch_size * case.images, case.image_tokens, config.image_dim)
    return inputs


def loss_of(model: WanTransformer3DModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean squared error against the target, and the output."""
    arguments = {name: tensor for name, tensor in inputs.items() if name != "target"}
    out = model(**arguments).sample
    return torch.nn.functional.mse_loss(out, inputs["target"]), out


def write(folder: Path, case: Case, seed: int) -> None:
    """Writes one fixture."""
    model, inputs = build(case, seed)
    loss, out = loss_of(model, inputs)
    loss.backward()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder)
    parameters = dict(model.named_parameters())
    gradients = {name: p.grad.contiguous() for name, p in parameters.items() if p.grad is not None}
    assert gradients.keys() == parameters.keys()
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, folder / "model.safetensors")
    save_file(gradients, folder / "grads.safetensors")
    np.savez_compressed(folder / "inputs.npz", allow_pickle=False, **{k: v.numpy() for k, v in inputs.items()})
    outputs = {"out": out, "loss": loss}
    np.savez_compressed(
        folder / "outputs.npz", allow_pickle=False, **{k: v.detach().numpy() for k, v in outputs.items()}
    )


def trace_adamw(folder: Path, case: Case, seed: int) -> None:
    """Writes the losses before each of five AdamW steps, and after the last."""
    model, inputs = build(case, seed)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    losses = []
    for _ in range(ADAMW_STEPS):
        optimizer.zero_grad()
        loss, _ = loss_of(model, inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    losses.append(loss_of(model, inputs)[0].item())
    np.savez(folder / "adamw.npz", allow_pickle=False, losses=np.asarray(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "wan_transformer")
