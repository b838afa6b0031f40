"""Closed loop: what the simulator executes, what the policy is shown, and when a rollout ends."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from data_pipelines.normalisation import Normalisation, Scale
from data_pipelines.vectors import VectorCodec, build_layout
from launch.closed_loop import evaluate_closed_loop, run_rollouts
from wamjax.config.schema import DataConfig, EvaluateConfig, LayoutConfig, ModelConfig, RunConfig
from wamjax.errors import ConfigError

VIEWS = (("observation.images.front", 0, 0, 8, 8), ("observation.images.side", 0, 8, 8, 8))
CONFIG = RunConfig(
    data=DataConfig(canvas=(8, 16), views=VIEWS, action_dim=3, state_dim=2, frame_stride=2),
    model=ModelConfig(patch=(1, 8, 8)),
    layout=LayoutConfig(num_blocks=2, frames_per_block=2, actions_per_block=2),
    evaluate=EvaluateConfig(rollout_tasks=("walk",), rollout_trials=3, rollout_max_steps=10, rollout_first_seed=100),
)
ACTION_SCALE = Scale(low=(-2.0, 0.0), high=(2.0, 4.0), mean=(0.0, 2.0), clamped=(0.0, 0.0), outliers=(0, 0))
STATE_SCALE = Scale(low=(0.0,), high=(100.0,), mean=(50.0,), clamped=(0.0,), outliers=(0,))
CODEC = VectorCodec(
    layout=build_layout(CONFIG.data, {"observation.state": 1, "action": 2}.__getitem__),
    normalisation=Normalisation(
        actions=ACTION_SCALE, state=STATE_SCALE, fingerprint="", vectors="", episodes=1, steps=1
    ),
    state_dim=2,
    action_dim=3,
)


@dataclasses.dataclass
class FakeObservation:
    images: dict
    state: np.ndarray


class FakeSimulator:
    """Counts its steps: the state is the step, images show seed and step; solved at a step given by the seed."""

    def __init__(self) -> None:
        self.actions: list[np.ndarray] = []
        self.renders = 0

    def reset(self, seed: int) -> FakeObservation:
        self.seed, self.actions, self.renders = seed, [], 0
        return FakeObservation(images=self.render(), state=np.zeros(1, np.float32))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        self.actions.append(action)
        return np.full(1, len(self.actions), np.float32), len(self.actions) == self.solved_after

    @property
    def solved_after(self) -> int:
        return {100: 3, 101: 1000, 102: 8}[self.seed]

    def render(self) -> dict:
        self.renders += 1
        image = np.full((8, 8, 3), len(self.actions), np.uint8)
        return {"front": image, "side": image + 100}


@dataclasses.dataclass
class FakeChunk:
    actions: np.ndarray
    video: np.ndarray


class FakePolicy:
    """Plays counted actions and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[np.ndarray, np.ndarray]] = []
        self.chunks = 0

    def reset(self, prompt_id) -> None:
        self.prompt_id = prompt_id

    def observe(self, frames, state) -> None:
        self.shown.append((frames, state))

    def act(self, key: jax.Array) -> FakeChunk:
        rows = len(self.prompt_id)
        actions = np.zeros((rows, 2, 3), np.float32)
        actions[:, 0, 0], actions[:, 1, 0] = 0.1 * self.chunks, 0.1 * self.chunks + 0.05
        self.chunks += 1
        return FakeChunk(actions=actions, video=np.full((rows, 2, 8, 16, 3), 7, np.uint8))


def roll_out(action_repeat: int = 1):
    simulators, policy = [FakeSimulator() for _ in range(3)], FakePolicy()
    rollouts = run_rollouts(
        "walk",
        policy,
        simulators,
        seeds=range(100, 103),
        prompt_id=5,
        config=CONFIG,
        codec=CODEC,
        action_repeat=action_repeat,
        key=jax.random.key(0),
    )
    return rollouts, simulators, policy


