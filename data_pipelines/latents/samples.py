"""Windows in pixels as samples of a formulation: what needs no encoder (``config.pixel_windows`` cuts the windows).

Owns where actions, states, pictures and values of a window go. Latents and features are their encoders'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.pipeline import Pipeline
from data_pipelines.text.policy_prompts import PolicyPrompts
from wamjax.batch import Question, WamBatch
from wamjax.config.pixel_windows import num_pictures
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError

# Of a reward of 1 at an episode's last step. Source: Cosmos Policy's released code, ``gamma`` of its datasets.
DISCOUNT = 0.99
Fields = dict[str, npt.NDArray[Any]]


def split_pictures(frames: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Returns the pictures ``[b f v H W 3]`` that lie one below the other in frames ``[b f (v H) W 3]``."""
    batch, num_frames, height, width, channels = frames.shape
    return frames.reshape(batch, num_frames, count, height // count, width, channels)


def return_to_go(steps_left: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Returns what ``steps_left`` before an episode's last step is worth: the discounted reward, scaled to [-1, 1].

    Source: Cosmos Policy's released code: Monte Carlo returns of episodes that succeed.
    """
    return np.asarray(2.0 * DISCOUNT ** np.asarray(steps_left, np.float64) - 1.0, np.float32)


class SampleFields:
    """Makes of windows what samples of ``config`` hold instead of theirs."""

    def __init__(self, config: RunConfig, pipeline: Pipeline, prompts: PolicyPrompts | None = None) -> None:
        """Prepares.

        Args:
          config: The run.
          pipeline: Of its windows in pixels.
          prompts: Of a vision-language-action model.

        Raises:
          ConfigError: Actions are relative to a state that these samples do not begin with.
        """
        self._config, self._records, self._prompts = config, pipeline.index.records, prompts
        if config.layout.formulation == "alternating" and pipeline.codec.layout.has_relative_actions:
            raise ConfigError(
                f"config.data.embodiment={config.data.embodiment} has actions relative to the state at their chunk's "
                "start; chunks of formulation alternating are cut from windows frame by frame: choose one with "
                "absolute actions"
            )
        makers: dict[str, Callable[[WamBatch], Fields]] = {
            "alternating": self._of_alternating,
            "latent_frames": self._of_latent_frames,
            "policy": self._of_policy,
            "queries": self._of_queries,
        }
        self._make = makers.get(config.layout.formulation, lambda batch: {})

    def __call__(self, batch: WamBatch) -> Fields:
        """Returns the fields, batch-first, in which samples differ from the windows of ``batch``."""
        return self._make(batch)

    def _of_alternating(self, batch: WamBatch) -> Fields:
        """The first frame's actions, which would have led to it, are zeros without a loss."""
        sizes = self._config.layout
        given = sizes.actions_per_block // sizes.frames_per_block
        return {
            "actions": np.pad(batch.actions, ((0, 0), (given, 0), (0, 0))),
            "action_mask": np.pad(batch.action_mask, ((0, 0), (given, 0))),
        }

    def _of_latent_frames(self, batch: WamBatch) -> Fields:
        """The first block of two; the second begins with the later state."""
        count = self._config.layout.actions_per_block
        lengths = np.array([self._records[int(episode)].length for episode in batch.provenance[:, 1]])
        later = batch.provenance[:, 2] + self._config.data.frame_stride
        return {
            "actions": batch.actions[:, :count],
            "action_mask": batch.action_mask[:, :count],
            "value": return_to_go(np.maximum(lengths - 1 - later, 0)),
            "question": np.full(batch.size, int(Question.POLICY), np.int32),
        }

    def _of_policy(self, batch: WamBatch) -> Fields:
        assert self._prompts is not None, "a vision-language-action model reads prompts"
        pictures = num_pictures(self._config)
        state = batch.state[:, 0] * batch.state_mask[:, 0]
        return {
            "images": split_pictures(batch.video[:, :1], pictures)[:, 0],
            "view_mask": np.pad(batch.view_mask, ((0, 0), (0, pictures - batch.view_mask.shape[1]))),
            "text_ids": self._prompts(batch.prompt_id, state),
            "state": batch.state[:, :0],
            "state_mask": batch.state_mask[:, :0],
        }

    def _of_queries(self, batch: WamBatch) -> Fields:
        """A step has a picture, a state and an action: the frame after the last step is left out."""
        return {"video": batch.video[:, :-1], "frame_mask": batch.frame_mask[:, :-1]}
