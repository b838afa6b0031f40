"""Adaptive modulation: shift, scale and gate of a token from the timestep of its slot.

Embeddings are computed once per slot (a temporal block, a frame, the clean slot, or a token where each has a timestep
of its own), not per token; a token gets its slot's by broadcasting over runs, so the backward pass is a sum over each
run and not a scatter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wamjax.nn.linear import Linear
from wamjax.types import PRNGKey

TIMESTEP_IDS = 1000.0  # a timestep t in [0, 1] is embedded as the id 1000 t


# Which slot modulates which token: (slot, number of tokens) in sequence order, or int32 ``[n]``, every token's slot.
Runs = Sequence[tuple[int, int]] | jax.Array


_MAX_CHOICES = 16  # slots that are chosen from one by one


class Modulation(NamedTuple):
    """Vectors that modulate one part of a block, fp32 ``[b slots d]`` each.

    Attributes:
      shift: Added after the norm.
      scale: 1 + scale multiplies the norm's output.
      gate: Multiplies the part's output.
    """

    shift: jax.Array
    scale: jax.Array
    gate: jax.Array


class LowRankModulation(nnx.Module):
    """AdaLN-LoRA: vectors = up(down(silu(embedding))) + shared, in fp32.

    Source: Cosmos-Predict, ``adaln_modulation_*`` with ``use_adaln_lora``.
    """

    def __init__(self, key: PRNGKey, width: int, rank: int, num_vectors: int) -> None:
        """Makes the projection from ``width`` through ``rank`` to ``num_vectors`` vectors of ``width``."""
        keys, highest = jax.random.split(key), jax.lax.Precision.HIGHEST
        self.num_vectors = num_vectors
        self.down = Linear(keys[0], (width, rank), ("embed", None), dtype="float32", use_bias=False, precision=highest)
        self.up = Linear(
            keys[1],
            (rank, num_vectors * width),
            (None, "embed"),
            dtype="float32",
            scale=0.0,
            use_bias=False,
            precision=highest,
        )

    def __call__(self, embedding: jax.Array, shared: jax.Array) -> jax.Array:
        """Returns ``[b slots num_vectors d]`` of ``embedding`` ``[b slots d]`` and ``shared`` ``[b slots >=num d]``."""
        vectors = self.up(self.down(jax.nn.silu(embedding)))
        return vectors.reshape(*embedding.shape[:-1], self.num_vectors, -1) + shared[:, :, : self.num_vectors]


class AdaptiveNorm(nnx.Module):
    """Vectors of one adaptive RMS norm: a linear layer on an embedding, in fp32, that starts at zero.

    Source: openpi, src/openpi/models/gemma.py, ``RMSNorm`` with ``cond`` (adaRMS): scale, shift and gate in this order;
    after DiT's adaLN-Zero (arXiv 2212.09748). What differs: fp32, where openpi multiplies in its compute dtype.
    """

    def __init__(self, key: PRNGKey, width: int) -> None:
        """Makes the layer from an embedding of ``width``."""
        highest = jax.lax.Precision.HIGHEST
        self.vectors = Linear(key, (width, 3 * width), ("embed", None), dtype="float32", scale=0.0, precision=highest)

    def __call__(self, embedding: jax.Array) -> Modulation:
        """Returns the vectors ``[b slots d]`` of ``embedding`` ``[b slots d]``."""
        scale, shift, factor = jnp.split(self.vectors(embedding), 3, axis=-1)
        return Modulation(shift, scale, factor)


def period_embedding(times: jax.Array, width: int, *, min_period: float = 4e-3, max_period: float = 4.0) -> jax.Array:
    """Sinusoidal embedding of times in [0, 1], in fp32, by periods between two ends.

    embedding = [sin(2 pi t / p_j), cos(2 pi t / p_j)], p_j from ``min_period`` to ``max_period``, evenly in the log.

    Args:
      times: ``[...]``.
      width: Even size of the embedding.
      min_period: Of the first dim.
      max_period: Of the last one.

    Returns:
      ``[... width]``.

    Source: openpi, src/openpi/models/pi0.py, ``posemb_sincos`` and its periods.
    """
    periods = min_period * (max_period / min_period) ** np.linspace(0.0, 1.0, width // 2)
    angles = times.astype(jnp.float32)[..., None] * np.asarray(2 * np.pi / periods, np.float32)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def timestep_embedding(ids: jax.Array, width: int) -> jax.Array:
    """Sinusoidal embedding of timestep ids, in fp32.

    embedding = [cos(id f_j), sin(id f_j)], f_j = 10000^(-j / (width/2))

    Args:
      ids: ``[...]`` in [0, 1000] (``TIMESTEP_IDS`` x timestep), fractions allowed.
      width: Even size of the embedding.

    Returns:
      ``[... width]``.

    Source: Wan 2.1, ``sinusoidal_embedding_1d``. What differs: fp32, as in diffusers' ``get_timestep_embedding``,
    whose roundings of the exponent are repeated (an id of 1000 makes them 1e-4 of a radian).
    """
    half = width // 2
    exponents = np.float32(-math.log(10_000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = ids.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def even_runs(num_slots: int, num_tokens: int) -> tuple[tuple[int, int], ...]:
    """Returns the runs of ``num_slots`` slots that share ``num_tokens`` tokens evenly and in order."""
    assert num_tokens % num_slots == 0, f"{num_tokens} tokens over {num_slots} slots"
    return tuple((slot, num_tokens // num_slots) for slot in range(num_slots))


def spread_slots(per_slot: jax.Array, runs: Runs) -> jax.Array:
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


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array, runs: Runs) -> jax.Array:
    """Returns ``x (1 + scale) + shift`` in fp32, each token with its slot's vectors.

    Works run by run, so that the vectors are never spread over tokens in memory.

    Args:
      x: ``[b n d]``.
      shift: ``[b slots d]``.
      scale: ``[b slots d]``.
      runs: (slot, number of tokens) in sequence order.
    """
    x = x.astype(jnp.float32)
    return _over_runs(lambda part, a, b: part * (1.0 + a) + b, x, runs, scale, shift)


def gate(x: jax.Array, factor: jax.Array, runs: Runs) -> jax.Array:
    """Returns ``x factor`` in fp32, each token ``[b n d]`` with its slot's ``factor`` ``[b slots d]``."""
    return _over_runs(lambda part, a: part * a, x.astype(jnp.float32), runs, factor)


