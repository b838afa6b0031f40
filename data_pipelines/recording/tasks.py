"""Table of the Meta-World tasks that can be recorded and rolled out.

Owns what the project adds to a Meta-World task: its prompt, its scripted expert and how its goal is drawn. Does not own
the simulation itself.
"""

from __future__ import annotations

import dataclasses
import difflib

from wamjax.errors import ConfigError

# Meta-World's own training seeds are arbitrary; we record from seed 0 upwards and roll out from here upwards, so that a
# policy is never scored on an initial state it was trained on.
HELD_OUT_SEED_START = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What is needed to record one Meta-World task.

    Attributes:
        name: Meta-World 3 environment name.
        prompt: Instruction stored as the LeRobot task string.
        expert: Name of the scripted policy class in `metaworld.policies`.
        marker_radius_m: Radius in metres at which the goal site is drawn in saturated green; None leaves Meta-World's
            own drawing, for tasks whose object already shows where to go.
        aims_with_fingertips: Whether the expert is told the fingertip centre in place of the wrist position. The reach
            expert of Meta-World drives the *wrist* to the goal, which leaves the fingertips 4.5 cm below it, at the
            very edge of the 5 cm success radius; aiming with the fingertips puts the demonstration in its middle.
    """

    name: str
    prompt: str
    expert: str
    marker_radius_m: float | None = None
    aims_with_fingertips: bool = False


_SPECS = (
    TaskSpec(
        name="reach-v3",
        prompt="reach the green target",
        expert="SawyerReachV3Policy",
        marker_radius_m=0.035,
        aims_with_fingertips=True,
    ),
    TaskSpec(
        name="push-v3", prompt="push the puck to the green target", expert="SawyerPushV3Policy", marker_radius_m=0.035
    ),
    TaskSpec(name="drawer-open-v3", prompt="open the drawer", expert="SawyerDrawerOpenV3Policy"),
    TaskSpec(name="drawer-close-v3", prompt="close the drawer", expert="SawyerDrawerCloseV3Policy"),
    TaskSpec(
        name="button-press-topdown-v3",
        prompt="press the red button from above",
        expert="SawyerButtonPressTopdownV3Policy",
    ),
    TaskSpec(name="door-open-v3", prompt="open the door", expert="SawyerDoorOpenV3Policy"),
)
TASKS: dict[str, TaskSpec] = {spec.name: spec for spec in _SPECS}


def task_spec(name: str) -> TaskSpec:
    """Looks a task up by its Meta-World name.

    Args:
        name: For example "reach-v3".

    Returns:
        Its entry of the table.

    Raises:
        ConfigError: The name is not in the table.
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)[0]
    raise ConfigError(f"unknown task {name!r}: expected one of {', '.join(TASKS)} (nearest: {near}); change --tasks")


def task_for_prompt(prompt: str) -> TaskSpec | None:
    """Finds the task whose recorded prompt is `prompt`, or None when the prompt is not one of ours."""
    return next((spec for spec in TASKS.values() if spec.prompt == prompt), None)