def test_rollouts_stop_when_solved_or_out_of_time():
    rollouts, simulators, _ = roll_out()
    np.testing.assert_array_equal(rollouts.solved_at, [3, -1, 8])
    assert [len(s.actions) for s in simulators] == [3, 10, 8]
    rate = rollouts.rate()
    assert (rate.successes, rate.trials) == (2, 3)


def test_rollouts_execute_denormalised_actions_held_for_the_action_stride():
    _, simulators, _ = roll_out()
    # A block of 4 steps has 2 actions, so each is held for 2 steps; q01..q99 of -2..2 doubles a normalised value,
    # and the padded third dim is gone.
    executed = np.stack(simulators[1].actions)
    assert executed.shape == (10, 2)
    expected = [0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4]
    np.testing.assert_allclose(executed[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(executed[:, 1], 2.0)


def test_policy_is_shown_frames_at_the_frame_stride_and_normalised_state():
    _, _, policy = roll_out()
    assert [frames.shape[1] for frames, _ in policy.shown] == [1, 2, 2]
    row = 1  # the rollout that runs on
    np.testing.assert_array_equal(policy.shown[1][0][row, :, 0, 0, 0], [2, 4])
    np.testing.assert_array_equal(policy.shown[1][0][row, :, 0, 8, 0], [102, 104])
    np.testing.assert_array_equal(policy.shown[2][0][row, :, 0, 0, 0], [6, 8])
    np.testing.assert_allclose(policy.shown[2][1][row], [8 / 50 - 1, 0.0])  # 0..100 to -1..1; the padded dim is 0
    assert policy.prompt_id.tolist() == [5, 5, 5]


def test_solved_rollout_keeps_showing_its_last_frame():
    _, simulators, policy = roll_out()
    np.testing.assert_array_equal(policy.shown[1][0][0, :, 0, 0, 0], [2, 3])
    np.testing.assert_array_equal(policy.shown[2][0][0, :, 0, 0, 0], [3, 3])
    assert simulators[0].renders == 3  # reset, step 2, step 3: nothing is rendered that nobody needs


def test_rollouts_with_action_repeat_hold_each_step_and_count_simulator_steps():
    rollouts, simulators, policy = roll_out(action_repeat=2)
    np.testing.assert_array_equal(rollouts.solved_at, [3, -1, 8])
    np.testing.assert_allclose(
        np.stack(simulators[1].actions)[:, 0], [0, 0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0.2, 0.2], atol=1e-6
    )
    np.testing.assert_array_equal(policy.shown[1][0][1, :, 0, 0, 0], [4, 8])


def test_film_shows_the_first_rollout_until_it_ended():
    rollouts, _, _ = roll_out()
    assert rollouts.film.true.shape == rollouts.film.predicted.shape == (3, 8, 16, 3)
    assert rollouts.film.given.tolist() == [True, False, False]
    assert "seed 100: solved after 3 steps" in rollouts.film.title


@contextlib.contextmanager
def fake_simulators(task: str, count: int):
    yield [FakeSimulator() for _ in range(count)]


@pytest.mark.parametrize(
    ("tasks", "prompts", "message"),
    [((), ("walk slowly",), "rollout_tasks names no task"), (("walk",), ("press",), "was not trained on walk")],
)
def test_closed_loop_that_makes_no_sense_says_why(tasks, prompts, message):
    config = dataclasses.replace(CONFIG, evaluate=dataclasses.replace(CONFIG.evaluate, rollout_tasks=tasks))
    with pytest.raises(ConfigError, match=message):
        closed_loop(config, prompts)


def test_closed_loop_uses_the_held_out_seeds_and_the_prompt_of_the_task():
    (rollouts,) = closed_loop(CONFIG, ("press", "walk slowly"))
    assert list(rollouts.seeds) == [100, 101, 102]
    assert rollouts.task == "walk"


def closed_loop(config: RunConfig, prompts: tuple[str, ...]):
    return evaluate_closed_loop(
        config,
        build_policy=FakePolicy,
        open_simulators=fake_simulators,
        prompt_of=lambda task: f"{task} slowly",
        prompts=prompts,
        codec=CODEC,
        action_repeat=1,
    )
