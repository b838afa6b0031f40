"""Closed loop: the policy drives the simulator on held-out seeds, and either solves the task or does not.

Owns batched rollouts and their success rates. All rollouts of a task run side by side, so that the model predicts one
chunk for all of them at once. Every chunk is executed whole; the simulator renders only the frames the model was
trained to see (every ``frame_stride`` steps). What the policy sees here is rendered directly, whereas its training
frames went through H.264: a small shift that a real camera would bring as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines.canvas import compose_canvas
from data_pipelines.vectors import VectorCodec
from launch.film import Comparison
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.training.intervals import SuccessRate, success_rate

CAMERA_PREFIX = "observation.images."  # of camera features; what follows is the simulator's name of the camera


class Observation(Protocol):
    """What the simulator shows."""

    @property
    def images(self) -> Mapping[str, Any]:
        """One uint8 image ``[h w 3]`` of each camera."""
        ...

    @property
    def state(self) -> Any:
        """Proprioception, float32 ``[p]``."""
        ...


class Simulator(Protocol):
    """One simulated robot (``data_pipelines.recording.simulator.MetaWorldSimulator``)."""

    def reset(self, seed: int) -> Observation:
        """Starts the episode of ``seed``."""
        ...

    def step(self, action: Any) -> tuple[Any, bool]:
        """Executes one action ``[u]``; returns the state ``[p]`` and whether the task is solved."""
        ...

    def render(self) -> Mapping[str, Any]:
        """Returns a uint8 image ``[h w 3]`` of each camera."""
        ...


class Chunk(Protocol):
    """What a policy wants to do, and what it expects to see meanwhile."""

    @property
    def actions(self) -> Any:
        """Normalised actions, float32 ``[b a u]``."""
        ...

    @property
    def video(self) -> Any:
        """Expected frames, uint8 ``[b f H W 3]``; None of a policy that expects none: films show black."""
        ...


class Policy(Protocol):
    """A world-action policy over a batch of rollouts (``wamjax.sampling.policy``)."""

    def reset(self, prompt_id: Any) -> None:
        """Forgets everything; ``prompt_id`` int32 ``[b]``."""
        ...

    def observe(self, frames: Any, state: Any) -> None:
        """Shows the frames since the last call, uint8 ``[b f H W 3]``, and the state now, ``[b p]`` normalised."""
        ...

    def act(self, key: jax.Array) -> Chunk:
        """Predicts the next chunk."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts:
    """The rollouts of one task.

    Attributes:
      task: Simulator task.
      seeds: Seed of each rollout.
      solved_at: int ``[b]``: simulator step at which the task was solved first, -1 where it never was.
      film: What the first rollout saw beside what it expected to see.
    """

    task: str
    seeds: Sequence[int]
    solved_at: np.ndarray
    film: Comparison

    def rate(self) -> SuccessRate:
        """Returns the success rate with its Wilson interval."""
        return success_rate(int((self.solved_at >= 0).sum()), len(self.seeds))


