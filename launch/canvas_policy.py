"""A policy that sees pictures of single cameras, driven like one that sees the canvas."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipelines.latents.samples import split_pictures
from wamjax.sampling.policy import Chunk, Policy
from wamjax.types import PRNGKey


class CanvasPolicy:
    """Shows ``policy`` the cameras of the newest frame, which lie one below the other on the canvas."""

    def __init__(self, policy: Policy, num_pictures: int) -> None:
        self._policy, self._num_pictures = policy, num_pictures

    def reset(self, prompt_id: Any) -> None:
        """As ``Policy.reset``."""
        self._policy.reset(prompt_id)

    def observe(self, frames: Any, state: Any) -> None:
        """Shows frames of the canvas, uint8 ``[b f (v H) W 3]``, and the state ``[b p]``."""
        self._policy.observe(split_pictures(np.asarray(frames)[:, -1:], self._num_pictures)[:, 0], state)

    def act(self, key: PRNGKey) -> Chunk:
        """As ``Policy.act``; pictures ``[b v H W 3]`` become one frame of the canvas, ``[b 1 (v H) W 3]``."""
        chunk = self._policy.act(key)
        if chunk.video is None:
            return chunk
        video = np.asarray(chunk.video)
        batch, count, height, *rest = video.shape
        return chunk._replace(video=video.reshape(batch, 1, count * height, *rest))
