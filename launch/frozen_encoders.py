"""The frozen encoders of a backbone's inputs: autoencoder, text encoder, image encoder, loaded and compiled once.

Owns their loading, their fingerprints, what they cost, and the check that they give what the backbone reads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.image_preprocessing import preprocess_images
from data_pipelines.text.embedding_cache import encoder_fingerprint
from data_pipelines.text.tokenizer import PromptTokenizer
from launch.pipeline_folder import Part, load_part, weights_hash
from wamjax.batch import WamBatch
from wamjax.config.backbone import VideoTransformerConfig
from wamjax.config.clip import latent_grid
from wamjax.config.encoders import ClipVisionConfig, Umt5Config
from wamjax.config.schema import RunConfig
from wamjax.config.wan_vae import WanVaeConfig
from wamjax.errors import ConfigError, DataError
from wamjax.flops.encoders import clip_vision_flops, encoder_flops, umt5_flops
from wamjax.flops.wan_vae import vae_encode_flops
from wamjax.models.umt5 import pad_prompts
from wamjax.parallel.mesh import batch_sharding, replicated
from wamjax.sampling.generate import ClipShape, condition_on_frame, takes_condition_channels


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
      fingerprints: Hash of weights, configuration and dtype by encoder.
      flops_per_run: FLOPs of one forward pass by encoder.
      clips_per_window: Clips the autoencoder is given for one window: two with condition channels.
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
        assert config.backbone is not None, "the small model has no encoders"
        self._config, self._mesh, self._chunk = config, mesh, chunk_frames
        self._backbone: VideoTransformerConfig = config.backbone
        if (folders.image is None) != (self._backbone.image_width is None):
            hint = (
                "needs --image_encoder" if folders.image is None else "has no image branch; leave --image_encoder out"
            )
            raise ConfigError(f"config.backbone.image_width={self._backbone.image_width}: the backbone {hint}")
        self._vae = _load(folders.vae, "--vae", WanVaeConfig, mesh, "float32")
        self._text = _load(folders.text, "--text_encoder", Umt5Config, mesh, dtype)
        self._tokenizer = PromptTokenizer(folders.tokenizer, config.clip.text_tokens)
        self._image = (
            None if folders.image is None else _load(folders.image, "--image_encoder", ClipVisionConfig, mesh, dtype)
        )
        self._check_latents()
        self.clips_per_window = 2 if takes_condition_channels(self._backbone) else 1
        self.flops_per_run = self._count_flops()
        self.fingerprints = {"vae": _fingerprint(folders.vae, self._vae, chunk=str(chunk_frames))}
        self.fingerprints["text"] = _fingerprint(folders.text, self._text, tokenizer=self._tokenizer.fingerprint)
        if folders.image is not None and self._image is not None:
            self.fingerprints["image"] = _fingerprint(folders.image, self._image)
        self._encode_clips = jax.jit(self._clips, in_shardings=(None, batch_sharding(mesh)))

    def encode_windows(self, batch: WamBatch) -> Mapping[str, npt.NDArray[Any]]:
        """Returns ``latents`` and, where the backbone reads them, ``condition`` and ``image`` of windows with video."""
        encoded = {key: np.asarray(value) for key, value in self._encode_clips(self._vae.params, batch.video).items()}
        if self._image is not None:
            pixels = preprocess_images(list(batch.video[:, 0]), self._image.config.image_size)
            encoded["image"] = np.asarray(self._encode_images(self._image.params, pixels))
        return encoded

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

    def _clips(self, params: Any, video: jax.Array) -> dict[str, jax.Array]:
        """Returns normalised latents (their mode) and the condition, in bfloat16."""
        vae = nnx.merge(self._vae.graphdef, params)
        pixels = video.astype(jnp.float32) / 127.5 - 1.0
        arrays = {"latents": vae.normalise(vae.encode(pixels, chunk=self._chunk).mean)}
        if self.clips_per_window == 2 and self._config.layout.formulation != "video":
            clip = self._config.clip
            shape = ClipShape(frames=clip.num_frames, height=clip.height, width=clip.width)
            arrays["condition"] = condition_on_frame(vae, self._backbone, shape, pixels[:, 0], None).channels
        return {key: value.astype(jnp.bfloat16) for key, value in arrays.items()}

    @functools.cached_property
    def _encode_images(self) -> Callable[..., jax.Array]:
        assert self._image is not None, "checked by the caller"
        graphdef = self._image.graphdef

        def encode(params: Any, pixels: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params)(pixels).penultimate.astype(jnp.bfloat16)

        return jax.jit(encode, in_shardings=(None, batch_sharding(self._mesh)))

    @functools.cached_property
    def _encode_tokens(self) -> Callable[..., jax.Array]:
        graphdef = self._text.graphdef

        def encode(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
            hidden = nnx.merge(graphdef, params)(ids, mask)
            return pad_prompts(hidden, mask, ids.shape[1]).astype(jnp.bfloat16)

        everywhere = replicated(self._mesh)
        return jax.jit(encode, in_shardings=(None, everywhere, everywhere))

    def _check_latents(self) -> None:
        """Raises ``ConfigError`` unless the autoencoder's latents are the backbone's."""
        vae: WanVaeConfig = self._vae.config
        stride = (vae.temporal_compression, vae.spatial_compression, vae.spatial_compression)
        for name, wanted, found in (
            ("config.clip.stride", self._config.clip.stride, stride),
            ("config.backbone.out_channels", self._backbone.out_channels, vae.latent_channels),
        ):
            if wanted != found:
                raise ConfigError(f"{name}={wanted} and the autoencoder --vae gives {found}: name the backbone's own")
        latent_grid(self._config)

    def _count_flops(self) -> dict[str, int]:
        """Returns FLOPs by encoder; refuses encoders of other widths than the backbone reads."""
        clip, image = self._config.clip, None if self._image is None else self._image.config
        encoder_flops(
            self._config, vae=self._vae.config, text=self._text.config, **({} if image is None else {"image": image})
        )
        counts = {
            "vae": vae_encode_flops(self._vae.config, clip.num_frames, clip.height, clip.width),
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


def _load(folder: Path, flag: str, kind: type, mesh: Mesh, dtype: str) -> Part:
    if not folder.is_dir():
        raise DataError(f"{flag}={folder} is not a folder; expected a checkpoint or what wamjax weights import made")
    part = load_part(folder, mesh, dtype)
    if not isinstance(part.config, kind):
        raise ConfigError(f"{flag}={folder} holds another kind of model ({type(part.config).__name__})")
    return part


def _fingerprint(folder: Path, part: Part, **more: str) -> str:
    """Returns the hash of what an encoder's outputs depend on besides its inputs."""
    config = {**dataclasses.asdict(part.config), **more}
    return encoder_fingerprint(
        weights=weights_hash(folder),
        config=config,
        tokenizer=more.get("tokenizer", ""),
        dtype=part.config.compute_dtype,
    )
