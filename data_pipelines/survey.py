"""What a look through the episodes of a dataset finds: which are broken, which are not wanted, where nothing moves.

Owns the findings, episode by episode, so that parts of a dataset can be surveyed by different processes and put
together. What follows from them (budget, split, windows) is ``index``'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_pipelines.filters import check_filters, find_idle_steps, find_unwanted
from data_pipelines.sources.source import EpisodeRecord, Source
from wamjax.config.schema import DataConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """Findings on some episodes of a dataset.

    Attributes:
      records: The episodes, broken ones too.
      broken: Reason by episode index for those that cannot be read whole or hold values that are not finite.
      unwanted: Reason by episode index for sound ones that ``config.data.filters`` leave out.
      idle: For the rest, by episode index, whether nothing moved since the step before; empty where no filter asks.
    """

    records: tuple[EpisodeRecord, ...]
    broken: dict[int, str]
    unwanted: dict[int, str]
    idle: dict[int, npt.NDArray[np.bool_]]

    @property
    def wanted(self) -> list[EpisodeRecord]:
        """Episodes that are sound and not left out."""
        return [r for r in self.records if r.index not in self.broken and r.index not in self.unwanted]


def survey_episodes(source: Source, config: DataConfig, records: Sequence[EpisodeRecord]) -> Survey:
    """Looks through ``records`` of a dataset; reads columns, decodes nothing.

    Raises:
      ConfigError: A filter needs a feature that the dataset does not have.
    """
    check_filters(source, config)
    noted = source.find_broken()
    broken: dict[int, str] = {}
    unwanted: dict[int, str] = {}
    idle: dict[int, npt.NDArray[np.bool_]] = {}
    for record in records:
        reason = noted.get(record.index) or find_not_finite(source, record)
        if reason:
            broken[record.index] = reason
            continue
        reason = find_unwanted(source, record, config)
        if reason:
            unwanted[record.index] = reason
            continue
        is_idle = find_idle_steps(source, record, config)
        if is_idle is not None:
            idle[record.index] = is_idle
    return Survey(records=tuple(records), broken=broken, unwanted=unwanted, idle=idle)


def find_not_finite(source: Source, record: EpisodeRecord) -> str | None:
    """Returns where an episode's columns first hold NaN or infinity, or None."""
    for name in source.columns:
        values = source.column(name, record.index)
        if np.isfinite(values).all():
            continue
        bad = np.argwhere(~np.isfinite(values))
        step, dim = bad[0]
        return f"{name} is not finite at step {step}, dim {dim} ({len(bad)} such values)"
    return None


def quote_reasons(reasons: dict[int, str], limit: int = 3) -> str:
    """Returns the first ``limit`` reasons on one line, each with its first episode and how many more share it."""
    episodes: dict[str, list[int]] = {}
    for index, reason in sorted(reasons.items()):
        episodes.setdefault(reason, []).append(index)
    quoted = [
        f"episode {indices[0]}{f' and {len(indices) - 1} more' if len(indices) > 1 else ''}: {reason}"
        for reason, indices in list(episodes.items())[:limit]
    ]
    rest = len(episodes) - len(quoted)
    return "; ".join(quoted) + (f"; and {rest} more reasons" if rest > 0 else "")
