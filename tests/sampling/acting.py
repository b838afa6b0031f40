"""What the tests of policies share: the tiny twin of a system, random parameters, a codec, and rollouts."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch.experiment import load_experiment
from wamjax.config.pixel_windows import num_pictures
from wamjax.config.schema import RunConfig
from wamjax.config.twin import tiny_twin
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.sampling.build import BackbonePolicy, build_policy
from wamjax.sampling.policy import Chunk, PromptTable
from wamjax.types import PureDict

SYSTEMS = Path(__file__).resolve().parents[2] / "experiments/systems"
SILENT = ("summer_22b", "unipi")  # video alone
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


class Features:
    """Tokens of a frozen image encoder: the pixels' means over patches, as often as they fit."""

    def __init__(self, config: RunConfig) -> None:
        assert config.gpt is not None
        self.gpt = config.gpt

    def encode_pictures(self, pictures: Any) -> np.ndarray:
        size, width = self.gpt.patch_size, self.gpt.image_width
        pixels = np.asarray(pictures, np.float32) / 127.5 - 1.0
        rows = pixels.shape[2] // size
        patches = (
            pixels.reshape(*pixels.shape[:2], rows, size, rows, size, 3)
            .mean((3, 5))
            .reshape(*pixels.shape[:2], rows**2, 3)
        )
        tokens = np.tile(patches, -(-width // 3))[..., :width]
        return np.concatenate([tokens.mean(2, keepdims=True), tokens], axis=2)


class Written:
    """Prompts as token ids: the task, then what its state is above zero in; the last is padding."""

    num_prompts = 2

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def __call__(self, prompt_id: Any, state: Any) -> np.ndarray:
        words = np.concatenate([np.asarray(prompt_id)[:, None] + 5, 7 + (np.asarray(state) > 0)], axis=1)
        ids = np.full((len(words), self.num_tokens), -1, np.int32)
        count = min(words.shape[1], self.num_tokens - 1)
        ids[:, :count] = words[:, :count]
        return ids


def make_policy(config: RunConfig, **options: Any) -> BackbonePolicy:
    if config.vla is not None:
        writer = Written(config.vla.text_tokens)
        return build_policy(config, random_params(config), codec=None, prompts=writer, **options)
    if config.gpt is not None:
        text = np.random.default_rng(1).normal(size=(2, 1, config.gpt.text_width)).astype(np.float32)
        table = PromptTable(text=text)
        return build_policy(config, random_params(config), codec=Features(config), prompts=table, **options)
    assert config.backbone is not None
    text = np.random.default_rng(1).normal(size=(2, config.clip.text_tokens, config.backbone.text_width))
    prompts = PromptTable(text=text.astype(np.float32), negative=text[0].astype(np.float32) * 0.5)
    return build_policy(config, random_params(config), codec=PooledCodec(config), prompts=prompts, **options)


def expected_frames(config: RunConfig) -> list[int]:
    """Frames that one rollout's observations have: the first frame, then those of the executed chunks."""
    sizes, stride = config.layout, config.clip.stride[0]
    if num_pictures(config):
        return [num_pictures(config)] * (2 if config.gpt is None else sizes.num_blocks + 2)
    per_chunk = sizes.frames_per_block * stride
    first = per_chunk - stride if sizes.formulation == "alternating" else per_chunk
    return [1, first, *([per_chunk] * sizes.num_blocks)]


def frame_size(config: RunConfig) -> tuple[int, int]:
    """Height and width of a frame that a policy is shown."""
    if config.vla is not None:
        return config.vla.vision.image_size, config.vla.vision.image_size
    if config.gpt is not None:
        return config.gpt.image_size, config.gpt.image_size
    return config.clip.height, config.clip.width


def roll_out(policy: BackbonePolicy, config: RunConfig) -> list[Chunk]:
    """Two rollouts side by side, long enough that the window is cut."""
    rng = np.random.default_rng(2)
    policy.reset(np.array([1, 0], np.int32))
    chunks = []
    for turn, count in enumerate(expected_frames(config)):
        frames = rng.integers(0, 256, (2, count, *frame_size(config), 3), dtype=np.uint8)
        policy.observe(frames, rng.uniform(-1, 1, (2, config.data.state_dim)).astype(np.float32))
        chunks.append(policy.act(jax.random.key(turn)))
    return chunks
