"""What the tests of policies share: the tiny twin of a system, random parameters, a codec, and rollouts."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch.experiment import load_experiment
from wamjax.config.schema import RunConfig
from wamjax.config.twin import tiny_twin
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.sampling.build import BackbonePolicy, build_policy
from wamjax.sampling.policy import Chunk, PromptTable
from wamjax.types import PureDict

SYSTEMS = Path(__file__).resolve().parents[2] / "experiments/systems"
SILENT = ("gr1", "kairos_4b", "pi05_droid", "summer_22b", "unipi")  # no policy samples from them alone
ACTING = sorted({path.stem for path in SYSTEMS.glob("[!_]*.py")} - set(SILENT))


def load_twin(name: str) -> RunConfig:
    """Loads the twin of ``NAME``, or of ``NAME.py:MEMBER``."""
    return tiny_twin(load_experiment(str(SYSTEMS / (name if ":" in name else f"{name}.py"))))


def random_params(config: RunConfig, seed: int = 0) -> PureDict:
    """Random parameters, none of them zero: what starts at zero would hide what it multiplies."""
    rng = np.random.default_rng(seed)
    shapes = nnx.to_pure_dict(abstract_model(build_objective(config))[1])
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 0.2, x.shape), x.dtype), shapes)


class PooledCodec:
    """Latents that are means over time and space: cheap, and with the strides of the real autoencoders."""

    def __init__(self, config: RunConfig) -> None:
        assert config.backbone is not None
        self.backbone, self.clip, self.tokens = config.backbone, config.clip, config.clip.image_tokens

    def encode(self, video: Any) -> jax.Array:
        frames, rows, columns = self.clip.stride
        pixels = np.asarray(video, np.float32) / 127.5 - 1.0
        pixels = pixels.reshape(*pixels.shape[:2], pixels.shape[2] // rows, rows, -1, columns, 3).mean((3, 5))
        first, rest = pixels[:, :1], pixels[:, 1:]
        rest = rest.reshape(len(rest), -1, frames, *rest.shape[2:]).mean(2)
        latents = np.concatenate([first, rest], axis=1)
        return jnp.asarray(np.tile(latents, 16)[..., : self.backbone.out_channels])

    def decode(self, latents: jax.Array) -> jax.Array:
        frames, rows, columns = self.clip.stride
        pixels = np.clip(np.asarray(latents)[..., :3] * 127.5 + 127.5, 0, 255).astype(np.uint8)
        pixels = np.repeat(np.repeat(pixels, rows, axis=2), columns, axis=3)
        return jnp.asarray(np.concatenate([pixels[:, :1], np.repeat(pixels[:, 1:], frames, axis=1)], axis=1))

    def condition(self, first_frame: Any, num_latents: int) -> tuple[jax.Array | None, jax.Array | None]:
        extra = self.backbone.in_channels - self.backbone.out_channels
        if not extra:
            return None, None
        latent = np.tile(np.asarray(self.encode(first_frame)), extra)[..., :extra]
        channels = np.concatenate([latent, np.zeros_like(latent).repeat(num_latents - 1, 1)], axis=1)
        width = self.backbone.image_width
        image = None if width is None else jnp.full((len(channels), self.tokens, width), 0.1)
        return jnp.asarray(channels), image


def make_policy(config: RunConfig, **options: Any) -> BackbonePolicy:
    assert config.backbone is not None
    text = np.random.default_rng(1).normal(size=(2, config.clip.text_tokens, config.backbone.text_width))
    prompts = PromptTable(text=text.astype(np.float32), negative=text[0].astype(np.float32) * 0.5)
    return build_policy(config, random_params(config), codec=PooledCodec(config), prompts=prompts, **options)


def expected_frames(config: RunConfig) -> list[int]:
    """Frames that one rollout's observations have: the first frame, then those of the executed chunks."""
    sizes, stride = config.layout, config.clip.stride[0]
    if sizes.formulation == "latent_frames":
        return [sizes.frames_per_block] * 2
    per_chunk = sizes.frames_per_block * stride
    first = per_chunk - stride if sizes.formulation == "alternating" else per_chunk
    return [1, first, *([per_chunk] * sizes.num_blocks)]


def roll_out(policy: BackbonePolicy, config: RunConfig) -> list[Chunk]:
    """Two rollouts side by side, long enough that the window is cut."""
    rng = np.random.default_rng(2)
    policy.reset(np.array([1, 0], np.int32))
    chunks = []
    for turn, count in enumerate(expected_frames(config)):
        frames = rng.integers(0, 256, (2, count, config.clip.height, config.clip.width, 3), dtype=np.uint8)
        policy.observe(frames, rng.uniform(-1, 1, (2, config.data.state_dim)).astype(np.float32))
        chunks.append(policy.act(jax.random.key(turn)))
    return chunks
