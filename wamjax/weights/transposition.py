"""Copying an array whose dims lie in another order, fast: block by block, so that every line of memory is read once."""

from __future__ import annotations

import itertools
import math

import numpy as np

_BLOCK = 16  # rows read side by side: they stay in the first-level cache
_MIN_BLOCK_VALUES = 1024  # where blocks would be smaller, NumPy's own order is as fast


def copy_transposed(out: np.ndarray, source: np.ndarray) -> None:
    """Copies ``source`` into ``out``, cast to its dtype.

    Args:
      out: C-contiguous.
      source: Of the same shape, with its dims in any order in memory.
    """
    assert out.shape == source.shape, (out.shape, source.shape)
    assert out.flags.c_contiguous
    if out.dtype == source.dtype:  # values are not looked at: NumPy copies integers faster than bfloat16
        out, source = (array.view(f"u{out.dtype.itemsize}") for array in (out, source))
    shape = _merged_shape(source)
    out, source = out.reshape(shape), source.reshape(shape)
    last, fastest = source.ndim - 1, int(np.argmin(np.abs(source.strides))) if source.ndim else 0
    if source.ndim < 2 or fastest == last or _BLOCK * shape[fastest] < _MIN_BLOCK_VALUES:
        np.copyto(out, source, casting="unsafe")
        return
    others = [range(size) if axis not in (fastest, last) else [slice(None)] for axis, size in enumerate(shape)]
    for index in itertools.product(*others):
        to, rows = out[index], source[index]
        for start in range(0, shape[last], _BLOCK):
            block = slice(start, start + _BLOCK)
            np.copyto(to[:, block], rows[:, block], casting="unsafe")


def _merged_shape(source: np.ndarray) -> tuple[int, ...]:
    """Returns the shape of ``source`` with neighbouring dims merged where they are one run of memory."""
    if source.size == 0:
        return source.shape
    shape: list[int] = []
    previous_stride = 0
    for size, stride in zip(source.shape, source.strides, strict=True):
        if size == 1:
            continue
        if shape and previous_stride == size * stride:
            shape[-1] *= size
        else:
            shape.append(size)
        previous_stride = stride
    assert math.prod(shape) == source.size
    return tuple(shape)
