"""The simulator is seeded, hides the goal from the state and shows it in the images."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from data_pipelines.recording import simulator
from data_pipelines.recording.expert import ScriptedExpert
from data_pipelines.recording.simulator import MetaWorldSimulator
from data_pipelines.recording.tasks import HELD_OUT_SEED_START, TASKS
from wamjax.errors import ConfigError

SimulatorOf = Callable[..., MetaWorldSimulator]


def run_expert(sim: MetaWorldSimulator, seed: int, *, noise: float = 0.03, steps: int = 150) -> npt.NDArray[np.float32]:
    """States visited by the expert up to and including the first success; fails when there is none."""
    sim.reset(seed)
    expert = ScriptedExpert(sim, noise=noise, seed=seed)
    states = [sim.state]
    for _ in range(steps):
        state, solved = sim.step(expert.action())
        states.append(state)
        if solved:
            return np.stack(states)
    pytest.fail(f"{sim.spec.name} seed {seed} is not solved in {steps} steps")


def green_centre(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Row and column of the centre of the saturated green pixels."""
    red, green, blue = (image[..., c].astype(int) for c in range(3))
    rows, columns = np.nonzero((green > 100) & (green > 2 * red) & (green > 2 * blue))
    assert len(rows) >= 12, "the goal is not visible"
    return np.array([rows.mean(), columns.mean()])


@pytest.mark.sim
def test_same_seed_gives_the_same_episode_whatever_ran_before(simulator_of: SimulatorOf) -> None:
    with simulator_of(size=32) as fresh, simulator_of(size=32) as used:
        run_expert(used, 7)
        used.reset(3)
        np.testing.assert_array_equal(run_expert(fresh, 5), run_expert(used, 5))
        np.testing.assert_array_equal(fresh.goal_position, used.goal_position)
        for camera, image in fresh.render().items():
            np.testing.assert_array_equal(image, used.render()[camera])
        first = used.reset(5)
        for camera, image in fresh.reset(5).images.items():
            np.testing.assert_array_equal(image, first.images[camera])


@pytest.mark.sim
@pytest.mark.parametrize("task", ["reach-v3", "button-press-topdown-v3"])
def test_different_seeds_give_different_goals_but_equal_initial_states(simulator_of: SimulatorOf, task: str) -> None:
    with simulator_of(task, size=16) as sim:
        states, goals = [], []
        for seed in (*range(6), HELD_OUT_SEED_START):
            states.append(sim.reset(seed).state)
            goals.append(sim.goal_position)
        distance = np.linalg.norm(np.stack(goals)[:, None] - np.stack(goals)[None], axis=-1)
        assert distance[~np.eye(len(goals), dtype=bool)].min() > 1e-3
        # A state that knew anything of the goal or the object would differ between these seeds.
        assert np.ptp(np.stack(states), axis=0).max() < 1e-6


@pytest.mark.sim
def test_goal_position_can_be_read_from_the_two_images_alone(simulator_of: SimulatorOf) -> None:
    pixels, goals = [], []
    with simulator_of(size=96) as sim:
        for seed in range(30):
            images = sim.reset(seed).images
            pixels.append(np.concatenate([green_centre(images[camera]) for camera in sim.cameras]))
            goals.append(sim.goal_position)
    # An affine map is a rough model of two pinhole cameras over a 20 cm volume. Fitted on twenty, judged on ten.
    features = np.c_[np.stack(pixels), np.ones(len(pixels))]
    solution, *_ = np.linalg.lstsq(features[:20], np.stack(goals)[:20])
    error_m = np.abs(features[20:] @ solution - np.stack(goals)[20:]).max()
    assert error_m < 0.02, f"the goal is found to {error_m * 1000:.0f} mm only, success needs 50 mm"


@pytest.mark.sim
def test_images_are_upright(simulator_of: SimulatorOf) -> None:
    with simulator_of(size=96) as sim:
        seeds = range(12)
        goals, rows = [], {camera: [] for camera in sim.cameras}
        for seed in seeds:
            images = sim.reset(seed).images
            goals.append(sim.goal_position)
            for camera in sim.cameras:
                rows[camera].append(green_centre(images[camera])[0])
        height, depth = np.stack(goals)[:, 2], np.stack(goals)[:, 1]
        # Higher goals are nearer the top of the side image; goals nearer the front camera are nearer its bottom edge.
        assert np.corrcoef(height, rows["side"])[0, 1] < -0.8
        design = np.c_[depth, height, np.ones(len(goals))]
        slope_of_depth = np.linalg.lstsq(design, np.array(rows["front"]))[0][0]
        assert slope_of_depth > 0


