"""State and action vectors as a model sees them, from the features of a dataset, and actions of a robot from them.

Owns the places of dims in the shared vectors, orientations, the sense of grippers, and actions relative to the state at
the start of their chunk, in both directions. Knows neither files nor windows; scaling is ``normalisation``'s.

A relative action is ``action - state``; of an orientation it is the rotation ``action * state^-1``, about axes that do
not turn with the hand, as the difference of positions has. Dims without a field are zero, and False in the masks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.embodiments.spec import UnusedDims, VectorField, load_embodiment
from data_pipelines.normalisation import Normalisation
from data_pipelines.rotations import format_rotations, parse_rotations
from wamjax.config.schema import DataConfig

Values = Mapping[str, npt.NDArray[Any]]  # feature of the dataset -> [..., dims]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorLayout:
    """Where the dims of states and actions lie and what is done to them.

    Attributes:
      states: Fields of the state; none for video without actions.
      actions: Fields of the action; none for video without actions.
      unused: Dims of these features that are left out.
    """

    states: tuple[VectorField, ...]
    actions: tuple[VectorField, ...]
    unused: tuple[UnusedDims, ...] = ()

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Features that the state is gathered from."""
        return _keys(self.states)

    @property
    def action_keys(self) -> tuple[str, ...]:
        """Features that the action is gathered from."""
        return _keys(self.actions)

    @property
    def num_state_dims(self) -> int:
        """One more than the last slot of the state."""
        return _num_slots(self.states)

    @property
    def num_action_dims(self) -> int:
        """One more than the last slot of the action."""
        return _num_slots(self.actions)

    @property
    def has_relative_actions(self) -> bool:
        """Whether an action is relative to the state at the start of its chunk."""
        return any(field.reference == "chunk_start" for field in self.actions)

    @property
    def fingerprint(self) -> str:
        """Hash of all that a vector depends on, besides the data and the scales (16 hex digits)."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def state_mask(self, num_dims: int) -> npt.NDArray[np.bool_]:
        """Returns which of ``num_dims`` dims the state has."""
        return np.isin(np.arange(num_dims), [slot for field in self.states for slot in field.slots])

    def action_mask(self, num_dims: int) -> npt.NDArray[np.bool_]:
        """Returns which of ``num_dims`` dims the action has."""
        return np.isin(np.arange(num_dims), [slot for field in self.actions for slot in field.slots])

    def gather_state(self, values: Values) -> npt.NDArray[np.float32]:
        """Returns states ``[..., num_state_dims]`` in their own units.

        Raises:
          ValueError: An orientation is none.
        """
        parts = {field: _take(values, field) for field in self.states}
        return _place(self.num_state_dims, {field: _show(field, part) for field, part in parts.items()})

    def gather_actions(self, values: Values, state: Values) -> npt.NDArray[np.float32]:
        """Returns actions ``[..., num_action_dims]`` in their own units.

        Args:
          values: Features of the action.
          state: Features of the state at the start of each action's chunk, of the same leading dims. Not looked at
            where no action is relative.

        Raises:
          ValueError: An orientation is none.
        """
        shown = {}
        for field in self.actions:
            part = _take(values, field)
            if field.reference == "chunk_start":
                before = self._state_of(field)
                shown[field] = _show_difference(field, part, before, _take(state, before))
            else:
                shown[field] = _show(field, part)
        return _place(self.num_action_dims, shown)

    def scatter_actions(self, vectors: npt.NDArray[Any], state: Values) -> dict[str, npt.NDArray[np.float32]]:
        """Inverse of ``gather_actions``: returns the features ``[..., dims]`` that a robot executes.

        Args:
          vectors: ``[..., u]`` with u at least ``num_action_dims``.
          state: As for ``gather_actions``.

        Raises:
          ValueError: An orientation is none.
        """
        ends = [(field.key, field.first + field.num_dims) for field in self.actions]
        ends += [(unused.key, unused.first + unused.count) for unused in self.unused]
        lead = vectors.shape[:-1]
        found = {
            key: np.zeros((*lead, max(end for name, end in ends if name == key)), np.float32)
            for key in self.action_keys
        }
        for field in self.actions:
            part = vectors[..., _slots(field)].astype(np.float64)
            if field.reference == "chunk_start":
                before = self._state_of(field)
                raw = _add_difference(field, part, before, _take(state, before))
            else:
                raw = _hide(field, part)
            found[field.key][..., field.first : field.first + field.num_dims] = raw
        return found

    def _state_of(self, field: VectorField) -> VectorField:
        """Returns the state that a relative action refers to."""
        return next(state for state in self.states if state.name == field.name)


def build_layout(config: DataConfig, count_dims: Callable[[str], int]) -> VectorLayout:
    """Returns the layout that ``config`` describes.

    Without an embodiment the vectors are the features ``state_key`` and ``action_key`` as they are; both empty is video
    without actions.

    Args:
      config: Names the embodiment, or the features.
      count_dims: Number of dims of a feature; asked for without an embodiment only.

    Raises:
      ConfigError: The specification is wrong.
    """
    if config.embodiment:
        spec = load_embodiment(config.embodiment)
        return VectorLayout(states=spec.states, actions=spec.actions, unused=spec.unused)

    def whole(key: str) -> tuple[VectorField, ...]:
        return (VectorField(name=key, key=key, first=0, slots=tuple(range(count_dims(key))), unit=""),) if key else ()

    return VectorLayout(states=whole(config.state_key), actions=whole(config.action_key))


def vector_keys(config: DataConfig) -> tuple[str, ...]:
    """Returns the features that the states and actions of ``config`` are gathered from."""
    layout = build_layout(config, lambda key: 0)
    return tuple(dict.fromkeys((*layout.state_keys, *layout.action_keys)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorCodec:
    """Vectors of a run, normalised and padded to the dims of its model; actions of the robot from them.

    Attributes:
      layout: Where the dims lie.
      normalisation: The run's scales.
      state_dim: Dims of the model's state.
      action_dim: Dims of the model's action.
    """

    layout: VectorLayout
    normalisation: Normalisation
    state_dim: int
    action_dim: int

    def encode_state(self, values: Values) -> npt.NDArray[np.float32]:
        """Returns normalised states ``[..., state_dim]`` of features ``[..., dims]``."""
        scaled = self.normalisation.normalise_state(self.layout.gather_state(values))
        return _pad(scaled, self.layout.state_mask(self.state_dim))

    def encode_actions(self, values: Values, state: Values) -> npt.NDArray[np.float32]:
        """Returns normalised actions ``[..., action_dim]``; arguments as ``VectorLayout.gather_actions``."""
        scaled = self.normalisation.normalise_actions(self.layout.gather_actions(values, state))
        return _pad(scaled, self.layout.action_mask(self.action_dim))

    def decode_actions(self, vectors: npt.NDArray[Any], state: Values) -> dict[str, npt.NDArray[np.float32]]:
        """Returns what a robot executes, by feature ``[b a dims]``, of a predicted chunk.

        Args:
          vectors: Normalised actions ``[b a action_dim]``.
          state: Features ``[b dims]`` of the state observed at the start of the chunk.
        """
        raw = self.normalisation.denormalise_actions(vectors)
        repeated = {key: np.repeat(value[:, None], vectors.shape[1], axis=1) for key, value in state.items()}
        return self.layout.scatter_actions(raw, repeated)


def _pad(scaled: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Returns ``[..., len(mask)]``: scaled values, zero where the mask is False."""
    out = np.zeros((*scaled.shape[:-1], len(mask)), np.float32)
    out[..., : scaled.shape[-1]] = np.where(mask[: scaled.shape[-1]], scaled, 0.0)
    return out


