"""Driving a policy through recorded windows, and timing it."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig
from wamjax.sampling.policy import Policy

_LATENCY_CHUNKS = 5


class Predicted(NamedTuple):
    """What a policy expects of windows (``launch.open_loop.Prediction``).

    Attributes:
      video: uint8 ``[b f-1 H W 3]``; None of a policy that denoises none.
      actions: fp32 ``[b a u]``.
    """

    video: npt.NDArray[Any] | None
    actions: npt.NDArray[Any]


def predict_windows(policy: Policy, pixels: RunConfig, batch: WamBatch, key: jax.Array) -> Predicted:
    """Drives ``policy`` through recorded windows, chunk by chunk from what really happened before.

    A chunk has the actions of one block or of several, and their frames.
    """
    sizes, state = pixels.layout, _states(batch)
    policy.reset(np.asarray(batch.prompt_id))
    frames, actions, block, first = [], [], 0, 0
    for turn in range(sizes.num_blocks):
        now = state[:, block] if sizes.states_per_block else state[:, 0]
        last = block * sizes.frames_per_block
        policy.observe(np.asarray(batch.video[:, first : last + 1]), now)
        chunk = policy.act(jax.random.fold_in(key, turn))
        frames.append(None if chunk.video is None else np.asarray(chunk.video))
        actions.append(np.asarray(chunk.actions))
        block, first = block + actions[-1].shape[1] // sizes.actions_per_block, last + 1
        if block == sizes.num_blocks:
            break
    seen = [part for part in frames if part is not None]
    return Predicted(np.concatenate(seen, axis=1) if seen else None, np.concatenate(actions, axis=1))


def measure_latency(policy: Policy, window: WamBatch) -> tuple[float, int]:
    """Returns the seconds from a first observation to actions, the median of a few, compiled before; and how many."""
    frame, state, seconds = np.asarray(window.video[:1, :1]), _states(window)[:1, 0], []
    actions = np.zeros((0, 0, 0))
    for turn in range(1 + _LATENCY_CHUNKS):
        policy.reset(np.asarray(window.prompt_id[:1]))
        started = time.perf_counter()
        policy.observe(frame, state)
        actions = np.asarray(policy.act(jax.random.key(turn)).actions)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]), actions.shape[1]


def _states(batch: WamBatch) -> npt.NDArray[Any]:
    """Returns the states ``[b s p]``, masked; one of zeros where the run has none."""
    if not batch.state.shape[1]:
        return np.zeros((batch.size, 1, batch.state.shape[2]), np.float32)
    return np.asarray(batch.state * batch.state_mask)
