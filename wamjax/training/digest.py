"""A digest per array, computed on the device, that does not depend on how the array is sharded.

Owns the digest and its text form. Used to verify checkpoints: the storage format underneath has no checksum on its
data, and a hash of the bytes one host holds would change with the mesh.

How: every element is read as unsigned 32-bit words w, every word has a position hash p made from its index in the
*whole* array, and the digest is the pair of sums (mod 2^32) of mix(w xor p) and mix'(w + p'). Addition commutes,
so any split of the array over devices gives the same pair. Both mixes are bijections of 32-bit words, so changing one
word always changes both sums; other changes escape with probability about 2^-64.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# Odd multipliers and shifts of the 32-bit finalisers of MurmurHash3 (Appleby, smhasher, fmix32) and of "lowbias32"
# (Wellons, hash-prospector). Both are bijections: xor-shifts and odd products are invertible mod 2^32.
_MURMUR = (16, 0x85EBCA6B, 13, 0xC2B2AE35, 16)
_LOWBIAS = (16, 0x7FEB352D, 15, 0x846CA68B, 16)
_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio, odd


def digest_arrays(tree: Any) -> dict[str, str]:
    """Returns the digest of every array of ``tree`` by its dotted path.

    Args:
      tree: Pytree of ``jax.Array`` or ``np.ndarray`` of real, integer or boolean dtypes. All processes must call this
        together when the arrays are spread over processes.

    Returns:
      Path -> text such as ``"float32[4,8]:9f0c4d21a3b65e77"``: dtype, shape and 64 bits. Equal texts mean equal
      arrays, bit for bit (NaN payloads and the sign of zero count).
    """
    flat = jax.tree_util.tree_leaves_with_path(tree)
    # One small program per distinct shape and sharding (parameters, average and moments share theirs) compiles far
    # faster than one program over the whole state. Each result is waited for: on simulated CPU devices many
    # independent programs in flight, each with a collective, use up the thread pool and wait for each other for ever.
    sums = [jax.device_get(_compiled_sums(_replicated_like(leaf))(leaf)) for _, leaf in flat]
    return {
        path_name(path): f"{describe_array(leaf)}:{int(high):08x}{int(low):08x}"
        for (path, leaf), (high, low) in zip(flat, sums, strict=True)
    }


def path_name(path: tuple[Any, ...]) -> str:
    """Returns the dotted name of a pytree path, as in ``params.blocks.up.kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def describe_array(array: Any) -> str:
    """Returns dtype and shape of an array or ``ShapeDtypeStruct``, as in ``float32[4,8]``."""
    return f"{np.dtype(array.dtype).name}[{','.join(str(size) for size in array.shape)}]"


@functools.lru_cache(maxsize=8)
def _compiled_sums(replicated: NamedSharding | None) -> Any:
    """Returns the jitted digest; the result is replicated so that every process can read it."""
    return jax.jit(_word_sums) if replicated is None else jax.jit(_word_sums, out_shardings=replicated)


def _replicated_like(array: Any) -> NamedSharding | None:
    """Returns the replicated sharding on the mesh ``array`` lives on; None for an array without a mesh."""
    sharding = getattr(array, "sharding", None)
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None


def _word_sums(array: jax.Array) -> jax.Array:
    """Returns uint32 ``[2]``: the two position-keyed sums of one array."""
    words = _as_words(jnp.asarray(array))
    position = _position_hash(words.shape)
    first = _mix(words ^ position, _MURMUR)
    second = _mix(words + position * jnp.uint32(_GOLDEN), _LOWBIAS)
    return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)])


def _as_words(array: jax.Array) -> jax.Array:
    """Returns the bits of ``array`` as uint32; 64-bit elements become two words in a new last dim."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return jnp.stack([_as_words(array.real), _as_words(array.imag)], axis=-1)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}.get(np.dtype(array.dtype).itemsize)
    if word is None:
        raise ValueError(f"cannot digest an array of dtype {array.dtype}: expected elements of 1, 2, 4 or 8 bytes")
    return jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32)


def _position_hash(shape: tuple[int, ...]) -> jax.Array:
    """Returns uint32 of ``shape``: a hash of each element's row-major index in the whole array.

    The index wraps beyond 2^32 elements: two words exactly that far apart could then be swapped unnoticed.
    """
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for dim in reversed(range(len(shape))):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, dim) * jnp.uint32(stride % 2**32)
        stride *= shape[dim]
    return _mix(index + jnp.uint32(_GOLDEN), _MURMUR)


def _mix(words: jax.Array, constants: tuple[int, int, int, int, int]) -> jax.Array:
    """Returns a bijective scramble of 32-bit words: shift, multiply, shift, multiply, shift."""
    shift_1, factor_1, shift_2, factor_2, shift_3 = constants
    words = (words ^ (words >> shift_1)) * jnp.uint32(factor_1)
    words = (words ^ (words >> shift_2)) * jnp.uint32(factor_2)
    return words ^ (words >> shift_3)
