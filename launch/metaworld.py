"""Meta-World as the closed loop needs it: simulators that look like the dataset the model was trained on.

Owns matching cameras, image size and control rate to the dataset. The simulator itself is in
``data_pipelines.recording``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from data_pipelines.recording.simulator import CONTROL_RATE_HZ, MAX_STEPS, MetaWorldSimulator
from data_pipelines.recording.tasks import task_spec
from data_pipelines.sources.lerobot_tables import read_info
from data_pipelines.sources.remote import dataset_path
from launch.closed_loop import CAMERA_PREFIX
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaWorldSetup:
    """How the simulator must be set up to show a policy what its dataset showed.

    Attributes:
      cameras: Names of the simulator's cameras.
      size: Height and width of an image in pixels.
      action_repeat: Control periods for which one recorded action was held.
    """

    cameras: tuple[str, ...]
    size: int
    action_repeat: int

    @contextlib.contextmanager
    def open(self, task: str, count: int) -> Iterator[Sequence[MetaWorldSimulator]]:
        """Opens ``count`` simulators of ``task`` and closes them again.

        Raises:
          ConfigError: Meta-World, MuJoCo or an OpenGL library is missing (says what to install).
        """
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(MetaWorldSimulator(task, cameras=self.cameras, size=self.size))
                for _ in range(count)
            ]


def prompt_of(task: str) -> str:
    """Returns the prompt under which ``task`` is recorded; raises ``ConfigError`` for an unknown task."""
    return task_spec(task).prompt


def match_dataset(config: RunConfig) -> MetaWorldSetup:
    """Returns the set-up that matches the dataset of ``config``.

    Raises:
      ConfigError: The dataset shows something that Meta-World cannot: other cameras, pictures that are not square, a
        rate that does not divide the control rate; or the rollouts are longer than Meta-World allows.
    """
    info = read_info(dataset_path(config.data.path))
    shapes = {key: tuple(info["features"][key]["shape"][:2]) for key, *_ in config.data.views}
    sizes = {size for shape in shapes.values() for size in shape}
    if len(sizes) != 1:
        raise ConfigError(f"closed loop: the cameras of {config.data.path} are not of one square size: {shapes}")
    for key in shapes:
        if not key.startswith(CAMERA_PREFIX):
            raise ConfigError(f"closed loop: view {key!r} (config.data.views) is not {CAMERA_PREFIX}CAMERA")
    if CONTROL_RATE_HZ % info["fps"]:
        raise ConfigError(
            f"closed loop: {config.data.path} has {info['fps']} steps per second, which do not divide Meta-World's "
            f"{CONTROL_RATE_HZ}"
        )
    if config.evaluate.rollout_max_steps > MAX_STEPS:
        raise ConfigError(
            f"closed loop: config.evaluate.rollout_max_steps={config.evaluate.rollout_max_steps} is more than the "
            f"{MAX_STEPS} steps of a Meta-World episode"
        )
    return MetaWorldSetup(
        cameras=tuple(key.removeprefix(CAMERA_PREFIX) for key in shapes),
        size=sizes.pop(),
        action_repeat=CONTROL_RATE_HZ // int(info["fps"]),
    )
