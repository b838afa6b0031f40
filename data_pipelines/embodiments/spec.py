"""``Embodiment``: what one robot's data means, read from a TOML file; a new robot is one file and no code.

Owns the fields of a specification and the checks of one by itself. What follows from it for a run, and whether a
dataset is what it describes, is ``apply``'s; vectors are made by ``data_pipelines.vectors``.

Slots are places in the action and state vectors a model sees. Robots that share a model share this convention:
0-6 and 7-13 pose of the left and right hand (a single arm is the left one), 14-20 and 21-27 joints, 28 and 29 grippers.

Source: LingBot-VA (arXiv 2601.21998), released code: 30 action slots, hands 7 + 7, joints 7 + 7, grippers 2.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

from data_pipelines.embodiments.rotation_forms import ROTATION_DIMS, RotationForm
from wamjax.config.bridge import nearest_name
from wamjax.config.sources import ViewPlacement
from wamjax.errors import ConfigError

FOLDER = Path(__file__).resolve().parent
SUFFIX = ".toml"

Reference = Literal["absolute", "chunk_start", "step"]
Gripper = Literal["none", "open_is_high", "closed_is_high"]
Scaling = Literal["quantile", "mean_std", "min_max"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorField:
    """Some dims of a state or an action.

    Attributes:
      name: What they are; a relative action and the state it is relative to have the same name.
      key: Feature of the dataset that holds them.
      first: The first of them in that feature.
      slots: Their places in the model's vector, one each; of an orientation as many as ``shown_as`` has.
      unit: Physical unit, ``1`` for a ratio.
      reference: What the model is to see: the value itself (``absolute``), its difference to the state at the start of
        the chunk (``chunk_start``), or a change per step, as it was recorded (``step``).
      rotation: How the dataset writes an orientation (``data_pipelines.rotations`` says what each form is).
      shown_as: How the model sees that orientation; ``none``: as the dataset writes it.
      gripper: Which end of the dataset's range is open. The model sees all grippers open at the high end.
    """

    name: str
    key: str
    first: int
    slots: tuple[int, ...]
    unit: str
    reference: Reference = "absolute"
    rotation: RotationForm = "none"
    shown_as: RotationForm = "none"
    gripper: Gripper = "none"

    @property
    def model_form(self) -> RotationForm:
        """The form of an orientation that the model sees."""
        return self.rotation if self.shown_as == "none" else self.shown_as

    @property
    def num_dims(self) -> int:
        """Dims in the dataset's feature."""
        return len(self.slots) if self.rotation == "none" else ROTATION_DIMS[self.rotation]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnusedDims:
    """Dims of a feature that the model does not see; an action sent to the robot has zeros there.

    Attributes:
      key: The feature.
      first: The first of them.
      count: How many.
    """

    key: str
    first: int
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A camera's place on the canvas.

    Attributes:
      camera: Feature of the dataset.
      rectangle: Top, left, height, width in canvas pixels.
      optional: Whether a dataset may lack it: its rectangle is then black and masked, which is said and counted.
    """

    camera: str
    rectangle: tuple[int, int, int, int]
    optional: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embodiment:
    """One robot's data.

    Attributes:
      name: Name of the embodiment.
      source: Where these facts come from.
      prompt_template: What the model is told; ``{task}`` is the dataset's task.
      rate_hz: Steps per second of the dataset: frames, states and actions alike; 0 takes a dataset of any rate.
      frame_stride: Dataset steps between two frames a model sees.
      normalisation: How states and actions are scaled.
      canvas: Height and width of the canvas in pixels.
      views: Cameras on it.
      states: Fields of the state; none for human video.
      actions: Fields of the action; none for human video.
      unused: Dims of those features that are left out.
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
    unused: tuple[UnusedDims, ...] = ()

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
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        known = list_embodiments()
        nearest = nearest_name(name, known)
        hint = f"did you mean {nearest}?" if nearest else f"expected a .toml file or one of {', '.join(known)}"
        raise ConfigError(f"there is no embodiment {name!r}; {hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"embodiment {path} cannot be read: {error}") from error
    return _parse(path, text)


@functools.lru_cache  # asked for once for each episode of an index
def _parse(path: Path, text: str) -> Embodiment:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"embodiment {path} cannot be read: {error}") from error
    embodiment = _build(Embodiment, content, f"embodiment {path}")
    _check(embodiment, path)
    return embodiment


def _check(spec: Embodiment, path: Path) -> None:
    """Raises ``ConfigError`` where a specification contradicts itself."""

    def refuse(reason: str) -> NoReturn:
        raise ConfigError(f"embodiment {path}: {reason}")

    if "{task}" not in spec.prompt_template:
        refuse(f"prompt_template {spec.prompt_template!r} has no place for {{task}}")
    if spec.rate_hz < 0 or spec.frame_stride < 1:
        refuse(f"rate_hz={spec.rate_hz:g} and frame_stride={spec.frame_stride}; expected 0 or more and 1 or more")
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
        for field in fields:
            _check_rotation(field, refuse)
            if field.first < 0:
                refuse(f"{field.name!r} begins at dim {field.first} of {field.key!r}; dims count from 0")
    states = {field.name: field for field in spec.states}
    if len(states) < len(spec.states):
        refuse("two states have one name; an action relative to a state finds it by its name")
    for field in spec.states:
        if field.reference != "absolute":
            refuse(f"state {field.name!r} has reference {field.reference!r}; a state is absolute")
    for field in spec.actions:
        if field.reference != "chunk_start":
            continue
        state = states.get(field.name)
        if (
            state is None
            or (field.rotation == "none") != (state.rotation == "none")
            or (field.rotation == "none" and state.num_dims != field.num_dims)
        ):
            refuse(f"action {field.name!r} is relative to a state of that name and size, which states does not have")
        if state.gripper != field.gripper:
            refuse(f"action {field.name!r} is relative to a state whose gripper is {state.gripper!r}, its own differs")


def _check_rotation(field: VectorField, refuse: Callable[[str], NoReturn]) -> None:
    """Refuses a field whose orientation and slots do not fit."""
    if field.rotation == "none" and field.shown_as != "none":
        refuse(f"{field.name!r} is shown_as {field.shown_as!r} and has no rotation; say how the dataset writes it")
    if field.rotation != "none" and len(field.slots) != ROTATION_DIMS[field.model_form]:
        needed = ROTATION_DIMS[field.model_form]
        refuse(f"{field.name!r} is shown as {field.model_form}, which is {needed} numbers, in {len(field.slots)} slots")


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
