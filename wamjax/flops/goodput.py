"""Goodput: which part of a run's wall-clock time makes progress, and where the rest goes.

Owns the names of the buckets, which a plan (``planning.goodput``) and a run's own record share, so that planned and
actual can be laid side by side.
"""

from __future__ import annotations

# Where time goes, in the order of tables. Only ``step`` is progress.
STEP = "step"
DATA_WAIT = "data_wait"
CHECKPOINT_SAVE = "checkpoint_save"
EVALUATION = "evaluation"
STARTUP = "startup"
COMPILE = "compile"
LOST_STEPS = "lost_steps"
DOWN = "down"

BUCKETS: dict[str, str] = {
    STEP: "training steps that were kept, without waiting for data",
    DATA_WAIT: "steps waiting for the input pipeline",
    CHECKPOINT_SAVE: "training standing still while a checkpoint is taken",
    EVALUATION: "validation between steps",
    STARTUP: "from the start of a process to its first step: devices, data, checkpoint",
    COMPILE: "what the first step of a process took beyond an ordinary one",
    LOST_STEPS: "steps done again because no checkpoint held them",
    DOWN: "from the end of a process to the start of the next, where the run was not complete",
}