def _keys(fields: tuple[VectorField, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(field.key for field in fields))


def _num_slots(fields: tuple[VectorField, ...]) -> int:
    return 1 + max((slot for field in fields for slot in field.slots), default=-1)


def _take(values: Values, field: VectorField) -> npt.NDArray[Any]:
    """Returns the dims of a field."""
    return values[field.key][..., field.first : field.first + field.num_dims]


def _place(num_dims: int, parts: Mapping[VectorField, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Returns the vector that has each part at its slots."""
    lead = next(iter(parts.values())).shape[:-1] if parts else ()
    out = np.zeros((*lead, num_dims), np.float32)
    for field, part in parts.items():
        out[..., _slots(field)] = part
    return out


def _slots(field: VectorField) -> slice | list[int]:
    """Returns the places of a field; as a slice where they follow each other, which is several times faster."""
    first, count = field.slots[0], len(field.slots)
    in_order = field.slots == tuple(range(first, first + count))
    return slice(first, first + count) if in_order else list(field.slots)


def _show(field: VectorField, part: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns values of the dataset as the model sees them."""
    if field.model_form != field.rotation:
        rotations = parse_rotations(part, field.rotation)
        return format_rotations(rotations, field.model_form).reshape(*part.shape[:-1], -1)
    return -part if field.gripper == "closed_is_high" else part


def _hide(field: VectorField, part: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Inverse of ``_show``."""
    if field.model_form != field.rotation:
        rotations = parse_rotations(part, field.model_form)
        return format_rotations(rotations, field.rotation).reshape(*part.shape[:-1], -1)
    return -part if field.gripper == "closed_is_high" else part


def _show_difference(
    field: VectorField, part: npt.NDArray[Any], before: VectorField, state: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Returns actions of the dataset, less the state, as the model sees them."""
    if field.rotation == "none":
        difference = part.astype(np.float64) - state
        return -difference if field.gripper == "closed_is_high" else difference
    turned = parse_rotations(part, field.rotation) * parse_rotations(state, before.rotation).inv()
    return format_rotations(turned, field.model_form).reshape(*part.shape[:-1], -1)


def _add_difference(
    field: VectorField, part: npt.NDArray[Any], before: VectorField, state: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Inverse of ``_show_difference``."""
    if field.rotation == "none":
        return state + (-part if field.gripper == "closed_is_high" else part)
    turned = parse_rotations(part, field.model_form) * parse_rotations(state, before.rotation)
    return format_rotations(turned, field.rotation).reshape(*part.shape[:-1], -1)
