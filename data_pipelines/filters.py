"""Which sound episodes and windows a run does not read (``config.data.filters``).

Owns the filters and the reasons they give. They look at lengths, instructions and columns, decode nothing, and are
applied before the split and long before the stream: the stream itself never skips.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_pipelines.sources.source import EpisodeRecord, Source
from data_pipelines.vectors import build_layout, vector_keys
from wamjax.config.schema import DataConfig
from wamjax.errors import ConfigError


def data_columns(config: DataConfig) -> tuple[str, ...]:
    """Returns the features that training and its filters read of a dataset, each once."""
    return tuple(dict.fromkeys(key for key in (*vector_keys(config), config.filters.success_key) if key))


def state_keys(config: DataConfig) -> tuple[str, ...]:
    """Returns the features that the state is gathered from."""
    return build_layout(config, lambda key: 0).state_keys


def check_filters(source: Source, config: DataConfig) -> None:
    """Raises ``ConfigError`` where a filter needs a feature that is not read."""
    if config.filters.max_idle < 1 and not state_keys(config):
        raise ConfigError(
            f"config.data.filters.max_idle={config.filters.max_idle:g} looks at the state, and {source.path} is read "
            "without one (config.data.state_key, config.data.embodiment): set it to 1"
        )


def find_unwanted(source: Source, record: EpisodeRecord, config: DataConfig) -> str | None:
    """Returns why a sound episode is left out, or None."""
    filters = config.filters
    if record.length < filters.min_steps:
        return f"shorter than config.data.filters.min_steps={filters.min_steps}"
    if filters.needs_prompt and not record.task.strip():
        return "no instruction or caption (config.data.filters.needs_prompt)"
    if filters.success_key and not np.any(source.column(filters.success_key, record.index) > 0):
        return f"no success (config.data.filters.success_key={filters.success_key})"
    return None


def find_idle_steps(source: Source, record: EpisodeRecord, config: DataConfig) -> npt.NDArray[np.bool_] | None:
    """Returns bool ``[length]``: whether nothing moved since the step before; None where no filter asks.

    The first step has none before it and counts as moved.
    """
    if config.filters.max_idle >= 1:
        return None
    is_idle = np.zeros(record.length, np.bool_)
    is_idle[1:] = True
    for key in state_keys(config):
        steps = np.abs(np.diff(source.column(key, record.index), axis=0))
        is_idle[1:] &= (steps <= config.filters.idle_motion).all(axis=1)
    return is_idle


def is_moving(
    starts: npt.NDArray[np.int32], is_idle: npt.NDArray[np.bool_], *, window_steps: int, max_idle: float
) -> npt.NDArray[np.bool_]:
    """Returns bool ``[windows]``: whether at most ``max_idle`` of a window's real steps are idle.

    Args:
      starts: int32 ``[windows]``, within one episode.
      is_idle: bool ``[length]``.
      window_steps: Dataset steps from the first to the last frame of a window; those beyond the end do not count.
      max_idle: Largest share of idle steps kept.
    """
    counts = np.concatenate([[0], np.cumsum(is_idle)])
    ends = np.minimum(starts + window_steps + 1, len(is_idle))
    return counts[ends] - counts[starts] <= max_idle * (ends - starts)
