"""The optimizer: clipping, a direction (AdamW, Muon or SGD), decoupled weight decay, the learning rate.

Owns which parameters get which. The learning rate is ``training.schedule``'s, moments in bfloat16 are
``training.moments``'s, and what happens where a gradient is not finite is ``training.update``'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from wamjax.config.schema import OptimizerConfig
from wamjax.errors import ConfigError
from wamjax.parallel.parameters import flatten_params, is_names
from wamjax.training.moments import scale_by_adam_in_bfloat16
from wamjax.types import PureDict

# Root mean square of an orthogonalised update: that of AdamW's, so that both want the same learning rate and decay.
# Source: Moonlight (Liu et al., arXiv 2502.16982), section 2.2.
MUON_UPDATE_RMS = 0.2


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, axes: PureDict, kernels: Mapping[str, int]
) -> optax.GradientTransformation:
    """Returns what turns gradients into updates.

    update = -lr (direction(clipped gradient) + weight_decay parameter), the second term for matrices only.

    Args:
      config: Which direction, and its constants.
      schedule: Learning rate of a step.
      axes: Logical dim names of each trained parameter.
      kernels: Dotted path -> number of summed dims (after a stack's), of all kernels of the model.

    Raises:
      ConfigError: Muon was asked for and nothing it is for is trained.
    """
    if config.kind == "muon":
        direction = _muon(config, _matrix_views(axes, kernels))
    elif config.kind == "sgd":
        direction = optax.trace(config.momentum, accumulator_dtype=jnp.dtype(config.moments_dtype))
    else:
        direction = _adam(config)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.chain(
            direction,
            optax.add_decayed_weights(config.weight_decay, mask=_decay_mask(axes)),
            optax.scale_by_learning_rate(schedule),
        ),
    )


def optimizer_shardings(
    optimizer: optax.GradientTransformation, abstract_state: Any, shardings: PureDict, replicated: NamedSharding
) -> Any:
    """Returns where the optimizer's state goes: moments where their parameter is, all else everywhere.

    Args:
      optimizer: What ``make_optimizer`` returned.
      abstract_state: Shapes of its state.
      shardings: Sharding of each trained parameter.
      replicated: The sharding of what belongs to no parameter.
    """

    def place(leaf: Any, sharding: NamedSharding) -> Any:
        return leaf if isinstance(leaf, optax.MaskedNode) else sharding

    return optax.tree.map_params(
        optimizer,
        place,
        abstract_state,
        shardings,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),  # a parameter this part of the state has no moment of
    )


def update_ema(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Returns the parameter average after ``step`` (0-based): ema + (1 - d') (params - ema).

    d' = min(decay, (1 + step) / (10 + step)) so that the average is not held back by the initial values.

    Source: TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.
    """
    n = step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return jax.tree.map(lambda average, value: average + (1.0 - rate) * (value - average), ema, params)


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.moments_dtype == "bfloat16":
        return scale_by_adam_in_bfloat16(config.b1, config.b2, config.eps)
    return optax.scale_by_adam(config.b1, config.b2, config.eps)


def _muon(config: OptimizerConfig, views: PureDict) -> optax.GradientTransformation:
    """Returns Muon for the parameters with a matrix view and Adam for the others.

    Source: Jordan et al., https://kellerjordan.github.io/posts/muon, by ``optax.contrib``. What differs from
    ``optax.contrib.muon``: weight decay follows one mask for both groups, and Adam is the one of ``kind = adamw``.
    """
    muon = optax.chain(
        scale_by_muon(
            beta=config.momentum, mu_dtype=jnp.dtype(config.moments_dtype), weight_dimension_numbers=lambda _: views
        ),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_to_rms, views, updates, is_leaf=_is_view)),
    )
    labels = jax.tree.map(lambda view: "muon" if _is_matrix(view) else "adam", views, is_leaf=_is_view)
    return optax.partition({"muon": muon, "adam": _adam(config)}, labels)


def _matrix_views(axes: PureDict, kernels: Mapping[str, int]) -> PureDict:
    """Returns, for each parameter, which of its dims are a matrix's rows and columns.

    Matrices are the kernels of the stacked blocks, whole: ``[layers d k e]`` is one matrix ``[d, k e]`` per layer.
    Embeddings, heads and low-rank updates are none (they map to or from something that is not the residual stream, or
    are factors of a matrix): they get ``optax.MaskedNode``, as ``optax.partition`` masks them.

    Raises:
      ConfigError: There is no matrix.
    """

    def view(path: Any, names: tuple[str | None, ...]) -> Any:
        num_summed = kernels.get(jax.tree_util.keystr(path, simple=True, separator="."), 0)
        if not num_summed or names[0] != "layers":
            return optax.MaskedNode()
        rows = 1 + num_summed
        return MuonDimensionNumbers(tuple(range(1, rows)), tuple(range(rows, len(names))))

    views = jax.tree_util.tree_map_with_path(view, axes, is_leaf=is_names)
    if not any(_is_matrix(leaf) for leaf in jax.tree.leaves(views, is_leaf=_is_view)):
        trained = list(flatten_params(axes))[:1]
        raise ConfigError(
            "config.optimizer.kind=muon is for kernels of the blocks, and config.finetune trains none of them "
            f"(it trains {trained[0] if trained else 'nothing'} ...); use adamw"
        )
    return views


def _scale_to_rms(view: Any, update: Any) -> Any:
    """Scales an orthogonalised update, whose rows or columns have length 1, to ``MUON_UPDATE_RMS``."""
    if not _is_matrix(view):
        return update
    sizes = (math.prod(update.shape[dim] for dim in dims) for dims in view)
    return update * (MUON_UPDATE_RMS * math.sqrt(max(sizes)))


def _is_matrix(view: Any) -> bool:
    return isinstance(view, MuonDimensionNumbers)


def _is_view(node: Any) -> bool:
    return isinstance(node, MuonDimensionNumbers | optax.MaskedNode)


def _decay_mask(axes: PureDict) -> PureDict:
    """Returns which parameters decay: those with two or more dims of their own (the stack's dim is not one)."""
    return jax.tree.map(lambda names: sum(n != "layers" for n in names) >= 2, axes, is_leaf=is_names)
