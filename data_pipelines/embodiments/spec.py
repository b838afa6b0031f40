"""``Embodiment``: what one robot's data means, read from a TOML file; a new robot is one file and no code.

Owns the fields of a specification, the checks of one by itself and against a dataset, and the settings of a run that
follow from it. A specification may say more than the pipeline computes yet: what it says beyond that is refused by name
when a run is to be trained on it (``apply``), never left out.

Slots are places in the action and state vectors a model sees. Robots that share a model share this convention:
0-6 and 7-13 pose of the left and right hand (a single arm is the left one), 14-20 and 21-27 joints, 28 and 29 grippers.

Source: LingBot-VA (arXiv 2601.21998), released code: 30 action slots, hands 7 + 7, joints 7 + 7, grippers 2.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Any, Literal

from data_pipelines.sources.source import Source
from wamjax.config.bridge import nearest_name
from wamjax.config.schema import DataConfig, RunConfig
from wamjax.config.sources import ViewPlacement
from wamjax.errors import ConfigError, DataError

FOLDER = Path(__file__).resolve().parent
SUFFIX = ".toml"

Reference = Literal["absolute", "chunk_start", "step"]
Rotation = Literal["none", "euler_xyz", "axis_angle", "quaternion", "rotation_6d"]
Gripper = Literal["none", "open_is_high", "closed_is_high"]
Scaling = Literal["quantile", "mean_std", "min_max"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorField:
    """Some dims of a state or an action.

    Attributes:
      name: What they are; a relative action and the state it is relative to have the same name.
      key: Feature of the dataset that holds them.
      first: The first of them in that feature.
      slots: Their places in the model's vector, one each.
      unit: Physical unit, ``1`` for a ratio.
      reference: What the model is to see: the value itself (``absolute``), its difference to the state at the start of
        the chunk (``chunk_start``), or a change per step, as it was recorded (``step``).
      rotation: How an orientation is written.
      gripper: Which end of the range is open.
    """

    name: str
    key: str
    first: int
    slots: tuple[int, ...]
    unit: str
    reference: Reference = "absolute"
    rotation: Rotation = "none"
    gripper: Gripper = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A camera's place on the canvas.

    Attributes:
      camera: Feature of the dataset.
      rectangle: Top, left, height, width in canvas pixels.
    """

    camera: str
    rectangle: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embodiment:
    """One robot's data.

    Attributes:
      name: Name of the embodiment.
      source: Where these facts come from.
      prompt_template: What the model is told; ``{task}`` is the dataset's task.
      rate_hz: Steps per second of the dataset: frames, states and actions alike.
      frame_stride: Dataset steps between two frames a model sees.
      normalisation: How states and actions are scaled.
      canvas: Height and width of the canvas in pixels.
      views: Cameras on it.
      states: Fields of the state; none for human video.
      actions: Fields of the action; none for human video.
    """

    name: str
    source: str
    prompt_template: str
    rate_hz: float
    frame_stride: int
    normalisation: Scaling
    canvas: tuple[int, int]
    views: tuple[View, ...]
    states: tuple[VectorField, ...] = ()
    actions: tuple[VectorField, ...] = ()

    @property
    def has_actions(self) -> bool:
        """Whether there is anything but video."""
        return bool(self.actions)

    @property
    def placements(self) -> tuple[ViewPlacement, ...]:
        """The views as ``DataConfig`` has them."""
        return tuple((view.camera, *view.rectangle) for view in self.views)


def list_embodiments() -> tuple[str, ...]:
    """Returns the names of the specifications that come with wamjax."""
    return tuple(sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}")))


def load_embodiment(name: str) -> Embodiment:
    """Reads a specification.

    Args:
      name: One of ``list_embodiments``, or the path of a TOML file.

    Raises:
      ConfigError: There is none, or it is wrong; the message names what is missing, unknown or inconsistent.
    """
    path = Path(name) if name.endswith(SUFFIX) else FOLDER / f"{name}{SUFFIX}"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = list_embodiments()
        nearest = nearest_name(name, known)
        hint = f"did you mean {nearest}?" if nearest else f"expected a .toml file or one of {', '.join(known)}"
        raise ConfigError(f"there is no embodiment {name!r}; {hint}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"embodiment {path} cannot be read: {error}") from error
    embodiment = _build(Embodiment, content, f"embodiment {path}")
    _check(embodiment, path)
    return embodiment


def apply_embodiment(config: RunConfig) -> RunConfig:
    """Returns ``config`` with what follows from ``config.data.embodiment``; itself where that is empty.

    Raises:
      ConfigError: The specification is wrong, asks for what the pipeline does not compute, or a key of ``config.data``
        that it decides is set to something else.
    """
    if not config.data.embodiment:
        return config
    spec = load_embodiment(config.data.embodiment)
    _refuse_uncomputed(spec)
    wanted = {
        "canvas": spec.canvas,
        "views": spec.placements,
        "frame_stride": spec.frame_stride,
        "state_key": spec.states[0].key,
        "action_key": spec.actions[0].key,
        "normalisation": spec.normalisation,
    }
    defaults = {field.name: field.default for field in dataclasses.fields(DataConfig)}
    for name, value in wanted.items():
        found = getattr(config.data, name)
        if found not in (defaults[name], value):
            raise ConfigError(
                f"config.data.{name}={found!r} and embodiment {spec.name} has {value!r}: leave the key at its "
                "default, or name another specification in config.data.embodiment"
            )
    for name, fields in (("state_dim", spec.states), ("action_dim", spec.actions)):
        needed = 1 + max(slot for field in fields for slot in field.slots)
        if getattr(config.data, name) < needed:
            raise ConfigError(
                f"config.data.{name}={getattr(config.data, name)} has no room for the {needed} slots of embodiment "
                f"{spec.name}"
            )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **wanted))


