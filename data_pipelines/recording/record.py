"""Records a dataset of scripted, noisy Meta-World episodes.

Owns what an episode is (where it starts, ends and what is kept) and the record of a whole run; does not own the
simulator, the experts or the file format.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.recording import simulator as sim
from data_pipelines.recording.expert import ScriptedExpert
from data_pipelines.recording.lerobot_format import DatasetSpec
from data_pipelines.recording.lerobot_writer import Episode, LeRobotWriter
from data_pipelines.recording.tasks import HELD_OUT_SEED_START, task_spec
from data_pipelines.recording.video_encoder import VideoSettings
from wamjax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """Everything that decides a recorded dataset; the same values give the same dataset.

    Attributes:
        out: Folder to create; must not exist.
        tasks: Meta-World task names.
        episodes: Episodes for each task: one number for all, or one for each task.
        seed: First seed; episode n of every task is reset with seed + n.
        noise: Standard deviation of the Gaussian noise on the hand's action, in units of the action range -1..1.
        max_start_steps: The hand first drifts in a random direction for 0 to this many unrecorded control steps (up to
            1 cm each), so that a policy sees the task from many hand positions. Rollouts start undrifted.
        cameras: Camera names, see `simulator.CAMERAS`.
        size: Height and width of the images in pixels, even.
        max_steps: Control steps after which an unsolved episode counts as failed.
        hold_steps: Frames kept after the first success, so that arriving and staying are in the data.
        action_repeat: Control steps for which each recorded action is held; the frame rate is 80 / action_repeat.
        keyframe_every: Longest distance between video keyframes in frames.
        crf: Constant rate factor of the H.264 encoder; lower is better and larger.
    """

    out: str = ""
    tasks: tuple[str, ...] = ("reach-v3",)
    episodes: tuple[int, ...] = (10,)
    seed: int = 0
    noise: float = 0.03
    max_start_steps: int = 12
    cameras: tuple[str, ...] = ("front", "side")
    size: int = 96
    max_steps: int = 200
    hold_steps: int = 8
    action_repeat: int = 1
    keyframe_every: int = 15
    crf: int = 20

    def __post_init__(self) -> None:
        _require(bool(self.out), "out is empty: expected the folder to create; set --out")
        for task in self.tasks:
            task_spec(task)
        _require(bool(self.tasks), f"tasks {self.tasks!r}: expected at least one name; change --tasks")
        _require(
            len(self.episodes) in (1, len(self.tasks)) and min(self.episodes) >= 1,
            f"episodes {self.episodes!r}: expected one positive number, or one for each of the {len(self.tasks)} "
            "tasks; change --episodes",
        )
        last_seed = self.seed + max(self.episodes) - 1
        _require(
            self.seed >= 0 and last_seed < HELD_OUT_SEED_START,
            f"seeds {self.seed}..{last_seed}: expected within 0..{HELD_OUT_SEED_START - 1}, the seeds above are held "
            "out for rollouts; change --seed or --episodes",
        )
        _require(0.0 <= self.noise <= 1.0, f"noise {self.noise}: expected within 0..1; change --noise")
        _require(
            self.max_start_steps >= 0,
            f"max_start_steps {self.max_start_steps}: expected 0 or more; change --max_start_steps",
        )
        _require(self.size >= 16 and self.size % 2 == 0, f"size {self.size}: expected even, at least 16; change --size")
        _require(
            self.action_repeat <= self.max_steps <= sim.MAX_STEPS - self.max_start_steps,
            f"max_steps {self.max_steps}: expected within {self.action_repeat}..{sim.MAX_STEPS - self.max_start_steps} "
            f"(action_repeat, and Meta-World's limit of {sim.MAX_STEPS} less max_start_steps); change --max_steps",
        )
        _require(self.hold_steps >= 0, f"hold_steps {self.hold_steps}: expected 0 or more; change --hold_steps")
        _require(
            self.action_repeat >= 1 and sim.CONTROL_RATE_HZ % self.action_repeat == 0,
            f"action_repeat {self.action_repeat}: expected a divisor of {sim.CONTROL_RATE_HZ} (LeRobot wants a whole "
            "frame rate); change --action_repeat",
        )
        _require(self.keyframe_every >= 1, f"keyframe_every {self.keyframe_every}: expected 1 or more")
        _require(0 <= self.crf <= 51, f"crf {self.crf}: expected within 0..51 (x264); change --crf")

    @property
    def fps(self) -> int:
        """Recorded frames per second."""
        return sim.CONTROL_RATE_HZ // self.action_repeat

    def episodes_for(self, task: str) -> int:
        """Number of episodes to try for a task of this config."""
        return self.episodes[self.tasks.index(task) if len(self.episodes) > 1 else 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSummary:
    """What a recording did.

    Attributes:
        out: Folder of the dataset.
        num_episodes: Episodes written, by task.
        num_frames: Frames written, by task.
        failed_seeds: Seeds whose expert did not solve the task and that were therefore not written, by task.
        num_bytes: Size of the folder.
    """

    out: Path
    num_episodes: dict[str, int]
    num_frames: dict[str, int]
    failed_seeds: dict[str, tuple[int, ...]]
    num_bytes: int

    def __str__(self) -> str:
        lines = [f"recorded {self.out}: {sum(self.num_episodes.values())} episodes, {self.num_bytes / 1e6:.2f} MB"]
        for task, count in self.num_episodes.items():
            failed = self.failed_seeds[task]
            named = f" (seeds {', '.join(map(str, failed))}, not written)" if failed else ""
            lines.append(f"  {task}: {count} episodes, {self.num_frames[task]} frames, {len(failed)} failed{named}")
        return "\n".join(lines)


def record_dataset(config: RecordConfig) -> RecordSummary:
    """Records all tasks and seeds of a config as one LeRobot v3.0 dataset, with a progress bar.

    Args:
        config: What to record and where.

    Returns:
        Counts and sizes; `str()` of it is the text to print.

    Raises:
        ConfigError: The simulator or its OpenGL library is missing.
        DataError: The folder exists, or no expert solved its task.
    """
    spec = DatasetSpec(
        cameras=config.cameras,
        height=config.size,
        width=config.size,
        state_names=sim.STATE_NAMES,
        action_names=sim.ACTION_NAMES,
        video=VideoSettings(fps=config.fps, keyframe_every=config.keyframe_every, crf=config.crf),
        robot_type="metaworld_sawyer",
    )
    num_episodes = dict.fromkeys(config.tasks, 0)
    num_frames = dict.fromkeys(config.tasks, 0)
    failed: dict[str, list[int]] = {task: [] for task in config.tasks}
    total = sum(map(config.episodes_for, config.tasks))
    with LeRobotWriter(config.out, spec) as writer, tqdm(total=total, unit="episode") as progress:
        for task in config.tasks:
            progress.set_description(f"record {task}")
            with sim.MetaWorldSimulator(task, cameras=config.cameras, size=config.size) as simulator:
                for seed in range(config.seed, config.seed + config.episodes_for(task)):
                    episode = record_episode(simulator, seed, config)
                    if episode is None:
                        failed[task].append(seed)
                    else:
                        writer.add_episode(episode)
                        num_episodes[task] += 1
                        num_frames[task] += len(episode.actions)
                    progress.update()
        unsolved = [task for task, count in num_episodes.items() if count == 0]
        if unsolved:
            raise DataError(
                f"no episode of {', '.join(unsolved)} was solved within {config.max_steps} steps at noise "
                f"{config.noise}: raise --max_steps or lower --noise"
            )
    out = Path(config.out)
    return RecordSummary(
        out=out,
        num_episodes=num_episodes,
        num_frames=num_frames,
        failed_seeds={task: tuple(seeds) for task, seeds in failed.items()},
        num_bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    )


def record_episode(simulator: sim.MetaWorldSimulator, seed: int, config: RecordConfig) -> Episode | None:
    """Runs the noisy expert once.

    What is kept is the action as executed, noise and clipping included, so that the dataset's dynamics are the
    simulator's; the episode ends `hold_steps` frames after the first success.

    Args:
        simulator: Any state; it is reset.
        seed: Seed of positions and noise.
        config: Noise, lengths and action repeat.

    Returns:
        The episode, or None when the task was not solved in `max_steps` control steps.
    """
    expert = ScriptedExpert(simulator, noise=config.noise, seed=seed)
    simulator.reset(seed)
    drift, num_drift_steps = expert.start_drift(config.max_start_steps)
    for _ in range(num_drift_steps):
        simulator.step(drift)
    observation = simulator.observe()
    observations: list[sim.Observation] = []
    actions: list[np.ndarray] = []
    success: list[bool] = []
    remaining = config.max_steps // config.action_repeat
    while remaining > 0:
        action, solved = expert.action(), False
        for _ in range(config.action_repeat):
            _, solved = simulator.step(action)
        observations.append(observation)
        actions.append(action)
        success.append(solved)
        remaining -= 1
        if solved and not any(success[:-1]):
            remaining = min(remaining, config.hold_steps)
        if remaining:
            observation = simulator.observe()
    if not any(success):
        return None
    return Episode(
        images={name: np.stack([seen.images[name] for seen in observations]) for name in simulator.cameras},
        state=np.stack([seen.state for seen in observations]),
        actions=np.stack(actions),
        success=np.array(success),
        prompt=simulator.spec.prompt,
    )


def _require(is_met: bool, message: str) -> None:
    if not is_met:
        raise ConfigError(message)
