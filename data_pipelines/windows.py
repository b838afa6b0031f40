"""One window of an episode as one sample of a ``WamBatch``: frames, aligned actions, state, masks.

Owns the alignment. With window start s, ``n = steps_per_block`` dataset steps per block and blocks i = 1 .. I:

* frame j lies at step ``s + j * frame_stride``;
* action k of block i is the one executed at step ``s + (i-1) n + k * action_stride``, so a block's actions lead from
  the last frame before it to its own last frame;
* state m of block i's ``states_per_block`` lies at step ``s + (i-1) n - (M-1-m) * action_stride``: the last one is the
  state at the block's start, the others its history. Nothing after the start of a block is shown to it.

An action relative to the state at its chunk's start refers to the state at step ``s + (i-1) n``. Steps past the
episode's end are clamped to its last step and masked; so are states before its first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.canvas import compose_canvas
from data_pipelines.index import WindowTable
from data_pipelines.sources.source import EpisodeRecord, Source, VideoSource
from data_pipelines.vectors import Values, VectorCodec
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
        codec: VectorCodec,
        config: RunConfig,
    ) -> None:
        """Prepares the reader; reads nothing.

        Args:
          source: The dataset.
          windows: Which windows.
          records: Episodes by index.
          prompt_ids: Row of the prompt table by task.
          codec: Makes action and state vectors.
          config: Geometry and canvas.
        """
        self.windows = windows
        self._source = source
        self._records = records
        self._prompt_ids = prompt_ids
        self._codec = codec
        self._config = config
        self._cameras = tuple(key for key, *_ in config.data.views if key in source.cameras)
        self._writes_in_place = isinstance(source, VideoSource) and all(
            source.features[key].shape[:2] == (height, width)
            for key, _, _, height, width in config.data.views
            if key in self._cameras
        )
        self._frame_offsets, self._action_offsets, self._state_offsets = window_offsets(config)
        starts = np.arange(config.layout.num_blocks) * derive_geometry(config).steps_per_block
        self._chunk_offsets = np.repeat(starts, config.layout.actions_per_block)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> WamBatch:
        """Returns sample ``index``: a ``WamBatch`` of host arrays without the batch dim.

        Raises:
          DataError: A file can no longer be read, naming dataset, episode and file.
        """
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[WamBatch]:
        """Returns several samples, in order; what those of one episode show is decoded in one pass.

        Raises:
          DataError: As ``__getitem__``.
        """
        rows = np.asarray(indices, np.int64)
        episodes, starts = self.windows.episodes[rows], self.windows.starts[rows]
        samples: dict[int, WamBatch] = {}
        for episode in dict.fromkeys(episodes.tolist()):
            places = np.flatnonzero(episodes == episode)
            steps = starts[places].astype(np.int64)[:, None] + self._frame_offsets
            last = self._records[episode].length - 1
            shown = np.unique(np.minimum(steps, last))
            canvas, view_mask = self._compose(episode, shown)
            for place, frame_steps in zip(places.tolist(), steps, strict=True):
                # A window alone in its pass shows every frame once: the canvas is its video, and is not copied.
                is_whole = len(places) == 1 and len(shown) == len(frame_steps)
                samples[place] = WamBatch(
                    video=canvas if is_whole else canvas[np.searchsorted(shown, np.minimum(frame_steps, last))],
                    frame_mask=frame_steps <= last,
                    view_mask=view_mask,
                    provenance=np.array([0, episode, starts[place]], np.int32),
                    **self._vectors(episode, int(starts[place])),
                )
        return [samples[place] for place in range(len(rows))]

    def _compose(
        self, episode: int, steps: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """As ``compose_canvas`` of the episode's frames; where views have their cameras' sizes, copied once.

        Memory for frames, canvas and window apart took a tenth of a window's time at 256x256.
        """
        data, source = self._config.data, self._source
        if not self._writes_in_place or not isinstance(source, VideoSource):
            return compose_canvas({key: source.frames(key, episode, steps) for key in self._cameras}, data)
        canvas = np.zeros((len(steps), *data.canvas, 3), np.uint8)
        for key, top, left, height, width in data.views:
            if key in self._cameras:
                source.frames_into(key, episode, steps, canvas[:, top : top + height, left : left + width])
        return canvas, np.array([key in self._cameras for key, *_ in data.views], np.bool_)

    def _vectors(self, episode: int, start: int) -> dict[str, Any]:
        """Returns actions, states, their masks, and what else a window has of its episode."""
        data, layout = self._config.data, self._codec.layout
        last = self._records[episode].length - 1
        action_steps, state_steps = start + self._action_offsets, start + self._state_offsets
        if layout.actions:
            executed = self._at(layout.action_keys, episode, np.minimum(action_steps, last))
            before = self._at(layout.state_keys, episode, np.minimum(start + self._chunk_offsets, last))
            actions = self._codec.encode_actions(executed, before)
        else:
            actions = np.zeros((len(action_steps), data.action_dim), np.float32)
        if layout.states:
            state = self._codec.encode_state(self._at(layout.state_keys, episode, np.clip(state_steps, 0, last)))
        else:
            state = np.zeros((len(state_steps), data.state_dim), np.float32)
        state_is_real = (state_steps >= 0) & (state_steps <= last)
        return {
            "actions": actions,
            "action_mask": action_steps <= last,
            "action_dim_mask": layout.action_mask(data.action_dim),
            "has_action": np.bool_(len(layout.actions) > 0),
            "state": state,
            "state_mask": state_is_real[:, None] & layout.state_mask(data.state_dim),
            "prompt_id": np.int32(self._prompt_ids[self._records[episode].task]),
            "embodiment_id": np.int32(0),
        }

    def _at(self, keys: Sequence[str], episode: int, steps: npt.NDArray[np.int64]) -> Values:
        """Returns features of an episode at some steps."""
        return {key: self._source.column(key, episode)[steps] for key in keys}


def window_offsets(
    config: RunConfig,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the dataset steps of frames ``[f]``, actions ``[a]`` and states ``[s]`` relative to a window's start."""
    geometry, layout = derive_geometry(config), config.layout
    block_starts = np.arange(layout.num_blocks, dtype=np.int64)[:, None] * geometry.steps_per_block
    actions = block_starts + np.arange(layout.actions_per_block) * geometry.action_stride
    states = block_starts - np.arange(layout.states_per_block)[::-1] * geometry.action_stride
    return np.arange(geometry.num_frames) * config.data.frame_stride, actions.ravel(), states.ravel()
