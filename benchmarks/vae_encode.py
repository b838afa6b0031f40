"""Seconds to encode a clip with a Wan autoencoder, against diffusers' AutoencoderKLWan in PyTorch on the same CPU.

    python benchmarks/vae_encode.py [--generation=2.1] [--frames=17] [--size=128] [--repeats=3]

Full size, random weights, the same in both (their outputs are compared first), fp32, PyTorch with as many threads as
there are cores. Runs alternate, so that what else the machine does strikes all alike, and the ratio is of the minima.
Needs torch and diffusers (parity extra); without them ours is measured alone. Both of our ways are measured: the clip
whole, and in chunks of four frames, which is what the reference does.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from wamjax.config.wan_vae import WAN_2_1_VAE, WAN_2_2_VAE, WanVaeConfig
from wamjax.flops.wan_vae import vae_encode_flops
from wamjax.weights.kinds.autoencoder_kl_wan import KIND

CONFIGS = {"2.1": WAN_2_1_VAE, "2.2": WAN_2_2_VAE}
CHUNK = 4  # frames, as in the reference


def random_tensors(config: WanVaeConfig) -> dict[str, np.ndarray]:
    """Returns random tensors by diffusers' names, of a size that keeps activations near 1."""
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: KIND.build(jax.random.key(0), config))))
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    rng = np.random.default_rng(0)
    tensors = {}
    for rule in KIND.rules(config, "diffusers"):
        shape = shapes[rule.path]
        scale = np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 0.1
        offset = 1.0 if rule.path.endswith("scale") else 0.0
        array = offset + scale * rng.standard_normal(shape, np.float32)
        tensors[rule.name] = rule.to_reference(array.astype(np.float32))
    return tensors


def our_encoders(
    config: WanVaeConfig, tensors: dict[str, np.ndarray], video: np.ndarray
) -> dict[str, Callable[[], np.ndarray]]:
    """Returns our encoders of ``video`` ``[b c f H W]``, by name; each returns moments ``[b c t h w]``."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: KIND.build(jax.random.key(0), config)))
    paths, treedef = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    arrays = {rule.path: jnp.asarray(rule.to_ours(tensors[rule.name])) for rule in KIND.rules(config, "diffusers")}
    leaves = [arrays[jax.tree_util.keystr(path, simple=True, separator=".")] for path, _ in paths]
    params, clip = jax.tree.unflatten(treedef, leaves), jnp.asarray(video.transpose(0, 2, 3, 4, 1))

    def encoder(chunk: int | None) -> Callable[[], np.ndarray]:
        @jax.jit
        def encode(params: Any, clip: jax.Array) -> jax.Array:
            model: Any = nnx.merge(graphdef, params)
            return jnp.concatenate(model.encode(clip, chunk=chunk), axis=-1)

        return lambda: np.asarray(encode(params, clip)).transpose(0, 4, 1, 2, 3)

    return {"wamjax, whole clip": encoder(None), f"wamjax, {CHUNK} frames at a time": encoder(CHUNK)}


def reference_encoder(
    config: WanVaeConfig, tensors: dict[str, np.ndarray], video: np.ndarray, threads: int
) -> tuple[str, Callable[[], np.ndarray]]:
    """Returns the reference's name with versions, and its encoder."""
    import diffusers
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    torch.set_num_threads(threads)
    model = AutoencoderKLWan(
        base_dim=config.base_width,
        decoder_base_dim=config.decoder_base_width,
        z_dim=config.latent_channels,
        latents_mean=list(config.latents_mean),
        latents_std=list(config.latents_std),
        is_residual=config.has_level_shortcuts,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        patch_size=config.patch_size,
    ).eval()
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    clip = torch.from_numpy(video)

    def encode() -> np.ndarray:
        with torch.inference_mode():
            return model.encode(clip, return_dict=False)[0].parameters.numpy()

    return f"diffusers {diffusers.__version__}, torch {torch.__version__}", encode


def main(argv: list[str]) -> None:
    """Measures and prints the table."""
    del argv
    values, threads = flags.FLAGS, len(os.sched_getaffinity(0))
    config, frames, size = CONFIGS[values.generation], values.frames, values.size
    config.check_clip(frames, size, size)
    video = np.random.default_rng(1).uniform(-1.0, 1.0, (1, 3, frames, size, size)).astype(np.float32)
    tensors = random_tensors(config)
    encoders = our_encoders(config, tensors, video)
    reference = None
    if importlib.util.find_spec("diffusers") and importlib.util.find_spec("torch"):
        reference, encode = reference_encoder(config, tensors, video, threads)
        encoders[reference] = encode
    else:
        print("torch or diffusers is not installed (parity extra): no reference to compare with")
    outputs = {name: encode() for name, encode in encoders.items()}  # also compiles
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(values.repeats):
        for name, encode in encoders.items():
            start = time.perf_counter()
            encode()
            seconds[name].append(time.perf_counter() - start)
    flops = vae_encode_flops(config, frames, size, size)
    print(
        f"Wan {values.generation} autoencoder, encode {frames}x{size}x{size}, fp32, {flops / 1e12:.3f} TFLOP, "
        f"{threads} cores of {platform.machine()}, jax {jax.__version__}, minimum of {values.repeats} alternating runs"
    )
    print(f"{'':44s}{'s':>9s}{'GFLOP/s':>10s}{'x reference':>13s}{'difference':>12s}")
    for name, runs in seconds.items():
        ratio, difference = "", ""
        if reference is not None:
            ratio = f"{min(runs) / min(seconds[reference]):.2f}"
            difference = f"{np.abs(outputs[name] - outputs[reference]).max():.1e}"
        print(f"{name:44s}{min(runs):9.2f}{flops / min(runs) / 1e9:10.1f}{ratio:>13s}{difference:>12s}")


if __name__ == "__main__":
    flags.DEFINE_enum("generation", "2.1", sorted(CONFIGS), "Which autoencoder.")
    flags.DEFINE_integer("frames", 17, "Frames of the clip: 4 n + 1.", lower_bound=1)
    flags.DEFINE_integer("size", 128, "Height and width in pixels.", lower_bound=16)
    flags.DEFINE_integer("repeats", 3, "Runs of each, alternating.", lower_bound=1)
    app.run(main)
