"""Writes tiny random encoders and backbones as the folders in which pretrained ones are published."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tokenizers import Tokenizer, models, pre_tokenizers

from wamjax.parallel.parameters import flatten_params
from wamjax.weights.kinds.registry import find_kind
from wamjax.weights.write import write_tensors

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TEXT_WIDTH = 16  # of the golden UMT5 encoder
VAE = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 2,
    "z_dim": 2,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "latents_mean": [0.1, -0.2],
    "latents_std": [0.7, 1.6],
}


def write_part(folder: Path, config: dict[str, Any], seed: int = 0) -> None:
    """Writes a random reference checkpoint of ``config``."""
    kind = find_kind(config)
    parsed = kind.parse_config(config)
    flat = flatten_params(nnx.to_pure_dict(nnx.state(kind.build(jax.random.key(seed), parsed))))
    random, tensors = np.random.default_rng(seed), {}
    for rule in kind.rules(parsed, "diffusers"):
        array = random.normal(size=flat[rule.path].shape, scale=0.3).astype(np.float32)
        for layer, values in enumerate(array if rule.is_stacked else array[None]):
            tensors[rule.name_of(layer)] = np.asarray(rule.to_reference(values), order="C")
    folder.mkdir(parents=True)
    planned = [(name, value.dtype, value.shape) for name, value in tensors.items()]
    write_tensors(folder, kind.file_stem, planned, tensors.__getitem__, max_file_bytes=10**9)
    (folder / "config.json").write_text(json.dumps(config))


def write_encoders(folder: Path) -> Path:
    """Writes a random autoencoder, a tokenizer, and the golden encoders of text and images."""
    write_part(folder / "vae", VAE)
    write_tokenizer(folder / "tokenizer")
    for part, name in (("text_encoder", "umt5_encoder"), ("image_encoder", "clip_vision")):
        (folder / part).mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copy(GOLDEN / name / file, folder / part)
    return folder


def write_tokenizer(folder: Path) -> None:
    words = ["<pad>", "</s>", "<unk>", "a", "robot", "stacks", "cubes"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
