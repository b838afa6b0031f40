"""Vectors as image-shaped latent frames, and back: how Cosmos Policy puts actions, states and values into a video.

A vector is repeated until it fills a latent frame of ``h w c`` values, in the order channel, row, column; reading it
back is the mean over the repeats. What does not fill a whole repeat at the end is the vector's beginning once more.

Source: Cosmos Policy's released code (its vectors fill ``[c h w]`` latents; ours have the channel last).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.errors import ConfigError


def tile_vector(vector: jax.Array, frame: tuple[int, int, int]) -> jax.Array:
    """Returns ``[b h w c]``, filled with repeats of ``vector`` ``[b v]``.

    Raises:
      ConfigError: The frame holds fewer values than the vector.
    """
    index = _repeats(vector.shape[-1], frame)
    height, width, channels = frame
    filled = vector[:, index].reshape(vector.shape[0], channels, height, width)
    return jnp.moveaxis(filled, 1, -1)


def average_vector(frame: jax.Array, size: int) -> jax.Array:
    """Returns the vector ``[b v]`` of ``size`` values that a frame ``[b h w c]`` holds: the mean over its repeats."""
    batch_size, height, width, channels = frame.shape
    index = _repeats(size, (height, width, channels))
    values = jnp.moveaxis(frame, -1, 1).reshape(batch_size, -1)
    total = jnp.zeros((batch_size, size), values.dtype).at[:, index].add(values)
    return total / np.bincount(index, minlength=size)


def _repeats(size: int, frame: tuple[int, int, int]) -> np.ndarray:
    """Returns, for every value of a frame in the order it is filled, which value of the vector it is."""
    values = int(np.prod(frame))
    if size < 1 or size > values:
        raise ConfigError(
            f"a vector of {size} values does not fit a latent frame of {values}; change config.data.action_dim, "
            "config.layout.actions_per_block or config.clip"
        )
    return np.arange(values) % size
