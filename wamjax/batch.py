"""``WamBatch``: the one structure that crosses from data to model, its shapes, and a fake of it.

Arrays are batch-first. Video stays ``uint8`` until it is on the device. Beside every array that can be padded lies
its mask. Nothing here reads files or builds models.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.config.clip import latent_grid
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import RunConfig


class Question(enum.IntEnum):
    """What a sample of formulation ``latent_frames`` asks for."""

    POLICY = 0  # actions, and what follows from them
    WORLD_MODEL = 1  # what follows from given actions
    VALUE = 2  # what all that is worth


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class WamBatch:
    """A batch of windows.

    Fields are ``np.ndarray`` on the host and ``jax.Array`` on the device; None where a run has no such stream.

    Attributes:
      video: uint8 ``[b f H W 3]``: canvas frames, ``frame_stride`` dataset steps apart.
      frame_mask: bool ``[b f]``: False where the episode had ended and the last frame is repeated.
      view_mask: bool ``[b v]``: False where a camera is missing (its rectangle is black).
      actions: float32 ``[b a u]``: normalised to [-1, 1]; block i holds the actions executed from the block's start
        (the last frame of block i - 1) up to its last frame.
      action_mask: bool ``[b a]``: False beyond the end of the episode (the last action is repeated).
      action_dim_mask: bool ``[b u]``: False for dims the embodiment does not have (zero there).
      has_action: bool ``[b]``: False for action-free video (actions are zero).
      state: float32 ``[b s p]``: normalised; the state at the start of each block.
      state_mask: bool ``[b s p]``: False for padded dims, steps past the end, and samples without state.
      prompt_id: int32 ``[b]``: row of the run's prompt table.
      embodiment_id: int32 ``[b]``.
      provenance: int32 ``[b 3]``: dataset, episode, first dataset step of the window.
      latents: bfloat16 ``[b t h w c]``: normalised latents of the clip, for a backbone; its frames are latent ones.
      text: bfloat16 ``[b l text_width]``: tokens of the text encoder, zero beyond the prompt's length.
      condition: bfloat16 ``[b t h w c]``: channels beside the latents (Wan I2V: 4 of mask, 16 of the encoded image).
      image: bfloat16 ``[b m image_width]``: tokens of the image encoder.
      value: float32 ``[b]``: return from here on, in [-1, 1].
      images: uint8 ``[b v H W 3]``: pictures of the present, one per camera, for a vision-language-action model;
        ``view_mask`` says which there are.
      text_ids: int32 ``[b l]``: token ids of the prompt; -1 beyond its length.
      question: int32 ``[b]``: what the sample asks for (``Question``).
    """

    video: Any = None
    frame_mask: Any = None
    view_mask: Any = None
    actions: Any = None
    action_mask: Any = None
    action_dim_mask: Any = None
    has_action: Any = None
    state: Any = None
    state_mask: Any = None
    prompt_id: Any = None
    embodiment_id: Any = None
    provenance: Any = None
    latents: Any = None
    text: Any = None
    condition: Any = None
    image: Any = None
    value: Any = None
    images: Any = None
    text_ids: Any = None
    question: Any = None

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.provenance.shape[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoStatistics:
    """Statistics of the training frames, in pixel levels (0..255): what the patch codec normalises with.

    Attributes:
      mean: float32 ``[H W 3]``: mean canvas.
      std: Standard deviation around the mean canvas, over all pixels and channels.
    """

    mean: np.ndarray
    std: float


def batch_spec(config: RunConfig, batch_size: int) -> WamBatch:
    """Returns a ``WamBatch`` of ``jax.ShapeDtypeStruct`` for ``batch_size`` samples of ``config``."""

    def spec(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    data, vla = config.data, config.vla
    if vla is not None:
        size = vla.vision.image_size
        return WamBatch(
            provenance=spec((3,), np.int32),
            images=spec((vla.num_images, size, size, 3), np.uint8),
            view_mask=spec((vla.num_images,), np.bool_),
            text_ids=spec((vla.text_tokens,), np.int32),
            **_vector_specs(config, config.layout.actions_per_block, 0, spec),
        )
    gpt = config.gpt
    if gpt is not None:
        steps, size = config.layout.num_blocks, gpt.image_size
        pictures = steps * gpt.num_views
        return WamBatch(
            provenance=spec((3,), np.int32),
            video=spec((steps, gpt.num_views * size, size, 3), np.uint8),
            frame_mask=spec((steps,), np.bool_),
            image=spec((pictures * (gpt.num_patches + 1), gpt.image_width), jnp.bfloat16),
            text=spec((1, gpt.text_width), jnp.bfloat16),
            **_vector_specs(config, steps, steps, spec),
        )
    if config.backbone is not None:
        backbone, clip, grid = config.backbone, config.clip, latent_grid(config)
        clips = WamBatch(
            provenance=spec((3,), np.int32),
            latents=spec((*grid, backbone.out_channels), jnp.bfloat16),
            text=spec((clip.text_tokens, backbone.text_width), jnp.bfloat16),
        )
        if config.layout.formulation == "video":
            return clips
        if config.layout.formulation == "latent_frames":
            counts = (config.layout.actions_per_block, config.layout.states_per_block)
            return dataclasses.replace(
                clips, value=spec((), np.float32), question=spec((), np.int32), **_vector_specs(config, *counts, spec)
            )
        extra = backbone.in_channels - backbone.out_channels
        num_actions, num_states = (
            config.layout.num_blocks * each
            for each in (config.layout.actions_per_block, config.layout.states_per_block)
        )
        return dataclasses.replace(
            clips,
            frame_mask=spec(grid[:1], np.bool_),
            condition=spec((*grid, extra), jnp.bfloat16) if extra else None,
            image=spec((clip.image_tokens, backbone.image_width), jnp.bfloat16) if backbone.image_width else None,
            **_vector_specs(config, num_actions, num_states, spec),
        )
    g = derive_geometry(config)
    views, (height, width) = max(1, len(data.views)), data.canvas
    return WamBatch(
        video=spec((g.num_frames, height, width, 3), np.uint8),
        frame_mask=spec((g.num_frames,), np.bool_),
        view_mask=spec((views,), np.bool_),
        prompt_id=spec((), np.int32),
        provenance=spec((3,), np.int32),
        **_vector_specs(config, g.num_actions, g.num_states, spec),
    )


def _vector_specs(
    config: RunConfig, num_actions: int, num_states: int, spec: Callable[..., jax.ShapeDtypeStruct]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the fields of actions and states."""
    actions, states = (num_actions, config.data.action_dim), (num_states, config.data.state_dim)
    return {
        "actions": spec(actions, np.float32),
        "action_mask": spec(actions[:1], np.bool_),
        "action_dim_mask": spec(actions[1:], np.bool_),
        "has_action": spec((), np.bool_),
        "state": spec(states, np.float32),
        "state_mask": spec(states, np.bool_),
        "embodiment_id": spec((), np.int32),
    }


def fake_batch(config: RunConfig, batch_size: int, seed: int = 0) -> WamBatch:
    """Returns a host batch of random content with the shapes of ``batch_spec`` and some masked entries."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.dtype == np.uint8:
            return rng.integers(0, 256, leaf.shape, dtype=np.uint8)
        if leaf.dtype == np.bool_:
            return rng.random(leaf.shape) < 0.9
        if leaf.dtype == np.int32:
            return rng.integers(0, 2, leaf.shape, dtype=np.int32)
        return rng.uniform(-1.0, 1.0, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, batch_spec(config, batch_size))
