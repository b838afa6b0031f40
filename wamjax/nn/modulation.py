"""Adaptive modulation: shift, scale and gate of a token from the timestep of its slot.

Embeddings are computed once per slot (a temporal block, or the clean slot), never per token; a token gets its slot's
by broadcasting over runs, so the backward pass is a sum over each run and not a scatter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def timestep_embedding(times: jax.Array, width: int) -> jax.Array:
    """Sinusoidal embedding of timesteps, in fp32.

    embedding = [cos(1000 t f_j), sin(1000 t f_j)], f_j = 10000^(-j / (width/2))

    Args:
      times: ``[...]`` in [0, 1].
      width: Even size of the embedding.

    Returns:
      ``[... width]``.

    Source: Wan 2.1, ``sinusoidal_embedding_1d`` (ids 0..1000; here t = id / 1000).
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = 1000.0 * times.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def spread_slots(per_slot: jax.Array, runs: Sequence[tuple[int, int]]) -> jax.Array:
    """Gives every token its slot's value.

    Args:
      per_slot: ``[b slots ...]``.
      runs: (slot, number of tokens) in sequence order, as ``Pass.slot_runs`` returns.

    Returns:
      ``[b n ...]``.
    """
    pieces = []
    for slot, count in runs:
        row = per_slot[:, slot : slot + 1]
        pieces.append(jnp.broadcast_to(row, (row.shape[0], count, *row.shape[2:])))
    return jnp.concatenate(pieces, axis=1)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array, runs: Sequence[tuple[int, int]]) -> jax.Array:
    """Returns ``x (1 + scale) + shift`` in fp32, each token with its slot's vectors.

    Works run by run, so that the vectors are never spread over tokens in memory.

    Args:
      x: ``[b n d]``.
      shift: ``[b slots d]``.
      scale: ``[b slots d]``.
      runs: (slot, number of tokens) in sequence order.
    """
    x = x.astype(jnp.float32)
    return _over_runs(lambda part, slot: part * (1.0 + scale[:, slot, None]) + shift[:, slot, None], x, runs)


def gate(x: jax.Array, factor: jax.Array, runs: Sequence[tuple[int, int]]) -> jax.Array:
    """Returns ``x factor`` in fp32, each token ``[b n d]`` with its slot's ``factor`` ``[b slots d]``."""
    return _over_runs(lambda part, slot: part * factor[:, slot, None], x.astype(jnp.float32), runs)


def _over_runs(
    function: Callable[[jax.Array, int], jax.Array], x: jax.Array, runs: Sequence[tuple[int, int]]
) -> jax.Array:
    """Applies ``function`` to each run of tokens with its slot."""
    pieces, offset = [], 0
    for slot, count in runs:
        pieces.append(function(jax.lax.slice_in_dim(x, offset, offset + count, axis=1), slot))
        offset += count
    return jnp.concatenate(pieces, axis=1)
