"""The window a backbone's policy looks back on: how many frames a chunk brings, and what is dropped when it is full."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from wamjax.config.clip import latent_grid
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Window:
    """Frames of the window, from the sizes of a run. Frames are pixel frames unless they are called latent.

    The first frame is a latent frame of its own, then every ``stride`` frames are one. ``alternating`` counts the first
    frame to its first chunk; elsewhere it comes before the first block.
    """

    config: RunConfig

    def __post_init__(self) -> None:
        if self._is_alternating and self.size < 2:
            raise ConfigError(
                f"config.layout.num_blocks={self.config.layout.num_blocks} of frames_per_block={self._per_chunk} is "
                "one frame, which is observed: there is nothing to denoise; make one of them 2 or more"
            )

    @property
    def size(self) -> int:
        """Latent frames of the clip a training sample holds."""
        return latent_grid(self.config)[0]

    def num_latents(self, frames: npt.NDArray[Any]) -> int:
        """Returns the latent frames of ``frames`` ``[b f H W 3]``."""
        return 1 + (frames.shape[1] - 1) // self._stride

    def num_expected(self, known: int) -> int:
        """Returns how many frames come next where ``known`` latent frames were seen: what one chunk brings."""
        if not known:
            return 1
        latents = self._per_chunk
        if self._is_alternating and known % self._per_chunk:
            latents -= known % self._per_chunk  # the first chunk has begun with the observed frame
        return latents * self._stride

    def chunk(self, known: int) -> int:
        """Returns which chunk is next where ``known`` latent frames were seen."""
        if self._is_alternating:
            return known // self._per_chunk
        return (known - 1) // self._per_chunk

    def cut(self, frames: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], bool]:
        """Returns the frames that are looked back on, and whether older ones were dropped."""
        before = self.config.layout.num_blocks - 1
        longest = before * self._per_chunk + (not self._is_alternating)
        if self.num_latents(frames) <= max(1, longest):
            return frames, False
        return frames[:, -(1 + (max(1, longest) - 1) * self._stride) :], True

    def no_actions(self, batch_size: int) -> npt.NDArray[Any]:
        """Returns the actions of a window of one frame: zeros for those that would have led to it, if there are any."""
        return np.zeros((batch_size, self.num_given_actions(0), self.config.data.action_dim), np.float32)

    def num_given_actions(self, chunk: int) -> int:
        """Returns the leading actions of a chunk that are given: those before the first frame of ``alternating``."""
        return self._per_frame if self._is_alternating and chunk == 0 else 0

    def cut_actions(self, actions: npt.NDArray[Any], known: int) -> npt.NDArray[Any]:
        """Returns the actions of the ``known`` latent frames that are left, those before the first of them zeros."""
        if not self._is_alternating:
            return actions[:, :0]
        own = actions[:, actions.shape[1] - known * self._per_frame :].copy()
        own[:, : self._per_frame] = 0.0
        return own

    @property
    def _stride(self) -> int:
        return self.config.clip.stride[0]

    @property
    def _per_chunk(self) -> int:
        return self.config.layout.frames_per_block

    @property
    def _per_frame(self) -> int:
        return self.config.layout.actions_per_block // self._per_chunk

    @property
    def _is_alternating(self) -> bool:
        return self.config.layout.formulation == "alternating"
