"""The stack of blocks: made with a layer dim in front, and scanned.

It runs as XLA places it, or as one program per device whose collectives are written out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from wamjax.config.backbone import BlockConfig
from wamjax.config.choices import Remat
from wamjax.config.systems import check_layers_are_whole
from wamjax.errors import ConfigError
from wamjax.layout import Pass
from wamjax.layout.balance import TokenOrder
from wamjax.models.block import Block, Conditioning
from wamjax.models.remat import BLOCK_INPUT, REMAT_POLICIES
from wamjax.nn.attention import token_order
from wamjax.nn.init import AXES_KEY
from wamjax.nn.multihead import KeysValues
from wamjax.nn.products import multiplying_in
from wamjax.nn.rotary import Rotation
from wamjax.parallel.context_plan import CONTEXT
from wamjax.parallel.parameters import parameter_shardings
from wamjax.parallel.reorder import reorder
from wamjax.parallel.rules import Placement, active_placement, partition_spec, placing
from wamjax.types import PRNGKey, PureDict, Tokens


class Period(nnx.Module):
    """The layers of a pattern, one after the other; of a stack, every parameter has a dim of periods in front.

    Attributes:
      layers: Named ``layer_0``, ``layer_1``, ...
    """

    def __init__(self, key: PRNGKey, config: BlockConfig) -> None:
        """Makes the blocks of ``config.layers``."""
        self.num_layers, self.num_heads = len(config.layers), config.num_heads
        self.dtype, self.is_recurrent = config.compute_dtype, config.is_recurrent
        for place, layer in enumerate(config.layers):
            setattr(self, f"layer_{place}", Block(jax.random.fold_in(key, place), layer))

    @property
    def layers(self) -> tuple[Block, ...]:
        """The blocks in order."""
        return tuple(getattr(self, f"layer_{place}") for place in range(self.num_layers))


Stack = Block | Period
Stacks = dict[str, Stack]
# Tokens ``[b n d]`` of each stack, whose n and d differ.
Streams = dict[str, jax.Array]
Conditionings = dict[str, Conditioning]


def stack_blocks(key: PRNGKey, config: BlockConfig, num_layers: int) -> Stack:
    """Makes ``num_layers`` blocks as one module whose parameters have a layer dim in front.

    Of a pattern of layers that is a ``Period``, stacked as often as the pattern repeats.
    """
    period = len(config.layers)
    make = Block if period == 1 else Period
    return nnx.vmap(
        lambda block_key: make(block_key, config),
        transform_metadata={nnx.PARTITION_NAME: None, AXES_KEY: "layers"},
    )(jax.random.split(key, num_layers // period))


def layers_of(stack: Stack) -> tuple[Block, ...]:
    """Returns the blocks that one step of a scan over ``stack`` runs."""
    return stack.layers if isinstance(stack, Period) else (stack,)


def check_has_no_cache(stack: Stack, past: object, *, return_cache: bool) -> None:
    """Refuses a cache for layers that cannot read one.

    Raises:
      ConfigError: The stack has layers by a pattern or a recurrence, and a pass has a past or is to become one.
    """
    if (isinstance(stack, Period) or stack.is_recurrent) and (past is not None or return_cache):
        raise ConfigError(
            "config.backbone.block.attention has a pattern of layers or a recurrence, and keys and values of earlier "
            "tokens are kept for stacks of equal attention alone; run the tokens anew, without a cache"
        )


def run_blocks(
    blocks: Stack,
    x: Tokens,
    layout_pass: Pass,
    conditioning: Conditioning,
    past: KeysValues | None,
    *,
    remat: Remat,
    return_cache: bool,
) -> tuple[Tokens, KeysValues | None]:
    """Runs ``blocks`` over the tokens of one pass; arguments and results as ``scan_blocks``.

    Where there is no cache, as in training, tokens are dealt out over the context axis so that attention is balanced,
    and where the placement asks for explicit blocks it is one program per device.
    """
    placement = active_placement()
    if placement is None or past is not None or return_cache:
        return scan_blocks(blocks, x, layout_pass, conditioning, past, remat=remat, return_cache=return_cache)
    for block in layers_of(blocks):
        check_layers_are_whole((block.attention,), placement.mesh.shape[CONTEXT])
    order = token_order(placement, layout_pass.schedule, blocks.num_heads)
    if order is not None:
        layout_pass = dataclasses.replace(layout_pass, schedule=order.apply(layout_pass.schedule))
        conditioning = _reorder_conditioning(conditioning, order)
        x = reorder(x, order.pieces, placement)
    if placement.blocks == "explicit":

        def run(stacks: Stacks, tokens: Streams, conditionings: Conditionings) -> Streams:
            out, _ = scan_blocks(
                stacks[""], tokens[""], layout_pass, conditionings[""], None, remat=remat, return_cache=False
            )
            return {"": out}

        x = run_explicit(run, {"": blocks}, {"": x}, {"": conditioning}, placement)[""]
    else:
        x, _ = scan_blocks(blocks, x, layout_pass, conditioning, None, remat=remat, return_cache=False)
    return x if order is None else reorder(x, order.inverse().pieces, placement), None


def _reorder_conditioning(conditioning: Conditioning, order: TokenOrder) -> Conditioning:
    """Returns ``conditioning`` with what belongs to tokens in another order."""

    def moved(x: Any) -> Any:
        stack = np.concatenate if isinstance(x, np.ndarray) else jnp.concatenate
        return stack([x[start:stop] for start, stop in order.spans(x.shape[0])])

    runs, positions = _slots_of_tokens(conditioning), conditioning.positions
    return conditioning._replace(
        runs=conditioning.runs if isinstance(runs, tuple) else jnp.asarray(moved(runs)),
        rotation=None if conditioning.rotation is None else Rotation(*(moved(part) for part in conditioning.rotation)),
        positions=None if positions is None else moved(positions),
    )


def run_explicit(
    run: Callable[[Stacks, Streams, Conditionings], Streams],
    stacks: Stacks,
    streams: Streams,
    conditionings: Conditionings,
    placement: Placement,
) -> Streams:
    """Runs stacks with this device's part of every kernel and of the sequence (``parallel.explicit``).

    Args:
      run: What a device does with its part: (stacks, their tokens ``[b n d]``, their conditioning) -> new tokens.
      stacks: By name.
      streams: Tokens, by the same names.
      conditionings: Likewise.
      placement: The mesh and its rules.
    """
    split = {name: nnx.split(blocks) for name, blocks in stacks.items()}
    is_split = placement.mesh.shape[CONTEXT] > 1
    runs = {name: conditioning.runs for name, conditioning in conditionings.items()}
    conditionings = {
        name: conditioning._replace(runs=_slots_of_tokens(conditioning) if is_split else ())
        for name, conditioning in conditionings.items()
    }

    def run_local(params: PureDict, streams: Streams, conditionings: Conditionings) -> Streams:
        if not is_split:
            conditionings = {name: part._replace(runs=runs[name]) for name, part in conditionings.items()}
        with placing(placement.local()):
            local = {name: nnx.merge(graphdef, params[name]) for name, (graphdef, _) in split.items()}
            return run(local, streams, conditionings)

    def spec(array: Any, first: str, *others: str | None) -> PartitionSpec:
        names = (first, *others, *(None,) * (array.ndim - 1 - len(others)))
        return partition_spec(names, array.shape, placement.mesh, placement.rules.activations, "activation")

    conditionings = jax.tree.map(jnp.asarray, conditionings)
    per_token = {"runs", "rotation", "positions"}

    def field_specs(name: str, value: Any) -> Any:
        # A rotation with a dim of samples has that one first.
        is_first = name in per_token and not (name == "rotation" and value is not None and value[0].ndim > 2)
        return jax.tree.map(lambda array: spec(array, "tokens" if is_first else "batch"), value)

    conditioning_specs = {
        name: Conditioning(*(field_specs(field, value) for field, value in part._asdict().items()))
        for name, part in conditionings.items()
    }
    params_specs = {
        name: jax.tree.map(
            lambda sharding: sharding.spec, parameter_shardings(variables, placement.mesh, placement.rules.parameters)
        )
        for name, (_, variables) in split.items()
    }
    tokens = {name: spec(x, "batch", "tokens") for name, x in streams.items()}
    return jax.shard_map(
        run_local,
        mesh=placement.mesh,
        in_specs=(params_specs, tokens, conditioning_specs),
        out_specs=tokens,
        check_vma=False,  # kernels have no types for what varies over the mesh
    )({name: nnx.to_pure_dict(variables) for name, (_, variables) in split.items()}, streams, conditionings)


def _slots_of_tokens(conditioning: Conditioning) -> np.ndarray | jax.Array | tuple[()]:
    """Returns int32 ``[n]``, every token's slot: a device's part of the sequence may begin within a run.

    Empty where there is one slot, which needs no telling apart.
    """
    if conditioning.embedding.shape[1] == 1:
        return ()
    if not isinstance(conditioning.runs, Sequence):
        return conditioning.runs
    return np.concatenate([np.full(count, slot, np.int32) for slot, count in conditioning.runs])


def scan_blocks(
    blocks: Stack,
    x: Tokens,
    layout_pass: Pass,
    conditioning: Conditioning,
    past: KeysValues | None,
    *,
    remat: Remat,
    return_cache: bool,
) -> tuple[Tokens, KeysValues | None]:
    """Scans ``blocks`` over the tokens of one pass.

    Args:
      blocks: A stack.
      x: ``[b n d]`` tokens of ``layout_pass.segments``.
      layout_pass: Which segments are computed and which keys come from ``past``.
      conditioning: What every block reads besides its tokens.
      past: Keys and values of all layers, ``[layers b k m e]``; None if the pass has no past.
      remat: Name of what the backward pass finds (``models.remat``).
      return_cache: Whether the computed tokens' keys and values are returned.

    Returns:
      The tokens after the last block, and the cache of all layers (or None).

    Raises:
      ConfigError: A pattern of layers has a past, or is to return one.
    """
    check_has_no_cache(blocks, past, return_cache=return_cache)

    def layer(x: jax.Array, block: Block, past: KeysValues | None) -> tuple[jax.Array, KeysValues | None]:
        with multiplying_in(block.matmul):
            x, own = block(checkpoint_name(x, BLOCK_INPUT), layout_pass, conditioning, past)
        return x, own if return_cache else None

    layer = jax.checkpoint(layer, prevent_cse=False, policy=REMAT_POLICIES[remat])

    def body(x: jax.Array, step: tuple[Stack, KeysValues | None]) -> tuple[jax.Array, KeysValues | None]:
        stack, past = step
        own = None
        for block in layers_of(stack):
            x, own = layer(x, block, past)
        return x, own

    return jax.lax.scan(body, x, (blocks, past))
