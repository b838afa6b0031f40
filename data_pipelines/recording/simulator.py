"""A Meta-World task in MuJoCo: seeded resets, steps and fast off-screen camera images.

Owns the simulated robot as a policy or a recorder sees it: camera images and proprioception, never the goal. Does not
own the experts (expert.py), the tasks (tasks.py) or any file.

MuJoCo and Meta-World are an optional extra, so this module imports without them; making a `MetaWorldSimulator` loads
them and says on one line what to install when one is missing.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.recording.tasks import task_spec
from wamjax.errors import ConfigError

ACTION_NAMES = ("dx", "dy", "dz", "gripper")
STATE_NAMES = ("hand_x", "hand_y", "hand_z", "gripper_opening")
CONTROL_RATE_HZ = 80  # Meta-World: 5 MuJoCo steps of 2.5 ms per action
MAX_STEPS = 500  # Meta-World refuses longer episodes (SawyerXYZEnv.max_path_length)
MARKER_RGBA = (0.0, 1.0, 0.0, 1.0)  # saturated green: no other surface of the reach and push scenes has it

_NO_METAWORLD = "Meta-World is not installed ({error}): pip install 'wamjax[sim]'"
_NO_GL = (
    "MuJoCo cannot open an off-screen OpenGL context with MUJOCO_GL={backend!r} ({error}): on Debian or Ubuntu run "
    "'apt-get install libegl1 libgl1-mesa-dri', or set MUJOCO_GL to a backend this machine has (egl, osmesa, glfw)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
    """A fixed upright camera, given as MuJoCo's free camera.

    Meta-World's own corner cameras are mounted upside down and show the whole room; these are upright and framed on the
    part of the table where the tasks happen.

    Attributes:
        look_at: Point in the middle of the image, metres, world frame (robot base at the origin, table towards +y).
        distance: Distance from that point in metres.
        azimuth: Heading of the view in degrees; 90 looks along +y, away from the robot.
        elevation: Pitch of the view in degrees; -90 looks straight down.
    """

    look_at: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float


# Chosen by looking at all of Meta-World's cameras and a circle of free ones. Both stand on the far side of the table,
# so that the arm does not come between the lens and a goal (goals lie further out than the hand). `front` looks steeply
# down and resolves x and y; `side` looks along +x and resolves y and z: together they fix a point in space.
CAMERAS: dict[str, Camera] = {
    "front": Camera(look_at=(0.0, 0.70, 0.10), distance=0.98, azimuth=-90.0, elevation=-68.0),
    "side": Camera(look_at=(0.0, 0.68, 0.14), distance=0.95, azimuth=-22.0, elevation=-18.0),
}

# Links that the cameras do not see (two pixels in the widest reach), with half of the scene's triangles: drawn fully
# transparent, which MuJoCo skips.
OUT_OF_VIEW_BODIES = ("pedestal", "right_arm_base_link", "right_l0", "head", "right_l1")


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a policy sees at one control step.

    Attributes:
        images: One uint8 image [size, size, 3] (RGB, top row first) for each camera.
        state: float32 [4]: hand position in metres (x, y, z) and gripper opening in 0..1 (`STATE_NAMES`).
        success: Whether Meta-World counts the present state as solved.
    """

    images: Mapping[str, npt.NDArray[np.uint8]]
    state: npt.NDArray[np.float32]
    success: bool


