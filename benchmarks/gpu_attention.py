"""On one GPU: attention on a layout against dense attention with a mask, and a Wan 1.3B step against diffusers.

    python benchmarks/gpu_attention.py [--rounds=10] [--reference_python=/path/to/python]

1. DreamZero's layout (15,940 tokens, 30 % of the pairs seen), 40 heads of 128, bf16, forward and backward: cuDNN on the
   layout's rectangles against cuDNN with the layout's mask.
2. A training step (forward, backward, AdamW; fp32 weights and moments, bf16 compute) of Wan 2.1's 1.3B transformer on
   one clip of 33 frames at 480 x 832, 14,040 tokens: seconds, and MFU against the card's listed dense bf16 peak. Where
   torch and diffusers are there, the same step of WanTransformer3DModel (autocast, fused AdamW, torch.compile, its
   scaled_dot_product_attention) on the same shapes. Both count the same model FLOPs.

The sides of a comparison run in turn, a step each, and ratios are of medians. Without a GPU it says so and ends.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags

SIDES = ("wamjax", "diffusers")
LATENT_GRID, TEXT_TOKENS = (9, 60, 104), 512  # 33 frames of 480 x 832 in Wan's latents: 9 x 30 x 52 tokens
DREAMZERO = {"num_blocks": 4, "frames_per_block": 2, "grid": (22, 40), "actions_per_block": 24, "states_per_block": 1}
HEADS, HEAD_DIM = 40, 128


def compare_attention(rounds: int, implementation: Any = "cudnn", sizes: Any = None, heads: int = HEADS) -> str:
    """Returns a line: seconds of attention on the layout, of dense attention with its mask, and their ratio."""
    import jax
    import jax.numpy as jnp

    from wamjax.layout import joint_layout
    from wamjax.nn.cudnn import attend_cudnn

    layout = joint_layout(**(sizes or DREAMZERO), pad_multiple=2)  # cuDNN's masks have even sides
    schedule, mask = layout.full_pass().schedule, jnp.asarray(layout.dense_mask())
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (1, heads, layout.num_tokens, HEAD_DIM)
    inputs = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]

    def dense(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        operands = (jnp.swapaxes(part, 1, 2) for part in (q, k, v))
        out = jax.nn.dot_product_attention(*operands, mask=mask[None, None], implementation=implementation)
        return jnp.swapaxes(out, 1, 2)

    def both_passes(attend: Callable[..., jax.Array]) -> Callable[[], Any]:
        def run(q: jax.Array, k: jax.Array, v: jax.Array, grad: jax.Array) -> Any:
            out, pull = jax.vjp(attend, q, k, v)
            return out, pull(grad)

        compiled = jax.jit(run)
        return lambda: jax.block_until_ready(compiled(*inputs))

    sides = {
        "layout": both_passes(lambda q, k, v: attend_cudnn(q, k, v, schedule, implementation=implementation)),
        "dense with mask": both_passes(dense),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if round_:  # the first compiles
                seconds[name].append(time.perf_counter() - started)
    ours, theirs = (statistics.median(seconds[name]) for name in sides)
    return (
        f"attention, {layout.num_tokens} tokens, {layout.num_pairs / layout.num_tokens**2:.1%} of the pairs seen, "
        f"{heads} heads x {HEAD_DIM}, bf16, both passes, median of {rounds}: layout {1e3 * ours:.2f} ms, dense with "
        f"mask {1e3 * theirs:.2f} ms, x {theirs / ours:.2f}"
    )


def make_config(preset: Any = None, clip: Any = None) -> Any:
    """Returns the run whose training step is measured."""
    import dataclasses

    from wamjax.config.presets import WAN_2_1_T2V_1_3B
    from wamjax.config.schema import (
        ClipConfig,
        LayoutConfig,
        ObjectiveConfig,
        OptimizerConfig,
        ParallelConfig,
        RunConfig,
        TrainConfig,
    )

    preset = preset or WAN_2_1_T2V_1_3B
    block = dataclasses.replace(preset.block, compute_dtype="bfloat16")
    return RunConfig(
        backbone=dataclasses.replace(preset, block=block, remat="none"),
        clip=clip or ClipConfig(num_frames=33, height=480, width=832, text_tokens=TEXT_TOKENS),
        layout=LayoutConfig(formulation="video", pad_multiple=8),
        objective=ObjectiveConfig(shift=5.0, weighting="gaussian"),
        optimizer=OptimizerConfig(ema_decay=0.0),
        parallel=ParallelConfig(fsdp=1),
        train=TrainConfig(num_steps=1000, global_batch_size=1),
    )


def start_ours(config: Any) -> tuple[str, int, Callable[[], float]]:
    """Returns versions, model FLOPs of a step, and a training step that returns its loss."""
    import jax

    from wamjax.batch import fake_batch
    from wamjax.flops.model import count_flops
    from wamjax.parallel.mesh import build_mesh, make_global_batch
    from wamjax.training.program import build_program

    mesh = build_mesh(config.parallel, jax.devices()[:1], batch_size=config.train.part_size)
    program = build_program(config, mesh)
    state, batch = [program.init()], make_global_batch(fake_batch(config, 1), mesh)

    def step() -> float:
        state[0], metrics = program.step(state[0], batch)
        jax.block_until_ready(state[0])
        return float(metrics["loss/total"])

    return f"jax {jax.__version__}", sum(count_flops(config, program.layout).model.values()), step


def start_reference() -> tuple[str, int, Callable[[], float]]:
    """Returns what ``start_ours`` does, of diffusers' model; it counts no FLOPs."""
    import diffusers
    import torch
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, text_dim=4096
    )
    model = model.to("cuda").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    compiled = torch.compile(model)
    latents = torch.randn(1, 16, *LATENT_GRID, device="cuda")
    text = torch.randn(1, TEXT_TOKENS, 4096, device="cuda")
    target, times = torch.randn_like(latents), torch.tensor([500.0], device="cuda")

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            out = compiled(latents, times, text, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(out.float(), target)
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()
        return float(loss.detach())

    return f"diffusers {diffusers.__version__}, torch {torch.__version__}", 0, step


def serve(side: str) -> None:
    """Takes a step for every line of standard input, answering with one line of JSON."""
    versions, flops, step = start_ours(make_config()) if side == "wamjax" else start_reference()
    print(json.dumps({"versions": versions, "flops": flops}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        loss = step()
        print(json.dumps({"seconds": time.perf_counter() - started, "loss": loss}), flush=True)


class Side:
    """One side in its process; both share the card's memory, so that JAX takes none ahead."""

    def __init__(self, name: str, python: str) -> None:
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = [python, __file__, f"--side={name}"]
        self.name, self.seconds = name, []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        start = self._answer()
        self.versions, self.flops = start["versions"], start["flops"]

    def step(self, *, is_timed: bool) -> None:
        """Takes one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        if is_timed:
            self.seconds.append(answer["seconds"])

    def finish(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended with status {self._process.wait()}; see its error")
        return json.loads(line)


def has_reference(python: str) -> bool:
    """Returns whether ``python`` has torch and diffusers."""
    test = "import importlib.util as u, sys; sys.exit(not (u.find_spec('torch') and u.find_spec('diffusers')))"
    return subprocess.run([python, "-c", test], check=False).returncode == 0


def compare_steps(names: list[str], reference_python: str, rounds: int, device_kind: str) -> Iterator[str]:
    """Yields a line for each side's training step: seconds, MFU, and the ratio to the first."""
    from wamjax.flops.hardware import explain_unknown, peak_flops

    sides = [Side(name, reference_python if name == "diffusers" else sys.executable) for name in names]
    for round_ in range(rounds + 2):
        for side in sides:
            side.step(is_timed=round_ >= 2)  # the first compile and warm up
    for side in sides:
        side.finish()
    flops, peak = sides[0].flops, peak_flops(device_kind, "bfloat16")
    if peak is None:
        yield explain_unknown(device_kind, "bfloat16")
    for side in sides:
        median = statistics.median(side.seconds)
        mfu = "" if peak is None else f", MFU {flops / median / peak:.1%} of {peak / 1e12:g} TFLOP/s"
        ratio = median / statistics.median(sides[0].seconds)
        yield (
            f"training step of Wan 1.3B, 33 frames of 480 x 832, batch 1, {flops / 1e12:.1f} model TFLOP, {side.name} "
            f"({side.versions}), median of {rounds}: {median:.3f} s{mfu}, x {ratio:.2f} of ours"
        )


def main(argv: list[str]) -> None:
    """Measures and prints, or is one side."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    values = flags.FLAGS
    if values.side:
        serve(values.side)
        return
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax

    device = jax.devices()[0]
    if device.platform != "gpu":
        print(f"gpu_attention.py measures a GPU, and JAX sees {device.device_kind} only: nothing measured")
        return
    print(f"{device.device_kind}, jax {jax.__version__}")
    print(compare_attention(values.rounds), flush=True)
    names: list[str] = list(SIDES)
    if not has_reference(values.reference_python):
        print(f"{values.reference_python} has no torch or diffusers (parity extra): no reference to compare with")
        names.remove("diffusers")
    for line in compare_steps(names, values.reference_python, values.rounds, device.device_kind):
        print(line)


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 10, "Timed rounds of each side.", lower_bound=1)
    flags.DEFINE_string("reference_python", sys.executable, "Python that has torch and diffusers.")
    flags.DEFINE_enum("side", None, SIDES, "Be one side (the benchmark starts itself so).")
    app.run(main)
