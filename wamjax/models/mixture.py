"""A mixture of transformers: stacks of blocks that share nothing but one softmax per layer.

Every expert has weights and a width of its own for the tokens that are its (``Segment.expert``), its own timesteps and
its own text; queries, keys and values of all meet in self-attention, which follows the layout of the whole sequence.
Heads and depth are therefore the same in all. An expert is an ordinary stack (``models.stack``): a mixture of one is
the single model.

Source: Mixture-of-Transformers (arXiv 2411.04996), and Fast-WAM's ``mot.py``; what differs: attention is that of a
layout's schedule, and an expert's tokens need not lie together.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from wamjax.config.choices import Remat
from wamjax.config.systems import check_mixture_is_whole
from wamjax.layout import Pass
from wamjax.models.remat import BLOCK_INPUT, REMAT_POLICIES
from wamjax.models.stack import Conditionings, Stacks, Streams, run_explicit
from wamjax.nn.attention import attend_self
from wamjax.nn.multihead import KeysValues
from wamjax.nn.products import multiplying_in
from wamjax.parallel.context_plan import CONTEXT
from wamjax.parallel.rules import active_placement


def run_mixture(
    stacks: Stacks,
    streams: Streams,
    layout_pass: Pass,
    conditionings: Conditionings,
    past: KeysValues | None = None,
    *,
    remat: Remat,
    return_cache: bool = False,
) -> tuple[Streams, KeysValues | None]:
    """Runs the experts of a layout over its tokens, layer by layer together.

    Args:
      stacks: By the name of the expert; equally deep, with equal heads.
      streams: ``[b n_expert d_expert]`` tokens of each, in sequence order.
      layout_pass: The whole sequence; its segments name their experts.
      conditionings: What the blocks of each read besides their tokens, for its own tokens.
      past: Keys and values of all layers of ``layout_pass.past``, whichever experts made them, ``[layers b k m e]``;
        None if the pass has no past.
      remat: Name of what the backward pass finds (``models.remat``).
      return_cache: Whether the computed tokens' keys and values are returned.

    Returns:
      The tokens of each after the last block, and the cache of all layers (or None).

    Raises:
      ConfigError: The mesh splits the sequence.
    """
    placement = active_placement()
    if placement is not None:
        check_mixture_is_whole(placement.mesh.shape[CONTEXT])

    def run(stacks: Stacks, streams: Streams, conditionings: Conditionings) -> Streams:
        return scan_mixture(stacks, streams, layout_pass, conditionings, remat=remat)[0]

    if placement is not None and placement.blocks == "explicit" and past is None and not return_cache:
        return run_explicit(run, stacks, streams, conditionings, placement), None
    return scan_mixture(stacks, streams, layout_pass, conditionings, past, remat=remat, return_cache=return_cache)


def scan_mixture(
    stacks: Stacks,
    streams: Streams,
    layout_pass: Pass,
    conditionings: Conditionings,
    past: KeysValues | None = None,
    *,
    remat: Remat,
    return_cache: bool = False,
) -> tuple[Streams, KeysValues | None]:
    """Scans the experts; arguments and result as ``run_mixture``."""
    runs = _expert_runs(layout_pass)

    def body(streams: Streams, layer: tuple[Stacks, KeysValues | None]) -> tuple[Streams, KeysValues | None]:
        blocks, before = layer
        with multiplying_in(next(iter(blocks.values())).matmul):
            begun = {
                name: block.begin(checkpoint_name(streams[name], BLOCK_INPUT), conditionings[name])
                for name, block in blocks.items()
            }
            query, key, value = (
                _interleave(parts, runs)
                for parts in (
                    {name: part.query for name, part in begun.items()},
                    {name: part.own.keys for name, part in begun.items()},
                    {name: part.own.values for name, part in begun.items()},
                )
            )
            own = KeysValues(key, value)
            seen = own
            if before is not None:
                seen = KeysValues(*(jnp.concatenate(pair, axis=2) for pair in zip(before, own, strict=True)))
            attended = _separate(attend_self(query, *seen, layout_pass.schedule), runs)
            streams = {
                name: block.finish(begun[name], attended[name], conditionings[name]) for name, block in blocks.items()
            }
            return streams, own if return_cache else None

    body = jax.checkpoint(body, prevent_cse=False, policy=REMAT_POLICIES[remat])
    return jax.lax.scan(body, streams, (stacks, past))


def _expert_runs(layout_pass: Pass) -> tuple[tuple[str, int], ...]:
    """Returns (expert, tokens) of the stretches of the sequence that one expert has."""
    stretches = itertools.groupby(layout_pass.segments, key=lambda segment: segment.expert)
    return tuple((name, sum(segment.num_tokens for segment in stretch)) for name, stretch in stretches)


def _interleave(parts: Mapping[str, jax.Array], runs: tuple[tuple[str, int], ...]) -> jax.Array:
    """Returns heads ``[b k n e]`` of the whole sequence from each expert's ``[b k n_expert e]``."""
    pieces, taken = [], dict.fromkeys(parts, 0)
    for name, count in runs:
        pieces.append(jax.lax.slice_in_dim(parts[name], taken[name], taken[name] + count, axis=2))
        taken[name] += count
    return jnp.concatenate(pieces, axis=2)


def _separate(heads: jax.Array, runs: tuple[tuple[str, int], ...]) -> dict[str, jax.Array]:
    """Returns each expert's ``[b k n_expert e]`` of ``heads`` ``[b k n e]``."""
    pieces: dict[str, list[jax.Array]] = {}
    start = 0
    for name, count in runs:
        pieces.setdefault(name, []).append(jax.lax.slice_in_dim(heads, start, start + count, axis=2))
        start += count
    return {name: jnp.concatenate(parts, axis=2) for name, parts in pieces.items()}