@pytest.mark.sim
@pytest.mark.parametrize("task", sorted(TASKS))
def test_expert_solves_every_task_of_the_table(simulator_of: SimulatorOf, task: str) -> None:
    with simulator_of(task, size=16) as sim:
        for seed in (0, 1):
            states = run_expert(sim, seed)
            assert states.shape[1:] == (4,)
            assert states.dtype == np.float32


@pytest.mark.sim
def test_reach_expert_ends_in_the_middle_of_the_success_radius(simulator_of: SimulatorOf) -> None:
    with simulator_of(size=16) as sim:
        run_expert(sim, 0, noise=0.0)
        expert = ScriptedExpert(sim, noise=0.0, seed=0)
        for _ in range(60):
            sim.step(expert.action())
        fingertips = sim.expert_observation()[:3]
        assert np.linalg.norm(fingertips - sim.goal_position) < 0.01


@pytest.mark.sim
def test_expert_noise_is_seeded_and_leaves_the_gripper_alone(simulator_of: SimulatorOf) -> None:
    with simulator_of(size=16) as sim:
        sim.reset(0)
        clean = ScriptedExpert(sim, noise=0.0, seed=0).action()
        noisy = ScriptedExpert(sim, noise=0.2, seed=0).action()
        np.testing.assert_array_equal(noisy, ScriptedExpert(sim, noise=0.2, seed=0).action())
        assert noisy[0] != ScriptedExpert(sim, noise=0.2, seed=1).action()[0]
        assert noisy[3] == clean[3]
        expert = ScriptedExpert(sim, noise=0.2, seed=3)
        actions = np.stack([expert.action() for _ in range(400)])
        inside = np.abs(actions[:, 2]) < 1.0
        assert np.abs(actions).max() <= 1.0
        assert actions[inside, 2].std() == pytest.approx(0.2, rel=0.15)


@pytest.mark.sim
@pytest.mark.parametrize("action", [[0.0, 0.0, 0.0], [0.0, np.nan, 0.0, 0.0], [[0.0] * 4]])
def test_step_with_bad_action_is_refused(simulator_of: SimulatorOf, action: list) -> None:
    with simulator_of(size=16) as sim:
        sim.reset(0)
        with pytest.raises(ValueError, match="expected 4 finite numbers"):
            sim.step(np.array(action))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "reach-v9"}, "unknown task 'reach-v9'"),
        (
            {"task": "reach-v3", "cameras": ("corner",)},
            r"\('corner',\): expected some of front, side; change --cameras",
        ),
        ({"task": "reach-v3", "cameras": ()}, "expected some of front, side"),
        ({"task": "reach-v3", "size": 0}, "image size 0"),
    ],
)
def test_wrong_argument_is_refused_before_anything_is_loaded(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MetaWorldSimulator(**arguments)


@pytest.mark.parametrize("module", ["mujoco", "metaworld.env_dict"])
def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    if module != "mujoco":
        pytest.importorskip("mujoco", reason="needs mujoco to get as far as metaworld")
    monkeypatch.setitem(sys.modules, module, None)  # makes its import fail as if it were not installed
    simulator.load_metaworld.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'wamjax\[sim\]'") as caught:
        simulator.load_metaworld()
    assert "\n" not in str(caught.value)


@pytest.mark.sim
def test_missing_opengl_says_what_to_install(simulator_of: SimulatorOf) -> None:
    # A process of its own: the backend is chosen while mujoco is imported. No machine has this EGL library.
    script = "from data_pipelines.recording.simulator import MetaWorldSimulator; MetaWorldSimulator('reach-v3')"
    environment = {**os.environ, "MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": os.devnull}
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    last = [line for line in result.stderr.splitlines() if line.startswith("wamjax.errors.ConfigError")]
    assert last, result.stderr
    assert "MUJOCO_GL='egl'" in last[0]
    assert "apt-get install libegl1 libgl1-mesa-dri" in last[0]


@pytest.mark.sim
def test_mujoco_imported_too_early_says_so(simulator_of: SimulatorOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    simulator.load_metaworld.cache_clear()
    with pytest.raises(ConfigError, match="before MUJOCO_GL was set: set MUJOCO_GL=egl"):
        simulator.load_metaworld()
