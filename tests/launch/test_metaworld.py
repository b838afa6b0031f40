"""Meta-World in the closed loop: set up like the dataset, and honest where it cannot be had."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines.normalisation import Normalisation, Scale
from data_pipelines.pipeline import open_dataset
from data_pipelines.recording import simulator
from data_pipelines.vectors import VectorCodec, build_layout
from launch import eval_command
from launch.closed_loop import run_rollouts
from launch.metaworld import match_dataset
from wamjax.config.schema import DataConfig, EvaluateConfig, LayoutConfig, RunConfig
from wamjax.errors import ConfigError

COMMITTED = Path(__file__).parents[2] / "datasets" / "metaworld"
VIEWS = (("observation.images.front", 0, 0, 96, 96), ("observation.images.side", 0, 96, 96, 96))
CONFIG = RunConfig(
    data=DataConfig(path=str(COMMITTED), views=VIEWS),
    layout=LayoutConfig(num_blocks=2),
    evaluate=EvaluateConfig(rollout_tasks=("reach-v3",), rollout_trials=2),
)
UNIT = Scale(low=(-1.0,) * 4, high=(1.0,) * 4, mean=(0.0,) * 4, clamped=(0.0,) * 4, outliers=(0,) * 4)
CODEC = VectorCodec(
    layout=build_layout(DataConfig(), lambda key: 4),
    normalisation=Normalisation(actions=UNIT, state=UNIT, fingerprint="", vectors="", episodes=1, steps=1),
    state_dim=4,
    action_dim=4,
)

needs_simulator = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None, reason="Meta-World is not installed (pip install 'wamjax[sim]')"
)


def change_info(tmp_path: Path, **changes: Any) -> RunConfig:
    """A configuration on a dataset whose info.json differs from the committed one."""
    info = json.loads((COMMITTED / "meta" / "info.json").read_text())
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text(json.dumps({**info, **changes}))
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, path=str(tmp_path)))


def test_set_up_matches_the_committed_dataset():
    setup = match_dataset(CONFIG)
    assert (setup.cameras, setup.size, setup.action_repeat) == (("front", "side"), 96, 1)


def test_dataset_of_a_quarter_of_the_rate_holds_each_action_for_four_periods(tmp_path):
    assert match_dataset(change_info(tmp_path, fps=20)).action_repeat == 4


def test_dataset_of_a_rate_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="30 steps per second"):
        match_dataset(change_info(tmp_path, fps=30))


def test_rollouts_beyond_the_simulators_limit_are_refused():
    evaluate = dataclasses.replace(CONFIG.evaluate, rollout_max_steps=501)
    with pytest.raises(ConfigError, match=r"rollout_max_steps=501 is more than the 500"):
        match_dataset(dataclasses.replace(CONFIG, evaluate=evaluate))


def test_missing_simulator_leaves_a_reason_that_says_what_to_install(monkeypatch):
    def fail() -> None:
        raise ConfigError("Meta-World is not installed: pip install 'wamjax[sim]'")

    monkeypatch.setattr(simulator, "load_metaworld", fail)
    pipeline: Any = types.SimpleNamespace(codec=CODEC)
    windows: Any = ()
    subject = eval_command.Subject(
        config=CONFIG, pipeline=pipeline, windows=windows, prompts=("reach the green target",)
    )
    rollouts, reason = eval_command._roll_out(subject, params={})
    assert rollouts is None
    assert reason == "Meta-World is not installed: pip install 'wamjax[sim]'"


@dataclasses.dataclass
class Chunk:
    actions: np.ndarray
    video: np.ndarray


class ExpertPolicy:
    """Is told the goal and goes straight for it, a chunk of equal actions at a time."""

    def __init__(self, simulators) -> None:
        self._simulators = simulators

    def reset(self, prompt_id) -> None:
        self.seen = []

    def observe(self, frames, state) -> None:
        self.seen.append((frames, state))

    def act(self, key):
        towards = np.stack([20.0 * (robot.goal_position - robot._env.tcp_center) for robot in self._simulators])
        actions = np.clip(np.concatenate([towards, -np.ones((len(towards), 1))], axis=1), -1, 1)
        chunk = np.repeat(actions[:, None], CONFIG.layout.actions_per_block, axis=1).astype(np.float32)
        return Chunk(actions=chunk, video=self.seen[-1][0][:, :1].repeat(2, axis=1))


@pytest.mark.sim
@needs_simulator
def test_policy_that_knows_the_goal_solves_reach_on_held_out_seeds():
    setup = match_dataset(CONFIG)
    with setup.open("reach-v3", 2) as simulators:
        policy = ExpertPolicy(simulators)
        rollouts = run_rollouts(
            "reach-v3",
            policy,
            simulators,
            seeds=(10_000, 10_001),
            prompt_id=0,
            config=CONFIG,
            codec=CODEC,
            action_repeat=setup.action_repeat,
            key=jax.random.key(0),
        )
    assert (rollouts.solved_at > 0).all()
    first, later = policy.seen[0][0], policy.seen[1][0]
    assert first.shape == (2, 1, 96, 192, 3)
    assert later.shape == (2, 2, 96, 192, 3)
    assert (first[0] != first[1]).any()  # other seeds, other goals
    # The canvas is laid out as in training: close to a recorded first frame (but for arm noise and goal), and far from
    # it with the views exchanged.
    source = open_dataset(CONFIG.data)
    recorded = np.concatenate([source.frames(key, 0, np.array([0])) for key, *_ in VIEWS], axis=2).astype(float)
    exchanged = np.roll(recorded, 96, axis=2)
    assert np.abs(first[0] - recorded).mean() < 8 < 20 < np.abs(first[0] - exchanged).mean()