def run_rollouts(
    task: str,
    policy: Policy,
    simulators: Sequence[Simulator],
    *,
    seeds: Sequence[int],
    prompt_id: int,
    config: RunConfig,
    codec: VectorCodec,
    action_repeat: int,
    key: jax.Array,
) -> Rollouts:
    """Runs one rollout on each simulator until it is solved or ``evaluate.rollout_max_steps`` have passed.

    Args:
      task: Name of the task, for titles.
      policy: The policy.
      simulators: One for each seed.
      seeds: Seeds of the episodes.
      prompt_id: The task's row of the prompt table.
      config: The run.
      codec: The run's vectors: of a state what the model sees, of a predicted chunk what the robot executes.
      action_repeat: Simulator steps of one dataset step.
      key: Seed of the sampling noise.

    Returns:
      When each rollout was solved; a solved rollout stops there.

    Raises:
      ConfigError: States or actions are gathered from several features, and the simulator has one of each.
    """
    state_key, action_key = _only_features(codec)
    robots = [_Robot(simulator, seed, config, action_repeat) for simulator, seed in zip(simulators, seeds, strict=True)]

    def states() -> dict[str, np.ndarray]:
        return {state_key: np.stack([robot.state for robot in robots])}

    policy.reset(np.full(len(robots), prompt_id, np.int32))
    frames = np.stack([robot.frame for robot in robots])[:, None]
    policy.observe(frames, codec.encode_state(states()))
    seen, expected, given = [frames[0]], [frames[0]], [True]
    limit = config.evaluate.rollout_max_steps
    with tqdm(total=limit, desc=f"rollouts of {task}", unit="step", disable=None) as progress:
        for turn in range(-(-limit // (derive_geometry(config).steps_per_block * action_repeat))):
            chunk = policy.act(jax.random.fold_in(key, turn))
            actions = codec.decode_actions(np.asarray(chunk.actions), states())[action_key]
            was_running = not robots[0].is_done
            frames = np.stack(
                [robot.execute(chunk_actions) for robot, chunk_actions in zip(robots, actions, strict=True)]
            )
            if was_running:
                seen.append(frames[0])
                expected.append(np.zeros_like(frames[0]) if chunk.video is None else np.asarray(chunk.video)[0])
                given += [False] * frames.shape[1]
            progress.update(min(limit, robots[0].clock) - progress.n)
            if all(robot.is_done for robot in robots):
                break
            policy.observe(frames, codec.encode_state(states()))
        progress.set_postfix(solved=sum(robot.solved_at >= 0 for robot in robots))
    solved_at = np.array([robot.solved_at for robot in robots])
    outcome = f"solved after {solved_at[0]} steps" if solved_at[0] >= 0 else f"not solved in {limit} steps"
    film = Comparison(
        true=np.concatenate(seen),
        predicted=np.concatenate(expected),
        given=np.array(given),
        title=f"{task}, seed {seeds[0]}: {outcome}",
    )
    return Rollouts(task=task, seeds=seeds, solved_at=solved_at, film=film)


def _only_features(codec: VectorCodec) -> tuple[str, str]:
    """Returns the feature of the state and of the action."""
    keys = (codec.layout.state_keys, codec.layout.action_keys)
    if [len(names) for names in keys] != [1, 1]:
        raise ConfigError(
            f"closed loop: states come from {len(keys[0])} features and actions from {len(keys[1])} "
            "(config.data.embodiment); the simulator has one of each"
        )
    return keys[0][0], keys[1][0]


class _Robot:
    """One rollout: executes chunks and remembers what it shows.

    Attributes:
      state: Raw proprioception now, float32 ``[p]``.
      frame: Canvas now (or when the rollout ended), uint8 ``[H W 3]``.
      clock: Simulator steps the chunks so far span.
      solved_at: Step at which the task was solved, or -1.
    """

    def __init__(self, simulator: Simulator, seed: int, config: RunConfig, action_repeat: int) -> None:
        geometry = derive_geometry(config)
        self._action_repeat = action_repeat
        self._simulator = simulator
        self._data = config.data
        self._max_steps = config.evaluate.rollout_max_steps
        self._action_stride = geometry.action_stride
        observation = simulator.reset(seed)
        self.state = observation.state
        self.frame = self._compose(observation.images)
        self.clock = 0
        self.solved_at = -1

    @property
    def is_done(self) -> bool:
        """Whether the task is solved or the time is up."""
        return self.solved_at >= 0 or self.clock >= self._max_steps

    def execute(self, actions: np.ndarray) -> np.ndarray:
        """Executes a chunk ``[a u]`` of raw actions; returns its frames ``[f H W 3]`` (the last one once it is done).

        An action is held for ``action_stride`` steps, the time until the next one of a training window. A chunk may be
        of several blocks.
        """
        frames = []
        for offset in range(len(actions) * self._action_stride):
            is_shown = (offset + 1) % self._data.frame_stride == 0
            if not self.is_done:
                self._step(actions[offset // self._action_stride])
                if is_shown or self.is_done:
                    self.frame = self._compose(self._simulator.render())
            if is_shown:
                frames.append(self.frame)
        return np.stack(frames)

    def _step(self, action: np.ndarray) -> None:
        """Executes one dataset step, or less when it ends the rollout."""
        for _ in range(self._action_repeat):
            if self.is_done:
                return
            self.clock += 1
            self.state, is_solved = self._simulator.step(action)
            if is_solved:
                self.solved_at = self.clock

    def _compose(self, images: Mapping[str, Any]) -> np.ndarray:
        views = {f"{CAMERA_PREFIX}{name}": np.asarray(image)[None] for name, image in images.items()}
        return compose_canvas(views, self._data)[0][0]


def evaluate_closed_loop(
    config: RunConfig,
    *,
    build_policy: Callable[[], Policy],
    open_simulators: Callable[[str, int], AbstractContextManager[Sequence[Simulator]]],
    prompt_of: Callable[[str], str],
    prompts: Sequence[str],
    codec: VectorCodec,
    action_repeat: int,
) -> list[Rollouts]:
    """Rolls the policy out on every task of ``config.evaluate.rollout_tasks``.

    Args:
      config: The run.
      build_policy: Makes the policy.
      open_simulators: ``(task, count)`` -> that many simulators, closed when the context is left.
      prompt_of: Prompt of a simulator task.
      prompts: Task strings the model was trained on.
      codec: The run's vectors: of a state what the model sees, of a predicted chunk what the robot executes.
      action_repeat: Simulator steps of one dataset step.

    Raises:
      ConfigError: No task is named, a task was not trained on, or a simulator cannot be built here.
    """
    tasks, count = config.evaluate.rollout_tasks, config.evaluate.rollout_trials
    if not tasks:
        raise ConfigError("config.evaluate.rollout_tasks names no task to roll out")
    for task in tasks:
        if prompt_of(task) not in prompts:
            raise ConfigError(
                f"the model was not trained on {task} (config.evaluate.rollout_tasks): its prompt {prompt_of(task)!r} "
                f"is not one of {', '.join(map(repr, prompts))}"
            )
    seeds = range(config.evaluate.rollout_first_seed, config.evaluate.rollout_first_seed + count)
    base = jax.random.key(config.evaluate.seed)
    rollouts = []
    for row, task in enumerate(tasks):
        with open_simulators(task, count) as simulators:
            rollouts.append(
                run_rollouts(
                    task,
                    build_policy(),
                    simulators,
                    seeds=seeds,
                    prompt_id=prompts.index(prompt_of(task)),
                    config=config,
                    codec=codec,
                    action_repeat=action_repeat,
                    key=jax.random.fold_in(base, row),
                )
            )
    return rollouts
