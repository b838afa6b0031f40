"""Where a module's parameters go: from the names of their dims to shardings on a mesh."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from wamjax.parallel.rule_tables import PARAMETER_RULES, Rules
from wamjax.parallel.rules import AXES_KEY, partition_spec
from wamjax.types import PureDict


def parameter_axes(variables: nnx.State[Any, Any]) -> PureDict:
    """Returns the logical names of each parameter's dims, as a nested dict of tuples."""
    named = jax.tree.map(lambda v: v.replace(v.get_metadata()[AXES_KEY]), variables, is_leaf=_is_variable)
    return nnx.to_pure_dict(named)


def parameter_shardings(
    variables: nnx.State[Any, Any], mesh: Mesh, rules: Rules = PARAMETER_RULES, *, uneven_whole: bool = False
) -> PureDict:
    """Returns the sharding of each parameter, as a nested dict.

    Args:
      variables: The state of an abstract module.
      mesh: The device mesh.
      rules: Rules of parameters.
      uneven_whole: Whether every device gets all of a dim that does not divide: for weights that are read and used as
        they are on whatever devices there are, where a training run rather wants to be told.

    Raises:
      ConfigError: As ``rules.partition_spec``, naming the parameter.
    """

    def place(path: Any, names: tuple[str | None, ...], leaf: jax.ShapeDtypeStruct | jax.Array) -> NamedSharding:
        what = f"parameter {jax.tree_util.keystr(path, simple=True, separator='.')}"
        return NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, rules, what, uneven_whole=uneven_whole))

    axes, shapes = parameter_axes(variables), nnx.to_pure_dict(variables)
    return jax.tree_util.tree_map_with_path(place, axes, shapes, is_leaf=is_names)


def flatten_params(params: PureDict) -> dict[str, Any]:
    """Returns dotted path -> leaf of a nested dict, in the tree's order: ``blocks.mlp.up.kernel``."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def is_names(node: Any) -> bool:
    """Returns whether ``node`` is the dim names of one parameter (a leaf of what ``parameter_axes`` returns)."""
    return isinstance(node, tuple) and all(n is None or isinstance(n, str) for n in node)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)
