"""Sections of a run's configuration that say what it keeps and tells: checkpoints, validation and evaluation, logs."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints under ``WORKDIR/checkpoints/<step>``.

    Attributes:
      every_steps: Steps between checkpoints; the last step is always saved. 0 saves only the last.
      keep: How many of the newest checkpoints are kept.
    """

    every_steps: int = 100
    keep: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluation on held-out episodes.

    Attributes:
      every_steps: Steps between validation losses during training; 0 means never.
      num_batches: Validation batches of one validation loss.
      num_windows: Held-out windows sampled by ``wamjax eval`` (spread evenly over the held-out episodes).
      solver_steps: Euler steps of one sampled block.
      bootstrap: Resamples of a confidence interval, drawn over episodes.
      rollout_tasks: Simulator tasks of the closed loop; empty means none.
      rollout_trials: Rollouts per task.
      rollout_first_seed: First seed of the held-out rollouts.
      rollout_max_steps: Simulator steps after which a rollout counts as failed.
      seed: Seed of the sampling noise.
    """

    every_steps: int = 100
    num_batches: int = 2
    num_windows: int = 96
    solver_steps: int = 10
    bootstrap: int = 2000
    rollout_tasks: tuple[str, ...] = ()
    rollout_trials: int = 20
    rollout_first_seed: int = 10_000
    rollout_max_steps: int = 160
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What the loop writes.

    Attributes:
      every_steps: Steps between console lines and metric records. Losses are recorded for every step.
      tensorboard: Whether TensorBoard event files are written.
      progress_bar: Whether a progress bar is drawn when the output is a terminal.
    """

    every_steps: int = 10
    tensorboard: bool = True
    progress_bar: bool = True
