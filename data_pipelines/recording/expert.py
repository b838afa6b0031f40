"""Scripted experts of Meta-World with exploration noise.

Owns the choice of an action for a simulated state; does not own the simulation or what is recorded.
"""

from __future__ import annotations

import warnings
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.recording.simulator import ACTION_NAMES, MetaWorldSimulator, load_metaworld

_NUM_TRANSLATIONS = 3


class ScriptedExpert:
    """Meta-World's scripted policy for a task, with Gaussian noise on the hand's translation.

    Noise makes the recorded states cover a tube around the expert's path, from which a cloned policy can return. It is
    left off the gripper, whose effort is constant in these tasks: noise there teaches nothing and would be the whole
    variance of that action dimension.
    """

    def __init__(self, simulator: MetaWorldSimulator, *, noise: float, seed: int) -> None:
        """Starts the expert for one episode.

        Args:
            simulator: The simulator it will look at.
            noise: Standard deviation in units of the full action range -1..1; 0 is the clean expert.
            seed: Seed of the episode; with the task's name it seeds the noise.
        """
        _, _, policies = load_metaworld()
        self._simulator = simulator
        self._policy: Any = getattr(policies, simulator.spec.expert)()
        self._noise = noise
        self._generator = np.random.default_rng([seed, zlib.crc32(simulator.spec.name.encode())])

    def start_drift(self, max_steps: int) -> tuple[npt.NDArray[np.float32], int]:
        """Draws how the hand is displaced before the expert takes over.

        Args:
            max_steps: Largest number of steps, 0 for none.

        Returns:
            A constant action [4] (gripper left open) and the number of steps 0..max_steps to apply it.
        """
        translation = self._generator.uniform(-1.0, 1.0, _NUM_TRANSLATIONS)
        return np.append(translation, -1.0).astype(np.float32), int(self._generator.integers(max_steps + 1))

    def action(self) -> npt.NDArray[np.float32]:
        """Returns the action [4] for the simulator's present state, noise added and clipped to -1..1."""
        with warnings.catch_warnings():
            # Saturating the controller far from the target is how these experts travel.
            warnings.filterwarnings("ignore", message="Constant.s. may be too high")
            action = np.asarray(self._policy.get_action(self._simulator.expert_observation()), np.float64)
        assert action.shape == (len(ACTION_NAMES),)
        # Clipped before the noise is added, so that noise also acts where the expert saturates.
        action = np.clip(action, -1.0, 1.0)
        action[:_NUM_TRANSLATIONS] += self._noise * self._generator.standard_normal(_NUM_TRANSLATIONS)
        return np.clip(action, -1.0, 1.0).astype(np.float32)
