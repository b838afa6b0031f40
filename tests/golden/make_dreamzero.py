"""Writes the golden fixture of DreamZero: a tiny random one, with outputs and gradients of a second implementation.

    python tests/golden/make_dreamzero.py [DIR]

DreamZero's own code needs its whole package and attention kernels for GPUs. What computes here is written from it for
this purpose (groot/vla/model/dreamzero/modules/wan_video_dit_action_casual_chunk.py, ``_forward_train`` with clean
context and actions): plain PyTorch on the tensors by their names, with a dense mask and complex rotary embedding, in
double precision. Needs torch and safetensors; the committed folder was written with torch 2.13.0 (CPU) and numpy 2.4.6.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

# Sizes that could be swapped differ.
CONFIG: dict[str, Any] = {
    "_class_name": "CausalWanModel",
    "model_type": "i2v",
    "dim": 16,
    "num_heads": 2,
    "ffn_dim": 12,
    "num_layers": 2,
    "in_dim": 5,
    "out_dim": 3,
    "freq_dim": 10,
    "text_dim": 6,
    "text_len": 9,
    "eps": 1e-6,
    "action_dim": 3,
    "max_state_dim": 4,
    "hidden_size": 7,
    "num_frame_per_block": 2,
    "num_action_per_block": 3,
    "num_state_per_block": 1,
    "image_dim": 8,
    "added_kv_proj_dim": 16,
}
PATCH = (1, 2, 2)
GRID, BLOCKS = (5, 2, 3), 2  # latent frames, rows and columns of patches: a first frame and two blocks of two
IMAGE_TOKENS = 4


def make_tensors(config: dict[str, Any], generator: torch.Generator) -> Tensors:
    """Returns every tensor, random, by its name in a checkpoint."""
    d, f = config["dim"], config["ffn_dim"]
    image, u, p, h = config["image_dim"], config["action_dim"], config["max_state_dim"], config["hidden_size"]
    linears = {
        "text_embedding.0": (d, config["text_dim"]),
        "text_embedding.2": (d, d),
        "time_embedding.0": (d, config["freq_dim"]),
        "time_embedding.2": (d, d),
        "time_projection.1": (6 * d, d),
        "img_emb.proj.1": (image, image),
        "img_emb.proj.3": (d, image),
        "head.head": (config["out_dim"] * 4, d),
    }
    norms, tables = {"img_emb.proj.0": image, "img_emb.proj.4": d}, {"head.modulation": (1, 2, d)}
    for layer in range(config["num_layers"]):
        block = f"blocks.{layer}."
        names = [f"{block}{kind}_attn.{letter}" for kind in ("self", "cross") for letter in "qkvo"]
        linears |= dict.fromkeys([*names, f"{block}cross_attn.k_img", f"{block}cross_attn.v_img"], (d, d))
        linears |= {f"{block}ffn.0": (f, d), f"{block}ffn.2": (d, f)}
        norms |= {f"{block}norm3": d}
        tables |= {f"{block}modulation": (1, 6, d)}
    scales = [
        f"blocks.{i}.{k}_attn.norm_{c}" for i in range(config["num_layers"]) for k in ("self", "cross") for c in "qk"
    ]
    scales += [f"blocks.{i}.cross_attn.norm_k_img" for i in range(config["num_layers"])]
    categories = {
        "action_encoder.W1": (u, d),
        "action_encoder.W2": (2 * d, d),
        "action_encoder.W3": (d, d),
        "state_encoder.layer1": (p, h),
        "state_encoder.layer2": (h, d),
        "action_decoder.layer1": (d, h),
        "action_decoder.layer2": (h, u),
    }

    def normal(spread: float, *shape: int) -> torch.Tensor:
        return spread * torch.randn(shape, generator=generator)

    w = {"patch_embedding.weight": normal(0.3, d, config["in_dim"], *PATCH), "patch_embedding.bias": normal(0.3, d)}
    for name, (out, into) in linears.items():
        w |= {f"{name}.weight": normal(into**-0.5, out, into), f"{name}.bias": normal(0.3, out)}
    for name, width in norms.items():
        w |= {f"{name}.weight": 1 + normal(0.3, width), f"{name}.bias": normal(0.3, width)}
    w |= {f"{name}.weight": 1 + normal(0.3, d) for name in scales}
    w |= {name: normal(1.0, *shape) for name, shape in tables.items()}
    for name, (into, out) in categories.items():
        w |= {f"{name}.W": normal(into**-0.5, 1, into, out), f"{name}.b": normal(0.3, 1, out)}
    return w


def make_inputs(config: dict[str, Any], generator: torch.Generator, batch_size: int = 2) -> Tensors:
    """Returns the arguments of ``forward``, by name, and the target."""
    t, h, w = (size * step for size, step in zip(GRID, PATCH, strict=True))
    num_actions = BLOCKS * config["num_action_per_block"]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn((batch_size, *shape), generator=generator)

    frames = 1000 * torch.rand((batch_size, t), generator=generator)
    frames[0, 1] = 999.0
    return {
        "x": normal(3, t, h, w),
        "clean_x": normal(3, t, h, w),
        "y": normal(config["in_dim"] - 3, t, h, w),
        "timestep": frames,
        "timestep_action": 1000 * torch.rand((batch_size, num_actions), generator=generator),
        "action": normal(num_actions, config["action_dim"]),
        "state": normal(BLOCKS * config["num_state_per_block"], config["max_state_dim"]),
        "context": normal(config["text_len"], config["text_dim"]),
        "clip_feature": normal(IMAGE_TOKENS, config["image_dim"]),
        "target": normal(config["out_dim"] * t * h * w + num_actions * config["action_dim"]),
    }


def visible(config: dict[str, Any]) -> torch.Tensor:
    """Returns bool [n n]: who sees whom among clean | noisy | actions | states, written out token by token."""
    per_frame = GRID[1] * GRID[2]

    def tokens(kind: str) -> list[tuple[str, int, int]]:
        if kind in ("clean", "noisy"):
            frames = [0] + [1 + i // config["num_frame_per_block"] for i in range(GRID[0] - 1)]
            return [(kind, block, 0) for block in frames for _ in range(per_frame)]
        count = config[f"num_{kind}_per_block"]
        return [(kind, 1 + block, 0) for block in range(BLOCKS) for _ in range(count)]

    sequence = [token for kind in ("clean", "noisy", "action", "state") for token in tokens(kind)]
    mask = torch.zeros(len(sequence), len(sequence), dtype=torch.bool)
    for i, (query, at, _) in enumerate(sequence):
        for j, (key, of, _) in enumerate(sequence):
            if query == "clean":
                mask[i, j] = key == "clean" and (j <= i or at == of == 0)
            elif query == "state" or (query == "noisy" and at == 0):
                mask[i, j] = key == query and of == at
            else:
                mask[i, j] = of < at if key == "clean" else of == at
    return mask


def rotations(config: dict[str, Any]) -> torch.Tensor:
    """Returns complex [n e/2]: three axes for video, one over all pairs for actions and states, each from 0."""
    e = config["dim"] // config["num_heads"]

    def angles(position: torch.Tensor, dims: int) -> torch.Tensor:
        return torch.outer(position.double(), 10_000.0 ** (-torch.arange(0, dims, 2).double() / dims))

    axes = torch.cartesian_prod(*(torch.arange(size) for size in GRID))
    dims = (e - 4 * (e // 6), 2 * (e // 6), 2 * (e // 6))
    video = torch.cat([angles(axes[:, i], dims[i]) for i in range(3)], dim=1)
    vectors = [angles(torch.arange(BLOCKS * config[f"num_{kind}_per_block"]), e) for kind in ("action", "state")]
    whole = torch.cat([video, video, *vectors])
    return torch.polar(torch.ones_like(whole), whole)


class Reference:
    """DreamZero's training forward pass on ``w``, the tensors by name."""

    def __init__(self, config: dict[str, Any], w: Tensors) -> None:
        self.config, self.w = config, w
        self.mask, self.rotations = visible(config), rotations(config)

    def __call__(self, inputs: Tensors) -> Tensors:
        """Returns the predictions of noisy frames and actions."""
        w, per_frame = self.w, GRID[1] * GRID[2]
        clean, noisy = (self._embed(torch.cat([inputs[name], inputs["y"]], dim=1)) for name in ("clean_x", "x"))
        actions = self._encode_actions(inputs["action"], inputs["timestep_action"])
        states = self._categories("state_encoder", inputs["state"])
        stride = actions.shape[1] // states.shape[1]
        noisy_times = inputs["timestep"].repeat_interleave(per_frame, dim=1)
        times = [torch.zeros_like(noisy_times), noisy_times, inputs["timestep_action"]]
        times = torch.cat([*times, inputs["timestep_action"][:, ::stride]], dim=1)
        half = self.config["freq_dim"] // 2
        angles = times[..., None] * 10_000.0 ** (-torch.arange(half).double() / half)
        e = self._mlp("time_embedding", torch.cat([angles.cos(), angles.sin()], dim=-1), F.silu)
        e0 = self._linear("time_projection.1", F.silu(e)).unflatten(-1, (6, -1))
        text = self._mlp("text_embedding", inputs["context"], lambda x: F.gelu(x, approximate="tanh"))
        image = self._norm("img_emb.proj.0", inputs["clip_feature"], 1e-5)
        image = self._linear("img_emb.proj.3", F.gelu(self._linear("img_emb.proj.1", image)))
        image = self._norm("img_emb.proj.4", image, 1e-5)
        x = torch.cat([clean, noisy, actions, states], dim=1)
        for layer in range(self.config["num_layers"]):
            x = self._block(f"blocks.{layer}.", x, e0, text, image)
        n, count = noisy.shape[1], actions.shape[1]
        shift, scale = (w["head.modulation"] + e[:, n : 2 * n, None]).unbind(2)
        patches = self._linear("head.head", self._norm("", x[:, n : 2 * n], self.config["eps"]) * (1 + scale) + shift)
        patches = patches.unflatten(1, GRID).unflatten(-1, (*PATCH, -1))
        video = torch.einsum("bthwpqrc->bctphqwr", patches).flatten(2, 3).flatten(3, 4).flatten(4, 5)
        return {
            "video_noise_pred": video,
            "action_noise_pred": self._categories("action_decoder", x[:, 2 * n : 2 * n + count]),
        }

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        w = self.w
        return F.conv3d(x, w["patch_embedding.weight"], w["patch_embedding.bias"], stride=PATCH).flatten(2).mT

    def _encode_actions(self, actions: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        half = self.config["dim"] // 2
        angles = times[..., None] * 10_000.0 ** (-torch.arange(half).double() / half)
        lifted = self._category("action_encoder.W1", actions)
        mixed = self._category("action_encoder.W2", torch.cat([lifted, angles.sin(), angles.cos()], dim=-1))
        return self._category("action_encoder.W3", F.silu(mixed))

    def _categories(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._category(f"{name}.layer2", F.relu(self._category(f"{name}.layer1", x)))

    def _category(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w[f"{name}.W"][0] + self.w[f"{name}.b"][0]

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def _mlp(self, name: str, x: torch.Tensor, activation: Any) -> torch.Tensor:
        return self._linear(f"{name}.2", activation(self._linear(f"{name}.0", x)))

    def _norm(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w.get(f"{name}.weight"), self.w.get(f"{name}.bias"), eps)

    def _heads(self, name: str, x: torch.Tensor, norm: str = "") -> torch.Tensor:
        """Returns [b k n e]; normed over the full width before the heads are split."""
        x = self._linear(name, x)
        if norm:
            x = F.rms_norm(x, x.shape[-1:], self.w[f"{norm}.weight"], self.config["eps"])
        return x.unflatten(-1, (self.config["num_heads"], -1)).transpose(1, 2)

    def _rotated(self, heads: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.rotations).flatten(-2)

    def _block(
        self, block: str, x: torch.Tensor, e0: torch.Tensor, text: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        e, eps = (self.w[f"{block}modulation"] + e0).unbind(2), self.config["eps"]
        name = f"{block}self_attn."
        h = self._norm("", x, eps) * (1 + e[1]) + e[0]
        q, k = (self._rotated(self._heads(name + part, h, f"{name}norm_{part}")) for part in "qk")
        out = F.scaled_dot_product_attention(q, k, self._heads(f"{name}v", h), attn_mask=self.mask)
        x = x + self._linear(f"{name}o", out.transpose(1, 2).flatten(2)) * e[2]
        name = f"{block}cross_attn."
        q = self._heads(f"{name}q", self._norm(f"{block}norm3", x, eps), f"{name}norm_q")
        out = F.scaled_dot_product_attention(
            q, self._heads(f"{name}k", text, f"{name}norm_k"), self._heads(f"{name}v", text)
        )
        keys = self._heads(f"{name}k_img", image, f"{name}norm_k_img")
        out = out + F.scaled_dot_product_attention(q, keys, self._heads(f"{name}v_img", image))
        x = x + self._linear(f"{name}o", out.transpose(1, 2).flatten(2))
        h = self._norm("", x, eps) * (1 + e[4]) + e[3]
        return x + self._mlp(f"{block}ffn", h, lambda y: F.gelu(y, approximate="tanh")) * e[5]


def write(folder: Path, config: dict[str, Any], seed: int) -> None:
    """Writes one fixture."""
    generator = torch.Generator().manual_seed(seed)
    tensors, inputs = make_tensors(config, generator), make_inputs(config, generator)
    parameters = {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}
    found = Reference(config, parameters)({name: tensor.double() for name, tensor in inputs.items()})
    out = torch.cat([part.flatten(1) for part in found.values()], dim=1)
    loss = F.mse_loss(out, inputs["target"].double())
    loss.backward()
    gradients = {name: p.grad.float().contiguous() for name, p in parameters.items() if p.grad is not None}
    assert gradients.keys() == tensors.keys()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors")
    save_file(gradients, folder / "grads.safetensors")
    np.savez_compressed(folder / "inputs.npz", allow_pickle=False, **{k: v.numpy() for k, v in inputs.items()})
    outputs = {**found, "out": out, "loss": loss}
    arrays = {name: value.detach().float().numpy() for name, value in outputs.items()}
    np.savez_compressed(folder / "outputs.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dreamzero", CONFIG, seed=0)
