"""The division of a model's parameters into those that are trained and those that are kept.

Owns which are which, and taking a tree apart and putting it together. Where kept values come from is
``training.base``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx

from wamjax.config.finetune import is_trained, require_matches
from wamjax.config.schema import FinetuneConfig
from wamjax.errors import ConfigError
from wamjax.parallel.parameters import flatten_params
from wamjax.types import PureDict


def trained_paths(variables: nnx.State[Any, Any], config: FinetuneConfig) -> frozenset[str]:
    """Returns the dotted paths of the parameters that are trained.

    Constants of the data (``models.codec.Statistic``) are not parameters and never among them.

    Args:
      variables: The state of a model.
      config: What to train.

    Raises:
      ConfigError: A pattern names no parameter, or nothing is left to train.
    """
    params = flatten_params(nnx.to_pure_dict(nnx.filter_state(variables, nnx.Param)))
    require_matches(config.frozen, params, "frozen", "parameter")
    require_matches(config.trained, params, "trained", "parameter")
    trained = frozenset(path for path in params if is_trained(path, config))
    if not trained:
        raise ConfigError(
            f"config.finetune.frozen={config.frozen} leaves nothing to train; except something with "
            "config.finetune.trained, or give config.finetune.lora_targets"
        )
    return trained


def split_tree(tree: PureDict, is_first: Callable[[str], bool], *, prefix: str = "") -> tuple[PureDict, PureDict]:
    """Returns two nested dicts: the leaves of ``tree`` at whose dotted path ``is_first`` holds, and the others."""
    first: PureDict = {}
    second: PureDict = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            parts = split_tree(value, is_first, prefix=f"{path}.")
            for whole, part in zip((first, second), parts, strict=True):
                if part:
                    whole[key] = part
        else:
            (first if is_first(path) else second)[key] = value
    return first, second


def join_trees(first: PureDict, second: PureDict) -> PureDict:
    """Returns one nested dict with the leaves of both, which share none: the reverse of ``split_tree``."""
    joined = dict(first)
    for key, value in second.items():
        assert key not in joined or isinstance(joined[key], dict), f"{key} is in both trees"
        joined[key] = join_trees(joined[key], value) if key in joined else value
    return joined
