"""Scaling of actions and states to [-1, 1] by quantiles of the training episodes, and back.

Owns the statistics, their JSON file and the two directions of the map. Does not choose the episodes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.sources.source import Source
from wamjax.config.schema import DataConfig
from wamjax.errors import DataError

LOW_QUANTILE, HIGH_QUANTILE = 0.01, 0.99
# A dim whose quantiles lie closer than this share of their size carries no signal: float32 resolves 1.2e-7.
MIN_RELATIVE_SPREAD = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantileScale:
    """The affine map of one feature: q01 to -1, q99 to 1, then clamped to [-1, 1].

    A dim without spread (q99 = q01) maps to 0 where it equals that value, with unit scale around it, so that a
    constant dim neither divides by zero nor blows up noise.

    Attributes:
      q01: ``[dims]``, unit of the feature.
      q99: ``[dims]``, unit of the feature.
      mean: ``[dims]``, unit of the feature: the mean over training steps (the training-mean baseline).
      clamped: ``[dims]``: share of training values the clamp changes (about 0.02 for a dim with tails).
    """

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    mean: tuple[float, ...]
    clamped: tuple[float, ...]

    @property
    def num_dims(self) -> int:
        """Dims of the feature, before padding."""
        return len(self.q01)

    def _affine(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Returns centre and half range of each dim."""
        low, high = np.array(self.q01), np.array(self.q99)
        spread = high - low
        flat = spread <= MIN_RELATIVE_SPREAD * np.maximum(np.abs(low), np.abs(high))
        return (low + high) / 2, np.where(flat, 1.0, spread / 2)

    def normalise(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns float32 of the shape of ``values`` ``[..., dims]``, in [-1, 1]."""
        centre, half = self._affine()
        return np.clip((values - centre) / half, -1.0, 1.0).astype(np.float32)

    def denormalise(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Inverse of ``normalise`` for values the clamp left alone.

        Args:
          values: ``[..., u]`` with u at least the feature's dims; dims beyond are padding and are dropped.
        """
        centre, half = self._affine()
        return (values[..., : self.num_dims] * half + centre).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Scales of a run's actions and states, and the dataset they were computed from.

    Attributes:
      actions: Scale of the actions.
      state: Scale of the state.
      fingerprint: Of the dataset.
      episodes: How many training episodes the statistics cover.
      steps: How many steps they cover.
    """

    actions: QuantileScale
    state: QuantileScale
    fingerprint: str
    episodes: int
    steps: int

    def normalise_actions(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """See ``QuantileScale.normalise``."""
        return self.actions.normalise(values)

    def denormalise_actions(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """See ``QuantileScale.denormalise``."""
        return self.actions.denormalise(values)

    def normalise_state(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """See ``QuantileScale.normalise``."""
        return self.state.normalise(values)

    def denormalise_state(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """See ``QuantileScale.denormalise``."""
        return self.state.denormalise(values)

    def save(self, path: Path) -> None:
        """Writes the statistics as JSON with a digest of themselves, whole or not at all."""
        content = dataclasses.asdict(self)
        write_json(path, {"digest": _digest(content), **content})

    @classmethod
    def load(cls, path: Path) -> Normalisation:
        """Reads what ``save`` wrote.

        Raises:
          DataError: The file is missing, is not JSON, or does not match its digest.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            digest = content.pop("digest")
            scales = {name: QuantileScale(**_as_tuples(content.pop(name))) for name in ("actions", "state")}
            loaded = cls(**scales, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"normalisation {path} cannot be read: {type(error).__name__} {error}") from error
        if _digest(dataclasses.asdict(loaded)) != digest:
            raise DataError(
                f"normalisation {path} does not match its digest {digest}: it was changed after it was written"
            )
        return loaded


def compute_normalisation(
    source: Source, episodes: Sequence[int], config: DataConfig, *, fingerprint: str
) -> Normalisation:
    """Computes the scales from all steps of ``episodes`` (training episodes only, or validation leaks)."""
    columns = {
        key: np.concatenate([source.column(key, episode) for episode in episodes])
        for key in (config.action_key, config.state_key)
    }
    return Normalisation(
        actions=_quantile_scale(columns[config.action_key]),
        state=_quantile_scale(columns[config.state_key]),
        fingerprint=fingerprint,
        episodes=len(episodes),
        steps=len(columns[config.action_key]),
    )


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under another name and renames it, so that a reader or a kill never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    os.chmod(name, 0o644)
    os.replace(name, path)


def _quantile_scale(values: npt.NDArray[np.float32]) -> QuantileScale:
    """Returns the scale of ``values`` ``[steps, dims]``."""
    exact = values.astype(np.float64)
    low, high = np.quantile(exact, [LOW_QUANTILE, HIGH_QUANTILE], axis=0)
    clamped = np.mean((exact < low) | (exact > high), axis=0)
    return QuantileScale(
        q01=tuple(low.tolist()),
        q99=tuple(high.tolist()),
        mean=tuple(exact.mean(axis=0).tolist()),
        clamped=tuple(clamped.tolist()),
    )


def _as_tuples(content: dict[str, list[float]]) -> dict[str, tuple[float, ...]]:
    return {key: tuple(values) for key, values in content.items()}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
