"""Seconds and memory of one training step of a Wan transformer, against diffusers' WanTransformer3DModel in PyTorch.

    python benchmarks/transformer_step.py [--rounds=5] [--threads=2] [--reference_python=/path/to/python]

Forward, backward and AdamW on a flow-matching loss, fp32, the same random weights and batch on each side (losses are
compared step by step). Every side is a process of its own, because both want all cores and because memory is a
process's: its largest resident set less what it had after its imports. The sides run in turn, a step each, so that
what else the machine does strikes all alike, and ratios are of the fastest steps. Ours runs twice: keeping all
activations, and with remat. Without torch and diffusers in the reference's Python (parity extra), ours runs alone.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from safetensors.numpy import load_file, save_file

CONFIG = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 2048,
    "num_layers": 8,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
}
ADAMW = {"lr": 1e-4, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
LATENTS = (2, 16, 4, 32, 32)  # [b c t h w]: 1,024 tokens
TEXT_TOKENS = 64
SIDES = ("wamjax", "wamjax, remat", "diffusers")
MAX_LOSS_DIFFERENCE = (
    1e-3  # relative, over all steps; AdamW divides rounding errors of gradients near zero by themselves
)


def make_batch() -> dict[str, np.ndarray]:
    """Returns noised latents, timestep ids, text and the velocity to predict, by the reference's names."""
    rng = np.random.default_rng(1)
    clean, noise = rng.standard_normal((2, *LATENTS), np.float32)
    times = np.linspace(0.3, 0.8, LATENTS[0], dtype=np.float32)
    t = times.reshape(-1, 1, 1, 1, 1)
    return {
        "hidden_states": (1 - t) * clean + t * noise,
        "timestep": 1000 * times,
        "encoder_hidden_states": rng.standard_normal((LATENTS[0], TEXT_TOKENS, CONFIG["text_dim"]), np.float32),
        "target": noise - clean,
    }


def write_weights(folder: Path) -> int:
    """Writes random weights by diffusers' names, of a size that keeps activations near 1; returns their number."""
    import jax
    from flax import nnx

    from wamjax.weights.kinds.wan_transformer import KIND

    config = KIND.parse_config(CONFIG)
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: KIND.build(jax.random.key(0), config))))
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    rng, tensors = np.random.default_rng(0), {}
    for rule in KIND.rules(config, "diffusers"):
        layers, shape = (shapes[rule.path][0], shapes[rule.path][1:]) if rule.is_stacked else (1, shapes[rule.path])
        for layer in range(layers):
            draw = rng.standard_normal(shape, np.float32)
            draw *= 0.02
            if rule.path.endswith("scale"):
                draw += 1.0
            tensors[rule.name_of(layer)] = np.ascontiguousarray(rule.to_reference(draw))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return sum(tensor.size for tensor in tensors.values())


def start_ours(folder: Path, remat: str) -> tuple[str, int, Callable[[], float]]:
    """Returns versions, the resident bytes after imports, and a training step that returns its loss."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import optax
    from einops import rearrange
    from flax import nnx

    from wamjax.config.schema import ParallelConfig
    from wamjax.models.video_transformer import VideoTransformer
    from wamjax.parallel.host_memory import keep_freed_memory
    from wamjax.parallel.mesh import build_mesh
    from wamjax.weights.exchange import load_reference

    if remat == "none":
        keep_freed_memory()  # as `wamjax train --cpu_devices` does
    imported = resident_bytes()
    mesh = build_mesh(ParallelConfig(data=1, fsdp=-1, context=1, tensor=1))
    loaded = load_reference(folder, mesh)
    config = dataclasses.replace(loaded.config, remat=remat)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: VideoTransformer(jax.random.key(0), config)))
    optimizer = optax.adamw(
        ADAMW["lr"], b1=ADAMW["b1"], b2=ADAMW["b2"], eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"]
    )
    given = make_batch()
    batch = {name: jnp.asarray(value) for name, value in given.items()}
    for name in ("hidden_states", "target"):
        batch[name] = rearrange(batch[name], "b c t h w -> b t h w c")

    def loss_fn(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        model: VideoTransformer = nnx.merge(graphdef, params)
        out = model(batch["hidden_states"], batch["timestep"], batch["encoder_hidden_states"])
        return jnp.mean(jnp.square(out - batch["target"]))

    def train_step(params: Any, opt: Any, batch: dict[str, jax.Array]) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, loss

    compiled = jax.jit(train_step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, loaded.params)  # loading filled memory of the host, which no step may write to
    del loaded
    state = [params, optimizer.init(params)]
    del params

    def step() -> float:
        *state[:], loss = jax.block_until_ready(compiled(*state, batch))
        return float(loss)

    return f"jax {jax.__version__}", imported, step


def start_reference(folder: Path, threads: int) -> tuple[str, int, Callable[[], float]]:
    """Returns what ``start_ours`` does, of diffusers' model."""
    import diffusers
    import torch
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    torch.set_num_threads(threads)
    imported = resident_bytes()
    model = WanTransformer3DModel(**{name: value for name, value in CONFIG.items() if not name.startswith("_")}).train()
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    model.load_state_dict({name: torch.from_numpy(weights.pop(name)) for name in list(weights)})
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=ADAMW["lr"],
        betas=(ADAMW["b1"], ADAMW["b2"]),
        eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
    )
    batch = {name: torch.from_numpy(value) for name, value in make_batch().items()}
    target = batch.pop("target")

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(**batch, return_dict=False)[0], target)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return f"diffusers {diffusers.__version__}, torch {torch.__version__}", imported, step


