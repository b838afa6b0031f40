"""The frozen encoders of what is seen: the video autoencoder and, for a backbone with an image branch, that of images.

Owns their loading, their fingerprints, and the check that they give what the backbone reads. One object encodes windows
for ``wamjax data cache`` and is the codec of a policy, so that both see one frame alike.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.image_preprocessing import preprocess_images
from data_pipelines.text.embedding_cache import encoder_fingerprint
from launch.pipeline_folder import Part, load_part, weights_hash
from wamjax.batch import WamBatch
from wamjax.config.backbone import VideoTransformerConfig
from wamjax.config.clip import latent_grid
from wamjax.config.encoders import ClipVisionConfig
from wamjax.config.schema import RunConfig
from wamjax.config.wan_vae import WanVaeConfig
from wamjax.errors import ConfigError, DataError
from wamjax.models.wan_vae import WanVae
from wamjax.parallel.mesh import batch_sharding
from wamjax.sampling.generate import ClipShape, condition_on_frame, takes_condition_channels

DECODE_CHUNK = 1  # latent frames decoded at a time


class ClipEncoders:
    """The encoders of one run, on a mesh; windows are split over its rows.

    A ``sampling.policy.StreamingCodec``: what it encodes has the bfloat16 values that the cache holds.

    Attributes:
      fingerprints: Hash of weights, configuration and dtype by encoder.
      chunk_frames: Frames the autoencoder takes at a time; None takes a clip whole.
      clips_per_window: Clips the autoencoder is given for one window: two with condition channels.
      vae: The autoencoder's configuration.
      image: The image encoder's; None without one.
    """

    def __init__(
        self,
        config: RunConfig,
        mesh: Mesh,
        *,
        vae: Path,
        image: Path | None,
        dtype: str,
        chunk_frames: int | None,
    ) -> None:
        """Loads the encoders that ``config`` needs.

        Args:
          config: The run that reads what they make.
          mesh: Where they run.
          vae: Folder of the autoencoder, which is small and stays fp32.
          image: Folder of the image encoder.
          dtype: Dtype of the image encoder.
          chunk_frames: See above.

        Raises:
          ConfigError: An encoder does not give what the backbone reads, or one is missing or not needed.
          DataError: Weights cannot be read.
        """
        assert config.backbone is not None, "the small model has no encoders"
        self._config, self._mesh, self.chunk_frames = config, mesh, chunk_frames
        self._backbone: VideoTransformerConfig = config.backbone
        if (image is None) != (self._backbone.image_width is None):
            hint = "needs --image_encoder" if image is None else "has no image branch; leave --image_encoder out"
            raise ConfigError(f"config.backbone.image_width={self._backbone.image_width}: the backbone {hint}")
        self._vae = load_encoder(vae, "--vae", WanVaeConfig, mesh, "float32")
        self.vae: WanVaeConfig = self._vae.config
        self._check_latents()
        self._image = None if image is None else load_encoder(image, "--image_encoder", ClipVisionConfig, mesh, dtype)
        self.image: ClipVisionConfig | None = None if self._image is None else self._image.config
        self.clips_per_window = 2 if takes_condition_channels(self._backbone) else 1
        self.fingerprints = {"vae": fingerprint_encoder(vae, self._vae, chunk=str(chunk_frames))}
        if image is not None and self._image is not None:
            self.fingerprints["image"] = fingerprint_encoder(image, self._image)
        self._encode_clips = jax.jit(self._clips, in_shardings=(None, batch_sharding(mesh)))
        self._encode, self._decode = jax.jit(self._to_latents), jax.jit(self._to_frames)
        self._encode_step = jax.jit(self._to_next_latents)
        self._condition = jax.jit(self._to_condition, static_argnames="num_frames")

    @property
    def codec(self) -> ClipEncoders:
        """Itself (``window_samples.WindowEncoders``)."""
        return self

    def encode_windows(self, batch: WamBatch) -> Mapping[str, npt.NDArray[Any]]:
        """Returns ``latents`` and, where the backbone reads them, ``condition`` and ``image`` of windows with video."""
        encoded = {key: np.asarray(value) for key, value in self._encode_clips(self._vae.params, batch.video).items()}
        if self._image is not None:
            pixels = preprocess_images(list(batch.video[:, 0]), self._image.config.image_size)
            encoded["image"] = np.asarray(self._encode_images(self._image.params, pixels))
        return encoded

    def encode(self, video: Any) -> jax.Array:
        """As ``LatentCodec.encode``: every call begins a clip, as every cached window does."""
        return self._encode(self._vae.params, np.asarray(video)).astype(jnp.float32)

    def encode_next(self, frames: Any, memory: Any) -> tuple[jax.Array, Any]:
        """As ``StreamingCodec.encode_next``: the autoencoder is causal, and goes on from its cached features."""
        latents, memory = self._encode_step(self._vae.params, np.asarray(frames), memory)
        return latents.astype(jnp.float32), memory

    def decode(self, latents: jax.Array) -> jax.Array:
        """As ``LatentCodec.decode``."""
        return self._decode(self._vae.params, latents)

    def condition(self, first_frame: Any, num_latents: int) -> tuple[jax.Array | None, jax.Array | None]:
        """As ``LatentCodec.condition``."""
        frames, channels, image = np.asarray(first_frame), None, None
        if self.clips_per_window == 2:
            num_frames = 1 + (num_latents - 1) * self.vae.temporal_compression
            channels = self._condition(self._vae.params, frames, num_frames=num_frames).astype(jnp.float32)
        if self._image is not None:
            pixels = preprocess_images(list(frames[:, 0]), self._image.config.image_size)
            image = self._encode_tokens(self._image.params, pixels).astype(jnp.float32)
        return channels, image

    def _clips(self, params: Any, video: jax.Array) -> dict[str, jax.Array]:
        """Returns what the cache holds of windows: latents and, where the backbone reads it, the condition."""
        arrays = {"latents": self._to_latents(params, video)}
        if self.clips_per_window == 2 and self._config.layout.formulation != "video":
            arrays["condition"] = self._to_condition(params, video[:, :1], num_frames=self._config.clip.num_frames)
        return arrays

    def _to_latents(self, params: Any, video: jax.Array) -> jax.Array:
        """Returns normalised latents (their mode), in bfloat16, of uint8 frames ``[b f H W 3]``."""
        return self._to_next_latents(params, video, None)[0]

    def _to_next_latents(self, params: Any, video: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """As ``_to_latents``, of frames that follow those of ``cache``; and the cache of those that follow them."""
        vae: WanVae = nnx.merge(self._vae.graphdef, params)
        moments, cache = vae.encode_step(_to_unit(video), cache, chunk=self.chunk_frames)
        return vae.normalise(moments.mean).astype(jnp.bfloat16), cache

    def _to_frames(self, params: Any, latents: jax.Array) -> jax.Array:
        """Returns uint8 frames ``[b f H W 3]`` of normalised latents."""
        vae: WanVae = nnx.merge(self._vae.graphdef, params)
        video = vae.decode(vae.denormalise(latents), chunk=DECODE_CHUNK)
        return jnp.round((video + 1.0) * 127.5).astype(jnp.uint8)

    def _to_condition(self, params: Any, first: jax.Array, *, num_frames: int) -> jax.Array:
        """Returns the condition channels, in bfloat16, of a clip that begins with uint8 ``[b 1 H W 3]``."""
        vae, clip = nnx.merge(self._vae.graphdef, params), self._config.clip
        shape = ClipShape(frames=num_frames, height=clip.height, width=clip.width)
        channels = condition_on_frame(vae, self._backbone, shape, _to_unit(first)[:, 0], None).channels
        assert channels is not None, "checked by the caller"
        return channels.astype(jnp.bfloat16)

    @functools.cached_property
    def _encode_images(self) -> Callable[..., jax.Array]:
        return jax.jit(self._to_tokens, in_shardings=(None, batch_sharding(self._mesh)))

    @functools.cached_property
    def _encode_tokens(self) -> Callable[..., jax.Array]:
        return jax.jit(self._to_tokens)

    def _to_tokens(self, params: Any, pixels: jax.Array) -> jax.Array:
        assert self._image is not None, "checked by the caller"
        return nnx.merge(self._image.graphdef, params)(pixels).penultimate.astype(jnp.bfloat16)

    def _check_latents(self) -> None:
        """Raises ``ConfigError`` unless the autoencoder's latents are the backbone's."""
        vae = self.vae
        stride = (vae.temporal_compression, vae.spatial_compression, vae.spatial_compression)
        for name, wanted, found in (
            ("config.clip.stride", self._config.clip.stride, stride),
            ("config.backbone.out_channels", self._backbone.out_channels, vae.latent_channels),
        ):
            if wanted != found:
                raise ConfigError(f"{name}={wanted} and the autoencoder --vae gives {found}: name the backbone's own")
        latent_grid(self._config)


def load_encoder(folder: Path, flag: str, kind: type, mesh: Mesh, dtype: str) -> Part:
    """Loads the encoder that ``flag`` names.

    Raises:
      ConfigError: The folder holds another kind of model.
      DataError: There is no such folder, or its weights cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{flag}={folder} is not a folder; expected a checkpoint or what wamjax weights import made")
    try:
        part = load_part(folder, mesh, dtype)
    except (ConfigError, DataError) as error:  # a message that speaks of flags which this command has not
        reason = str(error).split("; say --kind")[0]
        raise type(error)(f"{flag}={folder} is no encoder that can be read: {reason}") from error
    if not isinstance(part.config, kind):
        raise ConfigError(f"{flag}={folder} holds another kind of model ({type(part.config).__name__})")
    return part


def fingerprint_encoder(folder: Path, part: Part, **more: str) -> str:
    """Returns the hash of what an encoder's outputs depend on besides its inputs."""
    config = {**dataclasses.asdict(part.config), **more}
    return encoder_fingerprint(
        weights=weights_hash(folder),
        config=config,
        tokenizer=more.get("tokenizer", ""),
        dtype=part.config.compute_dtype,
    )


def _to_unit(frames: jax.Array) -> jax.Array:
    return frames.astype(jnp.float32) / 127.5 - 1.0
