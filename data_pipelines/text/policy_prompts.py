"""Prompts of vision-language-action models: the task with the robot's state written in it, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wamjax.errors import ConfigError

NUM_BINS = 256  # of a state dim in [-1, 1]
_PADDING = -1


def write_policy_prompt(task: str, state: npt.NDArray[Any]) -> str:
    """Returns ``Task: ..., State: ...;`` and a line for the actions, the state ``[p]`` in ``NUM_BINS`` numbered bins.

    Source: openpi, src/openpi/models/tokenizer.py, ``PaligemmaTokenizer.tokenize``. What differs: a value outside
    [-1, 1] takes the nearest bin.
    """
    edges = np.linspace(-1.0, 1.0, NUM_BINS + 1)[:-1]
    bins = np.clip(np.digitize(state, edges) - 1, 0, NUM_BINS - 1)
    cleaned = task.strip().replace("_", " ").replace("\n", " ")
    return f"Task: {cleaned}, State: {' '.join(map(str, bins))};\nAction: "


class PolicyPrompts:
    """Writes and tokenises prompts of a run.

    Attributes:
      num_prompts: Tasks that there are.
    """

    def __init__(
        self, tasks: Sequence[str], tokenise: Callable[[str], Sequence[int]], *, num_tokens: int, num_state_dims: int
    ) -> None:
        """Prepares.

        Args:
          tasks: By ``prompt_id``.
          tokenise: Text -> token ids.
          num_tokens: Of a prompt, padding included (``config.vla.text_tokens``).
          num_state_dims: Dims of a state that the robot has; the rest is padding and is not written.
        """
        self.num_prompts = len(tasks)
        self._tasks, self._tokenise = tuple(tasks), tokenise
        self._num_tokens, self._num_state_dims = num_tokens, num_state_dims

    def __call__(self, prompt_id: npt.NDArray[Any], state: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Returns token ids int32 ``[b l]``, -1 beyond the end, of tasks ``[b]`` and normalised states ``[b p]``.

        Raises:
          ConfigError: A prompt is too long.
        """
        ids = np.full((len(prompt_id), self._num_tokens), _PADDING, np.int32)
        for row, (task, vector) in enumerate(zip(prompt_id, state, strict=True)):
            text = write_policy_prompt(self._tasks[int(task)], vector[: self._num_state_dims])
            own = self._tokenise(text)
            if len(own) > self._num_tokens:
                raise ConfigError(
                    f"prompt {text!r} has {len(own)} tokens and config.vla.text_tokens={self._num_tokens}; make it "
                    f"{len(own)} or more"
                )
            ids[row, : len(own)] = own
        return ids
