"""Another order of tokens over the context axis: equal pieces of a split sequence, each sent to the device it goes to.

A permutation of pieces is a number of rounds in which every device sends one piece and receives one: no device ever
holds more than its own part. Owns the rounds and the exchange; which order is wanted is ``layout.balance``'s.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.parallel.context_plan import CONTEXT
from wamjax.parallel.rules import Placement, partition_spec


class Round(NamedTuple):
    """One exchange: device i sends its piece ``sends[i]`` to ``targets[i]``; what arrives is piece ``receives[i]``."""

    targets: tuple[int, ...]
    sends: tuple[int, ...]
    receives: tuple[int, ...]


def reorder(x: jax.Array, pieces: Sequence[int], placement: Placement) -> jax.Array:
    """Returns ``[b n d]``, split over the context axis, with its equal pieces in the order ``pieces``."""
    ways = placement.mesh.shape[CONTEXT]
    names = ("batch", "tokens", None)
    spec = partition_spec(names, x.shape, placement.mesh, placement.rules.activations, "tokens to reorder")
    rounds = plan_rounds(tuple(pieces), ways)

    def exchange(part: jax.Array) -> jax.Array:
        held = part.reshape(part.shape[0], len(pieces) // ways, -1, part.shape[2])
        device, result = jax.lax.axis_index(CONTEXT), jnp.zeros_like(held)
        for targets, sends, receives in rounds:
            sent = jnp.take(held, jnp.array(sends)[device], axis=1)
            arrived = jax.lax.ppermute(sent, CONTEXT, list(enumerate(targets)))
            result = result.at[:, jnp.array(receives)[device]].set(arrived)
        return result.reshape(part.shape)

    return jax.shard_map(exchange, mesh=placement.mesh, in_specs=spec, out_specs=spec, check_vma=False)(x)


@functools.lru_cache(maxsize=64)
def plan_rounds(pieces: tuple[int, ...], ways: int) -> tuple[Round, ...]:
    """Returns the rounds that bring the equal pieces of a sequence on ``ways`` devices into the order ``pieces``.

    Every device sends and receives as many pieces as every other, so that as many rounds as a device has pieces
    suffice: bipartite graphs of equal degrees fall into perfect matchings (König).
    """
    share = len(pieces) // ways
    # (from, to) -> [(piece of the sender, piece of the receiver)]
    left: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for place, piece in enumerate(pieces):
        left.setdefault((piece // share, place // share), []).append((piece % share, place % share))
    rounds = []
    for _ in range(share):
        targets = _match({pair for pair, moves in left.items() if moves}, ways)
        moves = [left[source, target].pop() for source, target in enumerate(targets)]
        receives = np.empty(ways, int)
        receives[list(targets)] = [place for _, place in moves]
        rounds.append(Round(tuple(targets), tuple(piece for piece, _ in moves), tuple(int(r) for r in receives)))
    return tuple(rounds)


def _match(pairs: set[tuple[int, int]], ways: int) -> list[int]:
    """Returns a perfect matching (source -> target) within ``pairs``, by augmenting paths."""
    source_of: dict[int, int] = {}

    def assign(source: int, tried: set[int]) -> bool:
        for target in range(ways):
            if (source, target) in pairs and target not in tried:
                tried.add(target)
                if target not in source_of or assign(source_of[target], tried):
                    source_of[target] = source
                    return True
        return False

    for source in range(ways):
        found = assign(source, set())
        assert found, "pieces of equal number always have a perfect matching"
    return [target for target, _ in sorted(source_of.items(), key=lambda item: item[1])]
