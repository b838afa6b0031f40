"""Seconds of one UMT5 forward pass, against transformers' in the same run.

    python benchmarks/umt5_forward.py [--rounds=5] [--tokens=512] [--threads=2]

A quarter of UMT5-XXL's width, a third of its layers and a small vocabulary, fp32, random weights, one prompt of which a
fifth is padding. The two run in turn; the ratio is of their fastest runs. Does nothing without torch and transformers.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from wamjax.config.encoders import Umt5Config
from wamjax.models.umt5 import Umt5Encoder

ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed runs of each.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 512, "Length of the padded prompt.", lower_bound=8)
THREADS = flags.DEFINE_integer("threads", 2, "Threads of PyTorch; JAX takes the machine's cores.", lower_bound=1)

CONFIG = Umt5Config(vocab_size=1000, width=1024, num_layers=8, num_heads=16, head_dim=64, ffn_width=2560)


def make_ours(ids: np.ndarray, mask: np.ndarray) -> Callable[[], None]:
    """Returns a run of ours, compiled."""
    graphdef, params = nnx.split(Umt5Encoder(jax.random.key(0), CONFIG))
    pure = nnx.to_pure_dict(params)
    forward = jax.jit(lambda params, ids, mask: nnx.merge(graphdef, params)(ids, mask))
    arguments = (pure, jnp.asarray(ids, jnp.int32), jnp.asarray(mask, jnp.int32))
    return lambda: jax.block_until_ready(forward(*arguments))


def make_reference(ids: np.ndarray, mask: np.ndarray, threads: int) -> Callable[[], Any]:
    """Returns a run of transformers' encoder of the same shape."""
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    torch.set_num_threads(threads)
    shape: dict[str, Any] = {
        "vocab_size": CONFIG.vocab_size,
        "d_model": CONFIG.width,
        "num_layers": CONFIG.num_layers,
        "num_heads": CONFIG.num_heads,
        "d_kv": CONFIG.head_dim,
        "d_ff": CONFIG.ffn_width,
    }
    model = UMT5EncoderModel(UMT5Config(**shape)).eval()
    arguments = (torch.from_numpy(ids), torch.from_numpy(mask))

    @torch.inference_mode()
    def run() -> None:
        model(*arguments)

    return run


def main(argv: Sequence[str]) -> None:
    """Prints seconds of each and their ratio."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not measured: the reference needs {' and '.join(missing)}, which is not installed")
        return
    rng = np.random.default_rng(0)
    ids = rng.integers(2, CONFIG.vocab_size, (1, TOKENS.value))
    mask = (np.arange(TOKENS.value) < TOKENS.value * 4 // 5).astype(np.int64)[None]
    runs = {"wamjax": make_ours(ids, mask), "transformers": make_reference(ids, mask, THREADS.value)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(ROUNDS.value + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:  # the first compiles and warms up
                seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        print(f"{name:14} fastest {min(values):7.3f} s   median {np.median(values):7.3f} s   of {len(values)}")
    print(f"wamjax / transformers = {min(seconds['wamjax']) / min(seconds['transformers']):.2f} (fastest runs)")


if __name__ == "__main__":
    app.run(main)
