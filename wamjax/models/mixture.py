"""A mixture of transformers: stacks of blocks that share nothing but one softmax per layer.

Every expert has weights and a width of its own for the tokens that are its (``Segment.expert``), its own timesteps and
its own text; queries, keys and values of all meet in self-attention, which follows the layout of the whole sequence.
Heads and depth are therefore the same in all. An expert is an ordinary stack (``models.stack``): a mixture of one is
the single model. In a layer where an expert reads its own tokens by a recurrence, the others attend without it.

Source: Mixture-of-Transformers (arXiv 2411.04996), and Fast-WAM's ``mot.py``; what differs: attention is that of a
layout's schedule, and an expert's tokens need not lie together.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from wamjax.config.choices import Remat
from wamjax.config.systems import check_mixture_is_whole
from wamjax.layout import Pass
from wamjax.layout.windows import layer_schedule, schedule_beside
from wamjax.models.block import Block
from wamjax.models.remat import BLOCK_INPUT, REMAT_POLICIES
from wamjax.models.stack import Conditionings, Stacks, Streams, check_has_no_cache, layers_of, run_explicit
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
    past_seen: jax.Array | None = None,
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
      past_seen: bool ``[b m]``: which tokens of the past are seen; None for all.

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
    return scan_mixture(
        stacks,
        streams,
        layout_pass,
        conditionings,
        past,
        remat=remat,
        return_cache=return_cache,
        past_seen=past_seen,
    )


def scan_mixture(
    stacks: Stacks,
    streams: Streams,
    layout_pass: Pass,
    conditionings: Conditionings,
    past: KeysValues | None = None,
    *,
    remat: Remat,
    return_cache: bool = False,
    past_seen: jax.Array | None = None,
) -> tuple[Streams, KeysValues | None]:
    """Scans the experts; arguments and result as ``run_mixture``.

    Raises:
      ConfigError: There is or is to be a cache, and a stack has layers that cannot read one.
    """
    for stack in stacks.values():
        check_has_no_cache(stack, past, return_cache=return_cache)

    def layer(
        streams: Streams, blocks: dict[str, Block], before: KeysValues | None
    ) -> tuple[Streams, KeysValues | None]:
        with multiplying_in(next(iter(blocks.values())).matmul):
            named = {name: checkpoint_name(tokens, BLOCK_INPUT) for name, tokens in streams.items()}
            alone = [name for name, block in blocks.items() if block.is_recurrent]
            new = {
                name: blocks[name].recur(named[name], layout_pass.of_expert(name), conditionings[name])
                for name in alone
            }
            joint = {name: block for name, block in blocks.items() if name not in alone}
            if not joint:
                return new, None
            attended, own = _run_jointly(joint, named, layout_pass, conditionings, alone, before, past_seen)
            return new | attended, own if return_cache else None

    layer = jax.checkpoint(layer, prevent_cse=False, policy=REMAT_POLICIES[remat])

    def body(streams: Streams, step: tuple[Stacks, KeysValues | None]) -> tuple[Streams, KeysValues | None]:
        layers, own = {name: layers_of(stack) for name, stack in step[0].items()}, None
        for blocks in zip(*layers.values(), strict=True):
            streams, own = layer(streams, dict(zip(layers, blocks, strict=True)), step[1])
        return streams, own

    return jax.lax.scan(body, streams, (stacks, past))


def _run_jointly(
    blocks: Mapping[str, Block],
    streams: Streams,
    layout_pass: Pass,
    conditionings: Conditionings,
    alone: Sequence[str],
    before: KeysValues | None,
    before_seen: jax.Array | None,
) -> tuple[Streams, KeysValues]:
    """Runs one layer of ``blocks``, which attend together, to what is seen of ``before``, and not to ``alone``.

    Returns:
      The tokens of each, and their keys and values.
    """
    begun = {name: block.begin(streams[name], conditionings[name]) for name, block in blocks.items()}
    runs = tuple(run for run in _expert_runs(layout_pass) if run[0] in blocks)
    query, key, value = (
        _interleave(parts, runs)
        for parts in (
            {name: part.query for name, part in begun.items()},
            {name: part.own.keys for name, part in begun.items()},
            {name: part.own.values for name, part in begun.items()},
        )
    )
    own = KeysValues(key, value)
    keys, values = own
    if before is not None:
        keys, values = (jnp.concatenate(pair, axis=2) for pair in zip(before, own, strict=True))
    shown = _seen({name: conditionings[name] for name in blocks}, streams, runs)
    if before is not None and before_seen is not None:
        own_seen = jnp.ones((query.shape[0], query.shape[2]), bool) if shown is None else shown
        shown = jnp.concatenate([before_seen, own_seen], axis=1)
    # Experts have the same windows, so that any of them says what the layer shows.
    attention = next(iter(blocks.values())).attention
    schedule = schedule_beside(layout_pass, alone) if alone else layer_schedule(layout_pass, attention)
    attended = _separate(attend_self(query, keys, values, schedule, key_mask=shown), runs)
    new = {name: block.finish(begun[name], attended[name], conditionings[name]) for name, block in blocks.items()}
    return new, own


def _expert_runs(layout_pass: Pass) -> tuple[tuple[str, int], ...]:
    """Returns (expert, tokens) of the stretches of the sequence that one expert has."""
    stretches = itertools.groupby(layout_pass.segments, key=lambda segment: segment.expert)
    return tuple((name, sum(segment.num_tokens for segment in stretch)) for name, stretch in stretches)


def _seen(conditionings: Conditionings, streams: Streams, runs: tuple[tuple[str, int], ...]) -> jax.Array | None:
    """Returns which tokens of ``runs`` are seen, bool ``[b n]``; None where all are."""
    if all(told.seen is None for told in conditionings.values()):
        return None
    masks = {
        name: jnp.ones(streams[name].shape[:2], bool) if told.seen is None else told.seen
        for name, told in conditionings.items()
    }
    return _interleave({name: mask[:, None, :, None] for name, mask in masks.items()}, runs)[:, 0, :, 0]


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
