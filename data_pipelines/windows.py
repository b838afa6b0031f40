"""One window of an episode as one sample of a ``WamBatch``: frames, aligned actions, state, masks.

Owns the alignment. With window start s, ``n = steps_per_block`` dataset steps per block and blocks i = 1 .. I:

* frame j lies at step ``s + j * frame_stride``;
* action k of block i is the one executed at step ``s + (i-1) n + k * action_stride``, so a block's actions lead from
  the last frame before it to its own last frame;
* state m of block i's ``states_per_block`` lies at step ``s + (i-1) n - (M-1-m) * action_stride``: the last one is the
  state at the block's start, the others its history. Nothing after the start of a block is shown to it.

Steps past the episode's end are clamped to its last step and masked; so are states before its first step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from data_pipelines.canvas import compose_canvas
from data_pipelines.index import WindowTable
from data_pipelines.normalisation import Normalisation, QuantileScale
from data_pipelines.sources.source import EpisodeRecord, Source
from wamjax.batch import WamBatch
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import RunConfig


class WindowReader:
    """Random access to the samples of a window table (Grain's ``RandomAccessDataSource``)."""

    def __init__(
        self,
        source: Source,
        windows: WindowTable,
        *,
        records: Mapping[int, EpisodeRecord],
        prompt_ids: Mapping[str, int],
        normalisation: Normalisation,
        config: RunConfig,
    ) -> None:
        """Prepares the reader; reads nothing.

        Args:
          source: The dataset.
          windows: Which windows.
          records: Episodes by index.
          prompt_ids: Row of the prompt table by task.
          normalisation: Scales of actions and state.
          config: Geometry and canvas.
        """
        self.windows = windows
        self._source = source
        self._records = records
        self._prompt_ids = prompt_ids
        self._normalisation = normalisation
        self._config = config
        self._frame_offsets, self._action_offsets, self._state_offsets = window_offsets(config)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> WamBatch:
        """Returns sample ``index``: a ``WamBatch`` of host arrays without the batch dim.

        Raises:
          DataError: A file can no longer be read, naming dataset, episode and file.
        """
        data = self._config.data
        episode, start = int(self.windows.episodes[index]), int(self.windows.starts[index])
        record = self._records[episode]
        last = record.length - 1
        frame_steps = start + self._frame_offsets
        shown = np.unique(np.minimum(frame_steps, last))
        views = {key: self._source.frames(key, episode, shown) for key, *_ in data.views}
        canvas, view_mask = compose_canvas(views, data)
        action_steps = start + self._action_offsets
        actions, action_dim_mask = _pad_dims(
            self._source.column(data.action_key, episode), action_steps, self._normalisation.actions, data.action_dim
        )
        state_steps = start + self._state_offsets
        state, state_dim_mask = _pad_dims(
            self._source.column(data.state_key, episode), state_steps, self._normalisation.state, data.state_dim
        )
        state_is_real = (state_steps >= 0) & (state_steps <= last)
        return WamBatch(
            video=canvas[np.searchsorted(shown, np.minimum(frame_steps, last))],
            frame_mask=frame_steps <= last,
            view_mask=view_mask,
            actions=actions,
            action_mask=action_steps <= last,
            action_dim_mask=action_dim_mask,
            has_action=np.bool_(True),
            state=state,
            state_mask=state_is_real[:, None] & state_dim_mask,
            prompt_id=np.int32(self._prompt_ids[record.task]),
            embodiment_id=np.int32(0),
            provenance=np.array([0, episode, start], np.int32),
        )


def window_offsets(
    config: RunConfig,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the dataset steps of frames ``[f]``, actions ``[a]`` and states ``[s]`` relative to a window's start."""
    geometry, layout = derive_geometry(config), config.layout
    block_starts = np.arange(layout.num_blocks, dtype=np.int64)[:, None] * geometry.steps_per_block
    actions = block_starts + np.arange(layout.actions_per_block) * geometry.action_stride
    states = block_starts - np.arange(layout.states_per_block)[::-1] * geometry.action_stride
    return np.arange(geometry.num_frames) * config.data.frame_stride, actions.ravel(), states.ravel()


def _pad_dims(
    values: npt.NDArray[np.float32], steps: npt.NDArray[np.int64], scale: QuantileScale, num_dims: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Returns normalised values ``[len(steps), num_dims]`` at clamped steps, zero in padded dims, and the dim mask."""
    clamped = np.clip(steps, 0, len(values) - 1)
    out = np.zeros((len(steps), num_dims), np.float32)
    out[:, : scale.num_dims] = scale.normalise(values[clamped])
    return out, np.arange(num_dims) < scale.num_dims
