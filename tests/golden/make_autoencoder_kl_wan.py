"""Writes the golden fixtures of the Wan autoencoders: tiny random ones, with outputs and gradients of diffusers.

    python tests/golden/make_autoencoder_kl_wan.py [DIR]

Needs torch, diffusers and safetensors; the committed folders, one of each generation, were written with torch 2.13.0
(CPU), diffusers 0.42.1 and numpy 2.4.6. They have the form that ``wamjax weights verify`` reads.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import save_file

# Together they have every part: widths that change and stay, time halved or not. Small, because compiling a gradient
# through all of them is what their test waits for.
TINY = {
    "autoencoder_kl_wan_2_1": {
        "base_dim": 2,
        "z_dim": 2,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
        "latents_mean": [0.3, -0.2],
        "latents_std": [0.7, 1.6],
    },
    "autoencoder_kl_wan_2_2": {
        "base_dim": 2,
        "decoder_base_dim": 3,
        "z_dim": 2,
        "dim_mult": [2, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [True],
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "latents_mean": [0.3, -0.2],
        "latents_std": [0.7, 1.6],
    },
}
CLIPS = {"autoencoder_kl_wan_2_1": (1, 3, 5, 8, 12), "autoencoder_kl_wan_2_2": (1, 3, 5, 12, 8)}
LATENT_FRAMES = 2  # of the latents that are decoded by themselves


def main(folder: Path) -> None:
    """Writes both fixtures under ``folder``."""
    for seed, (name, config) in enumerate(TINY.items(), start=3):
        write(folder / name, config, clip=CLIPS[name], seed=seed)


def write(folder: Path, config: dict[str, Any], clip: tuple[int, int, int, int, int], seed: int) -> None:
    """Writes one fixture: a video of shape ``clip`` ``[b c f H W]`` through both halves, and latents through one."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoencoderKLWan(**config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Scales of norms near 1, kernels that keep the size of activations, biases that are felt.
            is_norm, fan = name.endswith("gamma"), parameter[0].numel()
            spread = 0.3 if is_norm or parameter.ndim == 1 else fan**-0.5
            parameter.copy_(float(is_norm) + spread * torch.randn(parameter.shape, generator=generator))
    video = 2.0 * torch.rand(clip, generator=generator) - 1.0
    target = 2.0 * torch.rand(clip, generator=generator) - 1.0
    (posterior,) = model.encode(video, return_dict=False)
    mode = posterior.mode()
    z = torch.randn((clip[0], config["z_dim"], LATENT_FRAMES, *mode.shape[3:]), generator=generator)
    mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    (out,) = model(video, return_dict=False)
    loss = torch.nn.functional.mse_loss(out, target)
    loss.backward()
    outputs = {
        "moments_a": posterior.parameters,
        "mode_a": mode,
        "latent_norm_a": (mode - mean) / std,
        "recon_a": out,
        "out": out,
        "loss": loss,
    }
    with _without_clamp():
        (outputs["recon_raw_a"],) = model.decode(mode, return_dict=False)
        (outputs["zdec_raw_b"],) = model.decode(z, return_dict=False)
    assert torch.equal(outputs["recon_raw_a"].clamp(-1.0, 1.0), out)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": type(model).__name__, **config}, indent=2) + "\n")
    parameters = dict(model.named_parameters())
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, folder / "model.safetensors")
    gradients = {name: p.grad.contiguous() for name, p in parameters.items() if p.grad is not None}
    save_file(gradients, folder / "grads.safetensors")
    inputs = {"video_a": video, "z_b": z, "target": target}
    np.savez_compressed(folder / "inputs.npz", allow_pickle=False, **{k: v.numpy() for k, v in inputs.items()})
    np.savez_compressed(
        folder / "outputs.npz", allow_pickle=False, **{k: v.detach().numpy() for k, v in outputs.items()}
    )


@contextlib.contextmanager
def _without_clamp() -> Iterator[None]:
    """Lets ``decode`` return what it would clamp."""
    with mock.patch.object(torch, "clamp", lambda x, min, max: x):
        yield


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