def check_dataset(spec: Embodiment, source: Source) -> None:
    """Compares a specification with the dataset it is said to describe; reads one episode's columns.

    Raises:
      DataError: The rate or the number of dims of a feature is another one.
    """
    if source.fps is not None and source.fps != spec.rate_hz:
        raise DataError(
            f"dataset {source.path} has {source.fps:g} steps per second, embodiment {spec.name} says "
            f"rate_hz={spec.rate_hz:g}: it describes another dataset; name another one in config.data.embodiment"
        )
    if not source.episodes:
        return
    for key in sorted({field.key for field in (*spec.states, *spec.actions)}):
        dims = source.column(key, source.episodes[0].index).shape[1]
        described = {
            field.first + place
            for field in (*spec.states, *spec.actions)
            if field.key == key
            for place in range(len(field.slots))
        }
        if described != set(range(dims)):
            beyond, missing = sorted(described - set(range(dims))), sorted(set(range(dims)) - described)
            what = f"describes dims {beyond} it does not have" if beyond else f"leaves dims {missing} undescribed"
            raise DataError(f"feature {key!r} of {source.path} has {dims} dims; embodiment {spec.name} {what}")


def _refuse_uncomputed(spec: Embodiment) -> None:
    """Raises ``ConfigError`` for the first thing a specification asks for that windows are not made with."""
    reasons = []
    if not spec.has_actions or not spec.states:
        reasons.append("has no actions or no state")
    for name, fields in (("states", spec.states), ("actions", spec.actions)):
        keys = {field.key for field in fields}
        if len(keys) > 1:
            reasons.append(f"gathers {name} from {len(keys)} features ({', '.join(sorted(keys))})")
        dims = [(field.first + place, slot) for field in fields for place, slot in enumerate(field.slots)]
        if any(dim != slot for dim, slot in dims):
            reasons.append(f"puts {name} into slots other than their own order")
    relative = [field.name for field in spec.actions if field.reference == "chunk_start"]
    if relative:
        reasons.append(f"has actions relative to the chunk's start ({', '.join(relative)})")
    if spec.prompt_template != "{task}":
        reasons.append(f"has the prompt template {spec.prompt_template!r}")
    if spec.normalisation != "quantile":
        reasons.append(f"asks for normalisation {spec.normalisation}")
    if reasons:
        raise ConfigError(
            f"embodiment {spec.name} {'; it '.join(reasons)}: windows are not made so yet; train it with a "
            "specification of what is computed (one feature of states and one of actions, absolute, in order, quantile)"
        )


def _check(spec: Embodiment, path: Path) -> None:
    """Raises ``ConfigError`` where a specification contradicts itself."""

    def refuse(reason: str) -> None:
        raise ConfigError(f"embodiment {path}: {reason}")

    if "{task}" not in spec.prompt_template:
        refuse(f"prompt_template {spec.prompt_template!r} has no place for {{task}}")
    if spec.rate_hz <= 0 or spec.frame_stride < 1:
        refuse(f"rate_hz={spec.rate_hz:g} and frame_stride={spec.frame_stride}; expected more than 0 and 1 or more")
    if not spec.views:
        refuse("views is empty; place at least one camera on the canvas")
    for view in spec.views:
        top, left, height, width = view.rectangle
        is_inside = min(top, left) >= 0 and top + height <= spec.canvas[0] and left + width <= spec.canvas[1]
        if not is_inside or min(height, width) < 1:
            refuse(f"view {view.camera!r} at {view.rectangle} leaves the canvas {spec.canvas}")
    if bool(spec.states) != bool(spec.actions):
        refuse("it has states or actions and not both")
    for name, fields in (("states", spec.states), ("actions", spec.actions)):
        slots = [slot for field in fields for slot in field.slots]
        twice = sorted({slot for slot in slots if slots.count(slot) > 1})
        if twice or any(slot < 0 for slot in slots) or any(not field.slots for field in fields):
            refuse(f"{name} name slots {twice or 'that are negative or none'}; each dim has a place of its own")
    states = {field.name: len(field.slots) for field in spec.states}
    for field in spec.actions:
        if field.reference == "chunk_start" and states.get(field.name) != len(field.slots):
            refuse(f"action {field.name!r} is relative to a state of that name and size, which states does not have")


def _build(kind: Any, content: Any, where: str) -> Any:
    """Returns the dataclass ``kind`` of TOML ``content``; names every key that is missing and the first unknown one."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where} is {content!r}; expected a table")
    hints, fields = typing.get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    for name in content:
        if name not in fields:
            nearest = nearest_name(name, fields)
            raise ConfigError(f"{where} has no key {name!r}{f'; did you mean {nearest}?' if nearest else ''}")
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in content]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    return kind(**{name: _convert(hints[name], value, f"{where}: {name}") for name, value in content.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Returns a TOML value as the type of its field."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {value!r}; expected one of {', '.join(arguments)}")
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or (arguments[-1] is not ... and len(value) != len(arguments)):
            size = "any number of" if arguments[-1] is ... else len(arguments)
            raise ConfigError(f"{where} is {value!r}; expected a list of {size} entries")
        return tuple(_convert(arguments[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} is {value!r}; expected {hint.__name__}")
    return value