@functools.cache
def load_metaworld() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Imports MuJoCo and Meta-World, off-screen rendering by EGL unless MUJOCO_GL says otherwise.

    Returns:
        The modules `mujoco`, `metaworld.env_dict` and `metaworld.policies`.

    Raises:
        ConfigError: Either package, or the OpenGL library of the chosen backend, is missing.
    """
    if sys.platform == "linux" and "MUJOCO_GL" not in os.environ:
        if "mujoco" in sys.modules:  # it reads the variable once, while it is imported
            raise ConfigError("mujoco was imported before MUJOCO_GL was set: set MUJOCO_GL=egl in the environment")
        os.environ["MUJOCO_GL"] = "egl"
    try:
        mujoco = importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        raise ConfigError(_NO_METAWORLD.format(error=error)) from error
    except Exception as error:  # PyOpenGL fails with AttributeError, ImportError or OSError, by library and version
        raise _gl_error(error) from error
    try:
        environments = importlib.import_module("metaworld.env_dict")
        policies = importlib.import_module("metaworld.policies")
    except ModuleNotFoundError as error:
        raise ConfigError(_NO_METAWORLD.format(error=error)) from error
    return mujoco, environments, policies


class MetaWorldSimulator:
    """One Meta-World task with cameras: `reset(seed)`, then `step` and, only when an image is needed, `render`.

    The object and goal positions are drawn anew at every reset from the reset's own seed (Meta-World's default keeps
    one frozen draw for all resets); the same seed gives the same episode whatever ran before. In reach and push the
    goal is drawn as a large saturated green ball (Meta-World: a 2 cm red one beside a red puck), because the goal is in
    the images only: the state is proprioception. Use it from the thread that made it (OpenGL).
    """

    def __init__(self, task: str, *, cameras: Sequence[str] = ("front", "side"), size: int = 96) -> None:
        """Builds the scene and its renderer.

        Args:
            task: Meta-World name, one of `tasks.TASKS`.
            cameras: Names out of `CAMERAS`.
            size: Height and width of the images in pixels.

        Raises:
            ConfigError: Unknown task or camera, a size that is not positive, or a missing package or OpenGL library.
        """
        self.spec = task_spec(task)
        unknown = [name for name in cameras if name not in CAMERAS]
        if unknown or not cameras:
            raise ConfigError(f"cameras {tuple(cameras)!r}: expected some of {', '.join(CAMERAS)}; change --cameras")
        if size < 1:
            raise ConfigError(f"image size {size}: expected a positive number of pixels; change --size")
        self._mujoco, environments, _ = load_metaworld()
        self._env: Any = _build_environment(environments, task)
        _prepare_model(self._env.model, size=size)
        if self.spec.marker_radius_m is not None:
            goal = self._env.model.site("goal")
            goal.size = self.spec.marker_radius_m
            goal.rgba = MARKER_RGBA
        self._views = {name: _free_camera(self._mujoco, CAMERAS[name]) for name in cameras}
        self._renderer = self._build_renderer(size)
        self._privileged: npt.NDArray[np.float64] = np.zeros(0)
        self._success = False

    def __enter__(self) -> MetaWorldSimulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, in the order of the images."""
        return tuple(self._views)

    def reset(self, seed: int) -> Observation:
        """Starts the episode of `seed` and renders its first observation.

        Args:
            seed: Non-negative; decides object and goal positions.

        Returns:
            The observation before the first action.
        """
        self._env.seed(seed)
        self._privileged, _ = self._env.reset()
        # Resetting moves model-level sites and bodies after the last kinematics pass; without this the first image
        # shows the goal of the previous episode.
        self._mujoco.mj_forward(self._env.model, self._env.data)
        self._success = False
        return self.observe()

    def step(self, action: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float32], bool]:
        """Executes one action for one control period (1/80 s); renders nothing.

        Args:
            action: [4], hand displacement in centimetres per step (x, y, z) and gripper closing effort; clipped to
                -1..1.

        Returns:
            The proprioceptive state after the action (float32 [4]) and whether the task is solved in that state.

        Raises:
            ValueError: Wrong shape or a value that is not finite.
        """
        action = np.asarray(action, np.float32)
        if action.shape != (len(ACTION_NAMES),) or not np.isfinite(action).all():
            raise ValueError(
                f"action {action!r}: expected {len(ACTION_NAMES)} finite numbers ({', '.join(ACTION_NAMES)})"
            )
        self._privileged, _, _, _, info = self._env.step(np.clip(action, -1.0, 1.0))
        self._success = bool(info["success"])
        return self.state, self._success

    def render(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Renders the present state: one uint8 image [size, size, 3] for each camera."""
        images = {}
        for name, view in self._views.items():
            self._renderer.update_scene(self._env.data, camera=view)
            images[name] = self._renderer.render().copy()
        return images

    def observe(self) -> Observation:
        """Renders and reads the present state."""
        return Observation(images=self.render(), state=self.state, success=self._success)

    @property
    def state(self) -> npt.NDArray[np.float32]:
        """Proprioception, float32 [4]: see `STATE_NAMES`. Never contains an object or the goal."""
        return self._privileged[: len(STATE_NAMES)].astype(np.float32)

    def expert_observation(self) -> npt.NDArray[np.float64]:
        """What the scripted expert is told: Meta-World's full observation [39], goal included, for experts only."""
        observation = self._privileged.copy()
        if self.spec.aims_with_fingertips:
            observation[:3] = self._env.tcp_center
        return observation

    @property
    def goal_position(self) -> npt.NDArray[np.float64]:
        """Position of the goal in metres [3], for tests and reports only."""
        return np.array(self._env._target_pos, np.float64)

    def close(self) -> None:
        """Frees the OpenGL context; the simulator is unusable afterwards."""
        self._renderer.close()
        self._env.close()

    def _build_renderer(self, size: int) -> Any:
        try:
            renderer = self._mujoco.Renderer(self._env.model, size, size)
        except Exception as error:  # each OpenGL backend has its own error family
            raise _gl_error(error) from error
        # Shadows, reflection, skybox and the rest cost nine tenths of the time under software rendering.
        renderer.scene.flags[:] = 0
        renderer.scene.flags[self._mujoco.mjtRndFlag.mjRND_CULL_FACE] = 1
        return renderer


def _gl_error(error: Exception) -> ConfigError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return ConfigError(_NO_GL.format(backend=os.environ.get("MUJOCO_GL", ""), error=reason))


def _build_environment(environments: ModuleType, task: str) -> Any:
    """Makes a Meta-World environment that draws its own positions at every reset and reveals the goal to experts.

    This is what `metaworld.env_dict` does for its `*-goal-observable` variants, except that the draw stays unfrozen and
    comes from the environment's own seeded generator, never from NumPy's global one.
    """
    env = environments.ALL_V3_ENVIRONMENTS[task]()
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)  # cached with the goal masked out
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._set_task_called = True
    return env


def _prepare_model(model: Any, *, size: int) -> None:
    """Switches off what makes software rendering slow; must run before the OpenGL context is made."""
    model.light_castshadow[:] = 0
    model.mat_reflectance[:] = 0
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    model.vis.global_.offwidth = model.vis.global_.offheight = size
    for body in OUT_OF_VIEW_BODIES:
        first = model.body_geomadr[model.body(body).id]
        model.geom_rgba[first : first + model.body_geomnum[model.body(body).id], 3] = 0.0


def _free_camera(mujoco: ModuleType, camera: Camera) -> Any:
    view = mujoco.MjvCamera()
    view.type = mujoco.mjtCamera.mjCAMERA_FREE
    view.lookat[:] = camera.look_at
    view.distance = camera.distance
    view.azimuth = camera.azimuth
    view.elevation = camera.elevation
    return view
