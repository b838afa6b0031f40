"""The frozen encoders of a backbone's inputs: autoencoder, text encoder, image encoder, loaded and compiled once.

Owns the text encoder and what all of them cost; those of what is seen are ``clip_encoders``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.text.tokenizer import PromptTokenizer
from launch.clip_encoders import ClipEncoders, fingerprint_encoder, load_encoder
from wamjax.config.encoders import Umt5Config
from wamjax.config.schema import RunConfig
from wamjax.errors import DataError
from wamjax.flops.encoders import clip_vision_flops, encoder_flops, umt5_flops
from wamjax.flops.wan_vae import vae_encode_flops
from wamjax.models.umt5 import pad_prompts
from wamjax.parallel.mesh import replicated


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFolders:
    """Where the encoders lie.

    Attributes:
      vae: The autoencoder.
      text: The text encoder.
      tokenizer: Its tokenizer.
      image: The image encoder, for a backbone with an image branch.
    """

    vae: Path
    text: Path
    tokenizer: Path
    image: Path | None = None


class FrozenEncoders:
    """The encoders of one run, on a mesh; batches are split over its rows.

    Attributes:
      clips: Those of what is seen.
      fingerprints: Hash of weights, configuration and dtype by encoder.
      flops_per_run: FLOPs of one forward pass by encoder.
    """

    def __init__(
        self, folders: EncoderFolders, config: RunConfig, mesh: Mesh, *, dtype: str, chunk_frames: int | None
    ) -> None:
        """Loads the encoders that ``config`` needs.

        Args:
          folders: Where they lie.
          config: The run that will read what they make.
          mesh: Where they run.
          dtype: Dtype of the text and image encoders; the autoencoder is small and stays fp32.
          chunk_frames: Frames the autoencoder takes at a time; None takes a clip whole.

        Raises:
          ConfigError: An encoder does not give what the backbone reads, or one is missing or not needed.
          DataError: Weights cannot be read.
        """
        self._config, self._mesh = config, mesh
        self.clips = ClipEncoders(
            config, mesh, vae=folders.vae, image=folders.image, dtype=dtype, chunk_frames=chunk_frames
        )
        self._text = load_encoder(folders.text, "--text_encoder", Umt5Config, mesh, dtype)
        self._tokenizer = PromptTokenizer(folders.tokenizer, config.clip.text_tokens)
        self.flops_per_run = self._count_flops()
        text = fingerprint_encoder(folders.text, self._text, tokenizer=self._tokenizer.fingerprint)
        self.fingerprints = {**self.clips.fingerprints, "text": text}

    def encode_prompts(self, prompts: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Returns the embedding ``[length d]`` of each prompt, without padding."""
        tokens = self._tokenizer(prompts)
        for row in tokens.truncated:
            logging.warning(
                "prompt %r has more than config.clip.text_tokens=%d tokens; its end is left out",
                prompts[row][:40],
                self._tokenizer.max_tokens,
            )
        hidden = np.asarray(self._encode_tokens(self._text.params, tokens.input_ids, tokens.attention_mask))
        lengths = tokens.attention_mask.sum(axis=1)
        return [row[:length] for row, length in zip(hidden, lengths, strict=True)]

    @functools.cached_property
    def _encode_tokens(self) -> Callable[..., jax.Array]:
        graphdef = self._text.graphdef

        def encode(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
            hidden = nnx.merge(graphdef, params)(ids, mask)
            return pad_prompts(hidden, mask, ids.shape[1]).astype(jnp.bfloat16)

        everywhere = replicated(self._mesh)
        return jax.jit(encode, in_shardings=(None, everywhere, everywhere))

    def _count_flops(self) -> dict[str, int]:
        """Returns FLOPs by encoder; refuses encoders of other widths than the backbone reads."""
        clip, vae, image = self._config.clip, self.clips.vae, self.clips.image
        encoder_flops(self._config, vae=vae, text=self._text.config, **({} if image is None else {"image": image}))
        counts = {
            "vae": vae_encode_flops(vae, clip.num_frames, clip.height, clip.width),
            "text": umt5_flops(self._text.config, clip.text_tokens),
        }
        return counts if image is None else {**counts, "image": clip_vision_flops(image)}


def find_tokenizer(text_encoder: Path, named: Path | None) -> Path:
    """Returns the tokenizer's folder or file: the one named, the text encoder's own, or ``tokenizer`` beside it."""
    if named is not None:
        return named
    beside = text_encoder.parent / "tokenizer"
    has_own = any((text_encoder / name).is_file() for name in ("tokenizer.json", "spiece.model"))
    if not has_own and not beside.is_dir():
        raise DataError(
            f"--text_encoder={text_encoder} has no tokenizer, nor is there {beside}; say where with --tokenizer"
        )
    return text_encoder if has_own else beside
