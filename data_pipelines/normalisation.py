"""Scaling of actions and states by the spread of the training episodes, and back.

Owns the scales, their JSON file and the two directions of the map. Computing them is ``vector_statistics``'s.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wamjax.errors import DataError

Kind = Literal["quantile", "mean_std", "min_max"]
# A dim whose ends lie closer than this share of their size carries no signal: float32 resolves 1.2e-7.
MIN_RELATIVE_SPREAD = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """The affine map of a vector: ``low`` to -1, ``high`` to 1; clamped to [-1, 1] unless it is by mean and deviation.

    A dim without spread (low = high) maps to 0 where it equals that value, with unit scale around it, so that a
    constant dim neither divides by zero nor blows up noise.

    Attributes:
      kind: ``quantile``: low and high are the 1 % and 99 % quantiles; ``min_max``: the ends; ``mean_std``: one standard
        deviation around the mean, and nothing is clamped.
      low: ``[dims]``, unit of the dim.
      high: ``[dims]``, unit of the dim.
      mean: ``[dims]``, unit of the dim: the mean over training steps (the training-mean baseline).
      clamped: ``[dims]``: share of training values the clamp changes (about 0.02 for a dim with tails).
      outliers: ``[dims]``: how many training values lie beyond the 1 % or 99 % quantile by more than ten times their
        distance; the clamp of ``quantile`` takes them, the other kinds are stretched by them.
    """

    kind: Kind = "quantile"
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    clamped: tuple[float, ...]
    outliers: tuple[int, ...]

    @property
    def num_dims(self) -> int:
        """Dims of the vector, before padding."""
        return len(self.low)

    def _affine(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Returns centre and half range of each dim."""
        low, high = np.array(self.low), np.array(self.high)
        spread = high - low
        flat = spread <= MIN_RELATIVE_SPREAD * np.maximum(np.abs(low), np.abs(high))
        return (low + high) / 2, np.where(flat, 1.0, spread / 2)

    def normalise(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns float32 of the shape of ``values`` ``[..., dims]``."""
        centre, half = self._affine()
        scaled = (values - centre) / half
        return (scaled if self.kind == "mean_std" else np.clip(scaled, -1.0, 1.0)).astype(np.float32)

    def denormalise(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Inverse of ``normalise`` for values the clamp left alone.

        Args:
          values: ``[..., u]`` with u at least the vector's dims; dims beyond are padding and are dropped.
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
      vectors: Of what the vectors are made of the dataset's features (``VectorLayout.fingerprint``).
      episodes: How many training episodes the statistics cover.
      steps: How many steps they cover.
    """

    actions: Scale
    state: Scale
    fingerprint: str
    vectors: str
    episodes: int
    steps: int

    @property
    def digest(self) -> str:
        """Hash of everything here (16 hex digits)."""
        return _digest(dataclasses.asdict(self))

    def normalise_actions(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """See ``Scale.normalise``."""
        return self.actions.normalise(values)

    def denormalise_actions(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """See ``Scale.denormalise``."""
        return self.actions.denormalise(values)

    def normalise_state(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """See ``Scale.normalise``."""
        return self.state.normalise(values)

    def denormalise_state(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """See ``Scale.denormalise``."""
        return self.state.denormalise(values)

    def save(self, path: Path) -> None:
        """Writes the statistics as JSON with a digest of themselves, whole or not at all."""
        write_json(path, {"digest": self.digest, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Normalisation:
        """Reads what ``save`` wrote.

        Raises:
          DataError: The file is missing, is not JSON, or does not match its digest.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            digest = content.pop("digest")
            scales = {name: _load_scale(content.pop(name)) for name in ("actions", "state")}
            loaded = cls(**scales, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"normalisation {path} cannot be read: {type(error).__name__} {error}") from error
        if loaded.digest != digest:
            raise DataError(
                f"normalisation {path} does not match its digest {digest}: it was changed after it was written"
            )
        return loaded


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under another name and renames it, so that a reader or a kill never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    os.chmod(name, 0o644)
    os.replace(name, path)


def _load_scale(content: dict[str, Any]) -> Scale:
    return Scale(kind=content.pop("kind"), **{key: tuple(values) for key, values in content.items()})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