def serve(side: str, folder: Path, threads: int) -> None:
    """Takes a step for every line of standard input, answering with one line of JSON; last, its peak memory."""
    if side == "diffusers":
        versions, imported, step = start_reference(folder, threads)
    else:
        versions, imported, step = start_ours(folder, "attention" if side == "wamjax, remat" else "none")
    print(json.dumps({"versions": versions}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        loss = step()
        print(json.dumps({"seconds": time.perf_counter() - started, "loss": loss}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - imported
    print(json.dumps({"peak_bytes": peak}), flush=True)


def resident_bytes() -> int:
    """Returns the resident set of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Side:
    """One side in its process."""

    def __init__(self, name: str, python: str, folder: Path, threads: int) -> None:
        command = [python, __file__, f"--side={name}", f"--weights={folder}", f"--threads={threads}"]
        self.name, self.seconds, self.losses, self.peak_bytes = name, [], [], 0
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()["versions"]

    def step(self, *, is_timed: bool) -> None:
        """Takes one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.losses.append(answer["loss"])
        if is_timed:
            self.seconds.append(answer["seconds"])

    def finish(self) -> None:
        """Ends the process and takes its peak memory."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.peak_bytes = self._answer()["peak_bytes"]
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


def report(sides: list[Side], num_params: int) -> Iterator[str]:
    """Yields the lines of the table."""
    batch, _, frames, height, width = LATENTS
    tokens = frames * height * width // 4
    yield (
        f"{num_params / 1e6:.1f} M parameters, batch {batch} of {tokens} tokens and {TEXT_TOKENS} of text, fp32, "
        f"{len(os.sched_getaffinity(0))} cores of {platform.machine()}, fastest of {len(sides[0].seconds)} steps each"
    )
    reference = next((side for side in sides if side.name == "diffusers"), None)
    yield f"{'':54s}{'s/step':>8s}{'x':>7s}{'peak MB':>10s}{'x':>7s}{'last loss':>12s}"
    for side in sides:
        time_ratio = memory_ratio = ""
        if reference is not None:
            time_ratio = f"{min(side.seconds) / min(reference.seconds):.2f}"
            memory_ratio = f"{side.peak_bytes / reference.peak_bytes:.2f}"
        yield (
            f"{f'{side.name} ({side.versions})':54s}{min(side.seconds):8.2f}{time_ratio:>7s}"
            f"{side.peak_bytes / 1e6:10.0f}{memory_ratio:>7s}{side.losses[-1]:12.6f}"
        )
    for side in sides:
        difference = float(np.max(np.abs(np.divide(side.losses, sides[0].losses) - 1.0)))
        if difference > MAX_LOSS_DIFFERENCE:
            yield f"losses of {side.name} and {sides[0].name} differ by {difference:.1e}: the sides do not do the same"


def main(argv: list[str]) -> None:
    """Measures and prints the table, or is one side."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    values = flags.FLAGS
    if values.side:
        serve(values.side, Path(values.weights), values.threads)
        return
    python = {side: values.reference_python if side == "diffusers" else sys.executable for side in SIDES}
    names = list(SIDES)
    if not has_reference(values.reference_python):
        print(f"{values.reference_python} has no torch or diffusers (parity extra): no reference to compare with")
        names.remove("diffusers")
    with tempfile.TemporaryDirectory() as folder:
        num_params = write_weights(Path(folder))
        sides = [Side(name, python[name], Path(folder), values.threads) for name in names]
        for round_ in range(values.rounds + 1):
            for side in sides:
                side.step(is_timed=round_ > 0)  # the first compiles and warms up
        for side in sides:
            side.finish()
    for line in report(sides, num_params):
        print(line)


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 5, "Timed steps of each side.", lower_bound=1)
    flags.DEFINE_integer("threads", 2, "Threads of PyTorch; JAX takes the machine's cores.", lower_bound=1)
    flags.DEFINE_string("reference_python", sys.executable, "Python that has torch and diffusers.")
    flags.DEFINE_enum("side", None, SIDES, "Be one side (the benchmark starts itself so).")
    flags.DEFINE_string("weights", None, "Folder of the weights that a side loads.")
    app.run(main)
