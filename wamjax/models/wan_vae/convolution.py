"""Convolutions and the norm of the Wan autoencoders, channels last, causal in time.

A 3-D convolution is computed as one 2-D convolution over all frames per temporal tap, summed: XLA's 3-D convolution on
a CPU reaches some 60 % of that speed, and a tap that would only meet the zeros before the clip is left out.

Everything that looks back in time takes a *context* and returns the next one: the last frames of its input. ``None``
is the beginning of a clip, before which there are zeros.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.nn.init import fan_in, named, zeros
from wamjax.types import PRNGKey

TAPS = 3  # frames a causal convolution looks at: the present one and two before
NORM_EPS = 1e-12  # smallest length a vector is divided by

Context = jax.Array | None
Padding = tuple[tuple[int, int], tuple[int, int]]


class ChannelNorm(nnx.Module):
    """Each pixel's channels scaled to root mean square 1, times a learned scale; in fp32.

    y = scale * sqrt(c) * x / max(|x|, eps)

    Source: ``RMS_norm`` in wan/modules/vae.py (no epsilon under the root, unlike the usual RMS norm).
    """

    def __init__(self, key: PRNGKey, width: int) -> None:
        """Makes the norm over ``width`` channels."""
        self.scale = named(key, jax.nn.initializers.ones, (width,), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises ``[... c]``; returns the dtype of ``x``."""
        scaled = x.astype(jnp.float32)
        square = jnp.maximum(jnp.sum(jnp.square(scaled), axis=-1, keepdims=True), NORM_EPS**2)
        scale = self.scale[...].astype(jnp.float32) * x.shape[-1] ** 0.5
        return (scaled * jax.lax.rsqrt(square) * scale).astype(x.dtype)


class FrameConv(nnx.Module):
    """A 3 x 3 convolution of each frame by itself.

    Attributes:
      kernel: ``[3 3 in out]``.
      bias: ``[out]``.
    """

    def __init__(
        self, key: PRNGKey, fan: tuple[int, int], *, stride: int = 1, padding: tuple[int, int] = (1, 1), dtype: str
    ) -> None:
        """Makes the layer from ``fan[0]`` to ``fan[1]`` channels; ``padding`` is before and after a row or column."""
        self.stride, self.padding, self.dtype = stride, (padding, padding), dtype
        self.kernel = named(key, fan_in(in_axis=(0, 1, 2), out_axis=3), (3, 3, *fan), (None,) * 4)
        self.bias = named(key, zeros, fan[1:], (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[b t h w in]`` to ``[b t h' w' out]``."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return _convolve_frames(x, kernel, self.stride, self.padding) + bias


class CausalConv(nnx.Module):
    """A convolution over time, rows and columns whose output sees its own frame and the two before.

    Attributes:
      kernel: ``[3 s s in out]``, s = 3, or 1 for a convolution over time alone.
      bias: ``[out]``.
    """

    def __init__(self, key: PRNGKey, fan: tuple[int, int], *, side: int = 3, dtype: str) -> None:
        """Makes the layer from ``fan[0]`` to ``fan[1]`` channels."""
        self.dtype, margin = dtype, side // 2
        self.padding = ((margin, margin), (margin, margin))
        self.kernel = named(key, fan_in(in_axis=(0, 1, 2, 3), out_axis=4), (TAPS, side, side, *fan), (None,) * 5)
        self.bias = named(key, zeros, fan[1:], (None,))

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        """Maps ``[b t h w in]`` to ``[b t h w out]``.

        Args:
          x: Frames that follow those of ``context``.
          context: ``[b 2 h w in]``, or None at the beginning of a clip.

        Returns:
          The output, and the context of the frames that follow.
        """
        kernel, frames = self.kernel[...].astype(self.dtype), x.shape[1]
        total = _convolve_frames(x, kernel[-1], 1, self.padding) + self.bias[...].astype(self.dtype)
        for back in range(1, TAPS):
            tap = kernel[-1 - back]
            if context is not None:
                seen = jnp.concatenate([context[:, TAPS - 1 - back :], x], axis=1)[:, :frames]
                total += _convolve_frames(seen, tap, 1, self.padding)
            elif frames > back:
                part = _convolve_frames(x[:, : frames - back], tap, 1, self.padding)
                total += jnp.pad(part, ((0, 0), (back, 0), (0, 0), (0, 0), (0, 0)))
        return total, last_frames(x, context, TAPS - 1)

    def every_second(self, x: jax.Array) -> jax.Array:
        """Maps ``[b 2n+1 h w in]`` to ``[b n h w out]``: the outputs of frames 2, 4, ..., which need no context."""
        kernel, count = self.kernel[...].astype(self.dtype), (x.shape[1] - 1) // 2
        taps = (
            _convolve_frames(x[:, tap : tap + 2 * count - 1 : 2], kernel[tap], 1, self.padding) for tap in range(TAPS)
        )
        return sum(taps, self.bias[...].astype(self.dtype))


def last_frames(x: jax.Array, context: Context, count: int) -> jax.Array:
    """Returns the last ``count`` frames of ``context`` followed by ``x``, with zeros before the beginning of a clip."""
    missing = count - x.shape[1]
    if missing <= 0:
        return x[:, -count:]
    before = jnp.zeros((x.shape[0], missing, *x.shape[2:]), x.dtype) if context is None else context[:, -missing:]
    return jnp.concatenate([before, x], axis=1)


def _convolve_frames(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolves every frame of ``[b t h w in]`` with ``[s s in out]``."""
    x = x.astype(kernel.dtype)
    if kernel.shape[:2] == (1, 1):
        return jnp.einsum("bthwi,io->bthwo", x, kernel[0, 0])
    frames = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]), kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return frames.reshape(*x.shape[:2], *frames.shape[1:])
