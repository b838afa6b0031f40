"""The task table is consistent and its look-ups say what is wrong."""

import pytest

from data_pipelines.recording.tasks import TASKS, task_for_prompt, task_spec
from wamjax.errors import ConfigError


def test_every_task_is_found_by_name_and_by_prompt() -> None:
    for name, spec in TASKS.items():
        assert task_spec(name) is spec
        assert task_for_prompt(spec.prompt) is spec  # also shows that no two tasks share a prompt


def test_task_for_prompt_of_foreign_dataset_is_none() -> None:
    assert task_for_prompt("fold the towel") is None


def test_unknown_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'drawer-closed'.*nearest: drawer-close-v3.*--tasks"):
        task_spec("drawer-closed")
