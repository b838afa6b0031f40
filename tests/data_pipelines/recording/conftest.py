"""Synthetic episodes whose every frame says which episode and frame it is, and the simulator when it can be had."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from data_pipelines.recording.lerobot_format import DatasetSpec
from data_pipelines.recording.lerobot_writer import Episode
from data_pipelines.recording.simulator import MetaWorldSimulator
from data_pipelines.recording.video_encoder import VideoSettings
from wamjax.errors import ConfigError

HEIGHT, WIDTH, FPS = 48, 64, 20
CAMERAS = ("left", "top")
_BITS, _BLOCK = 16, 8  # two rows of eight 8x8 blocks: survives lossy coding and halved colour planes


def coded_frame(number: int, camera: str) -> npt.NDArray[np.uint8]:
    """An image that carries `number` in black and white blocks over a shade that depends on the camera."""
    image = np.full((HEIGHT, WIDTH, 3), 90 if camera == CAMERAS[0] else 160, np.uint8)
    for bit in range(_BITS):
        row, column = divmod(bit, 8)
        block = np.s_[row * _BLOCK : (row + 1) * _BLOCK, column * _BLOCK : (column + 1) * _BLOCK]
        image[block] = 255 if number >> bit & 1 else 0
    return image


def read_code(image: npt.NDArray[np.uint8]) -> int:
    """The number that `coded_frame` wrote, read from the blocks' centres."""
    number = 0
    for bit in range(_BITS):
        row, column = divmod(bit, 8)
        number |= int(image[row * _BLOCK + 4, column * _BLOCK + 4].mean() > 127) << bit
    return number


def make_episode(index: int, length: int, prompt: str = "move") -> Episode:
    """Episode whose frame n carries the code 256 * index + n."""
    generator = np.random.default_rng(index)
    success = np.zeros(length, np.bool_)
    success[-2:] = True
    return Episode(
        images={c: np.stack([coded_frame(256 * index + n, c) for n in range(length)]) for c in CAMERAS},
        state=generator.normal(size=(length, 3)).astype(np.float32),
        actions=generator.uniform(-1, 1, (length, 2)).astype(np.float32),
        success=success,
        prompt=prompt,
    )


def make_spec(**changes: object) -> DatasetSpec:
    """The spec that `make_episode` follows."""
    values: dict = {
        "cameras": CAMERAS,
        "height": HEIGHT,
        "width": WIDTH,
        "state_names": ("x", "y", "z"),
        "action_names": ("dx", "grip"),
        "video": VideoSettings(fps=FPS),
        "robot_type": "test_arm",
        **changes,
    }
    return DatasetSpec(**values)


@pytest.fixture
def episodes() -> list[Episode]:
    return [
        make_episode(0, 37, "move"),
        make_episode(1, 16, "press"),
        make_episode(2, 15, "move"),
        make_episode(3, 1, "press"),
    ]


@pytest.fixture
def spec_of() -> Callable[..., DatasetSpec]:
    return make_spec


@pytest.fixture
def episode_of() -> Callable[..., Episode]:
    return make_episode


@pytest.fixture
def code_of() -> Callable[[npt.NDArray[np.uint8]], int]:
    return read_code


@pytest.fixture(scope="session")
def simulator_of() -> Callable[..., MetaWorldSimulator]:
    """Makes simulators with small images; skips the test where the extra or a driver is missing."""
    try:
        MetaWorldSimulator("reach-v3", size=16).close()
    except ConfigError as error:
        pytest.skip(f"no simulator: {error}")

    def make(task: str = "reach-v3", size: int = 96) -> MetaWorldSimulator:
        return MetaWorldSimulator(task, size=size)

    return make