def _over_runs(function: Callable[..., jax.Array], x: jax.Array, runs: Runs, *per_slot: jax.Array) -> jax.Array:
    """Applies ``function(tokens, *vectors)`` to each run of tokens with its slot's vectors ``[b slots d]``.

    Consecutive slots with equally many tokens are taken at once.
    """
    if per_slot[0].shape[1] == 1:
        return function(x, *per_slot)
    if isinstance(runs, jax.Array):
        return function(x, *(_take_slots(slots, runs) for slots in per_slot))
    pieces, offset = [], 0
    for first, num_slots, count in _stretches(runs):
        part = jax.lax.slice_in_dim(x, offset, offset + num_slots * count, axis=1)
        tiled = part.reshape(x.shape[0], num_slots, count, x.shape[-1])
        vectors = (jax.lax.slice_in_dim(slots, first, first + num_slots, axis=1)[:, :, None] for slots in per_slot)
        pieces.append(function(tiled, *vectors).reshape(part.shape))
        offset += num_slots * count
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)


def _take_slots(per_slot: jax.Array, slots: jax.Array) -> jax.Array:
    """Returns every token's row ``[b n d]`` of ``per_slot`` ``[b slots d]``.

    Few slots are chosen from one after the other: that is part of the computation that reads the rows, and its gradient
    a sum, where a gather writes every row to memory and its gradient scatters.
    """
    if per_slot.shape[1] > _MAX_CHOICES:
        return jnp.take(per_slot, slots, axis=1)
    rows = per_slot[:, :1]
    for slot in range(1, per_slot.shape[1]):
        rows = jnp.where(slots[:, None] == slot, per_slot[:, slot : slot + 1], rows)
    return rows


def _stretches(runs: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Returns (first slot, number of slots, tokens of each) of runs joined where slots follow one another evenly."""
    joined: list[tuple[int, int, int]] = []
    for slot, count in runs:
        if joined and (slot, count) == (joined[-1][0] + joined[-1][1], joined[-1][2]):
            first, num_slots, _ = joined.pop()
            joined.append((first, num_slots + 1, count))
        else:
            joined.append((slot, 1, count))
    return joined
