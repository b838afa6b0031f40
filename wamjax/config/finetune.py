"""Which parameters a run trains: names by pattern, and kernels that are kept and get a low-rank update.

A pattern (``*``, ``?``, ``[...]``) names a parameter by its dotted path, or everything below a module by the module's:
``blocks.mlp`` is every parameter of the feed-forward layers.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Collection, Iterable

from wamjax.config.schema import FinetuneConfig
from wamjax.errors import ConfigError

# Kernels that can take a low-rank update -> the attribute, beside the kernel, that holds it.
UPDATE_OF = {"kernel": "lora", "out_kernel": "out_lora"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates.

    Attributes:
      rank: Rank of each update.
      alpha: Updates are scaled by ``alpha / rank``.
      targets: Patterns of the kernels that get one.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]


def lora_config(config: FinetuneConfig) -> LoraConfig | None:
    """Returns the updates of a run; None if it has none."""
    if not config.lora_targets:
        return None
    return LoraConfig(rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets)


def is_trained(path: str, config: FinetuneConfig) -> bool:
    """Returns whether the parameter at the dotted ``path`` is trained.

    A kernel with a low-rank update is not, its update always is; of the rest, what ``frozen`` names is not, unless
    ``trained`` names it too.
    """
    name = path.rpartition(".")[2]
    if is_update(path):
        return True
    if name in UPDATE_OF and matches(path, config.lora_targets):
        return False
    return matches(path, config.trained) or not matches(path, config.frozen)


def is_update(path: str) -> bool:
    """Returns whether the parameter at the dotted ``path`` belongs to a low-rank update."""
    return not set(path.split(".")).isdisjoint(UPDATE_OF.values())


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Returns whether a pattern names the dotted ``path`` or a module above it."""
    parts = path.split(".")
    prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatch.fnmatchcase(prefix, pattern) for pattern in patterns for prefix in prefixes)


def require_matches(patterns: Iterable[str], paths: Collection[str], key: str, what: str) -> None:
    """Checks that every pattern names something.

    Args:
      patterns: Patterns.
      paths: What can be named.
      key: Key of ``config.finetune`` the patterns are from.
      what: What they name, singular.

    Raises:
      ConfigError: One names nothing.
    """
    for pattern in patterns:
        if not any(matches(path, (pattern,)) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.3) or list(paths)[:1]
            raise ConfigError(
                f"config.finetune.{key}: {pattern!r} names no {what} of the model; one is {near[0] if near else 'none'}"
            )
