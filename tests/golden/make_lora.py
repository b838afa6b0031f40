"""Writes the golden fixture of low-rank updates on Wan's transformer, made by peft and written by diffusers.

    python tests/golden/make_lora.py [DIR]

Needs torch, diffusers, peft and safetensors; the committed folder was written with torch 2.13.0 (CPU), diffusers 0.42.1
and peft 0.21.2. The base is the fixture ``wan_transformer/t2v``. ``lora.npz`` holds its output with the updates, the
losses before each of five AdamW steps on the updates alone, and after the last.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline  # pyright: ignore[reportPrivateImportUsage]
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file

if __package__:
    from tests.golden.make_wan_transformer import ADAMW, ADAMW_STEPS, CASES, build, loss_of
else:  # run as a script
    from make_wan_transformer import ADAMW, ADAMW_STEPS, CASES, build, loss_of

RANK, ALPHA = 3, 6.0
# Every kind of kernel: to heads, from heads, plain, the head's.
TARGETS = ["attn1.to_q", "attn1.to_k", "attn2.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2", "proj_out"]


def main(folder: Path) -> None:
    """Writes the fixture into ``folder``."""
    torch.manual_seed(0)
    model, inputs = build(CASES["t2v"], seed=0)
    model.load_state_dict(load_file(Path(__file__).parent / "wan_transformer" / "t2v" / "model.safetensors"))
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    model.requires_grad_(False)
    model.add_adapter(config)
    updates = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in updates.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    folder.mkdir(parents=True, exist_ok=True)
    WanPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=config.to_dict(),
        weight_name="lora.safetensors",
    )
    optimizer = torch.optim.AdamW(updates.values(), **ADAMW)
    losses, outs = [], []
    for _ in range(ADAMW_STEPS):
        optimizer.zero_grad()
        loss, out = loss_of(model, inputs)
        outs.append(out.detach().numpy())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    losses.append(loss_of(model, inputs)[0].item())
    (folder / "lora.safetensors").chmod(0o644)
    np.savez_compressed(folder / "lora.npz", allow_pickle=False, out=outs[0], losses=np.asarray(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "lora")
