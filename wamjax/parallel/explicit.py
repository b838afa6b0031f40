"""Blocks as one program per device: which collectives move weights is written here, not left to XLA.

Inside ``jax.shard_map`` a kernel is this device's rows of it, and tokens are this device's part of the sequence.
``gather_kernel`` makes the whole kernel (and adds up its gradient); what moves tokens is in ``parallel.context``. On
whole arrays it is a cast, so that one model definition serves both.

Why not XLA's own collectives: docs/design/explicit-blocks.md.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from wamjax.config.choices import GradientExchange
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.parallel.rule_tables import RuleTables, build_rules
from wamjax.parallel.rules import AXES_KEY, Placement, active_placement

SPLIT_DIM = "embed"  # the logical dim of a kernel that is split over devices

# device_kind -> exchange, reduce_scatter otherwise. On TPU v5p no reduce-scatter is asynchronous and an all-to-all is;
# where one mesh axis is long an all-to-all takes more of the links than it saves. Compiled with jax 0.10.2 and libtpu
# 0.0.51.
_EXCHANGES: dict[str, GradientExchange] = {"TPU v5": "all_to_all"}


def choose_exchange(wanted: GradientExchange, mesh: Mesh) -> GradientExchange:
    """Returns how gradients of kernels are added up on the chips of ``mesh``."""
    if wanted != "auto":
        return wanted
    kind = mesh.devices.flat[0].device_kind
    return _EXCHANGES.get(kind, "reduce_scatter")


def make_placement(config: ParallelConfig, mesh: Mesh) -> Placement:
    """Returns the placement that ``config`` describes.

    Raises:
      ConfigError: The blocks cannot be explicit on this mesh, or the rules contradict it.
    """
    rules = build_rules(config)
    if config.rules == "multi_slice" and mesh.shape["data"] == 1:
        raise ConfigError(
            "config.parallel.rules=multi_slice with data=1: every slice is a replica or more; set config.parallel.data "
            "to the number of slices, or rules=fsdp_context for one slice"
        )
    if config.blocks == "explicit" and mesh.shape["tensor"] > 1:
        raise ConfigError(
            f"config.parallel.blocks=explicit with tensor={mesh.shape['tensor']}: it needs config.parallel.tensor=1; "
            "config.parallel.blocks=sharded runs on any mesh"
        )
    if config.blocks == "explicit":
        _check_rows_alone_are_split(rules, mesh)
    exchange = choose_exchange(config.gradient_exchange, mesh)
    return Placement(
        mesh=mesh,
        rules=rules,
        blocks=config.blocks,
        gradient_exchange=exchange,
        context_method=config.context_method,
        token_placement=config.token_placement,
        attention_kernel=config.attention_kernel,
    )


def _check_rows_alone_are_split(rules: RuleTables, mesh: Mesh) -> None:
    """Refuses parameters split along other dims than ``gather_kernel`` gathers."""
    for name, entry in rules.parameters.items():
        axes = (entry,) if isinstance(entry, str) else entry or ()
        if name != SPLIT_DIM and any(mesh.shape[axis] > 1 for axis in axes):
            raise ConfigError(
                f"config.parallel.blocks=explicit splits kernels along {SPLIT_DIM} alone, and the rules put {name} on "
                f"{'+'.join(axes)}; change config.parallel.rule_overrides, or set config.parallel.blocks=sharded"
            )


def row_major(x: jax.Array) -> jax.Array:
    """Pins a local array and its gradient row-major in memory, the last dim contiguous; identity on whole arrays."""
    placement = active_placement()
    if placement is None or not placement.is_local:
        return x
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def gather_kernel(param: nnx.Param[Any], dtype: str) -> jax.Array:
    """Returns a layer's kernel, whole and in the compute dtype.

    The gradient that flows back is in the compute dtype too. Over devices it is added up in fp32 by ``all_to_all``, in
    the compute dtype by ``reduce_scatter``.

    Args:
      param: The layer's parameter, in the blocks of an explicit program this device's part of it.
      dtype: Compute dtype.
    """
    kernel: jax.Array = param[...]
    placement = active_placement()
    if placement is None or not placement.is_local:
        return kernel.astype(dtype)
    names = param.get_metadata()[AXES_KEY][-kernel.ndim :]
    axes = _mesh_axes(placement)
    if SPLIT_DIM not in names or not axes:
        return kernel.astype(dtype)
    return _gather(kernel, names.index(SPLIT_DIM), dtype, axes, placement.gradient_exchange)


def _mesh_axes(placement: Placement) -> tuple[str, ...]:
    """Returns the mesh axes of more than one device that kernels are split over."""
    entry = placement.rules.parameters[SPLIT_DIM]
    axes = (entry,) if isinstance(entry, str) else entry or ()
    return tuple(axis for axis in axes if placement.mesh.shape[axis] > 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(part: jax.Array, dim: int, dtype: str, axes: tuple[str, ...], exchange: GradientExchange) -> jax.Array:
    """Returns the whole of an array split along ``dim`` over ``axes``, cast before it is sent."""
    del exchange
    return jax.lax.all_gather(part.astype(dtype), axes, axis=dim, tiled=True)


def _gather_forward(
    part: jax.Array, dim: int, dtype: str, axes: tuple[str, ...], exchange: GradientExchange
) -> tuple[jax.Array, None]:
    return _gather(part, dim, dtype, axes, exchange), None


def _gather_backward(
    dim: int, dtype: str, axes: tuple[str, ...], exchange: GradientExchange, kept: None, grad: jax.Array
) -> tuple[jax.Array]:
    del dtype, kept
    if exchange == "reduce_scatter":
        return (jax.lax.psum_scatter(grad, axes, scatter_dimension=dim, tiled=True).astype(jnp.float32),)
    ways = jax.lax.axis_size(axes)
    rows = jnp.moveaxis(grad, dim, 0)
    parts = rows.reshape(ways, rows.shape[0] // ways, *rows.shape[1:])
    parts = jax.lax.all_to_all(parts, axes, split_axis=0, concat_axis=0, tiled=True)
    return (jnp.moveaxis(jnp.sum(parts, axis=0, dtype=jnp.float32), 0, dim),)


_gather.defvjp(_gather_forward, _gather_backward)
