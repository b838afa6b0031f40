"""Time and memory of a run's action and state scales over a million steps, against numpy's exact quantiles.

    python benchmarks/normalisation.py [--steps=1000000 --actions=24]

A synthetic source gives the columns of the DROID specification (8 dims of state and of action; joints relative to the
state at their chunk's start, so that every step is met once for each action of a chunk), episode by episode. Reference,
in the same run: ``np.quantile`` over all the rows at once, of one dim, because those of all dims need too much memory.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from absl import app, flags

from data_pipelines.embodiments.apply import apply_embodiment
from data_pipelines.sources.source import EpisodeRecord, OpenedSource
from data_pipelines.vector_statistics import HIGH_QUANTILE, LOW_QUANTILE, compute_normalisation
from data_pipelines.vectors import build_layout
from wamjax.config.schema import DataConfig, LayoutConfig, RunConfig

_EPISODE_STEPS = 300
_DIM = 14  # slot of the first joint, relative
_ACTION_AND_STATE = ("action", "observation.state")


class _Synthetic(OpenedSource):
    """Random walks of joints with heavy tails; actions follow them with some noise. There is no camera."""

    format = "synthetic"
    fps = 15.0

    def __init__(self, steps: int) -> None:
        super().__init__(Path("synthetic"))
        count = -(-steps // _EPISODE_STEPS)
        self.episodes = tuple(EpisodeRecord(index=i, length=_EPISODE_STEPS, task="walk") for i in range(count))
        for record in self.episodes:
            rng = np.random.default_rng(record.index)
            state = np.cumsum(rng.standard_t(3, (_EPISODE_STEPS, 8)) * 0.01, axis=0)
            action = state + rng.normal(0, 0.02, state.shape)
            self._values[record.index] = {
                f"{name}.{part}_position": np.ascontiguousarray(values[:, dims], np.float32)
                for name, values in (("observation.state", state), ("action", action))
                for part, dims in (("joint", slice(0, 7)), ("gripper", slice(7, 8)))
            }

    def frames(self, camera: str, episode: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        raise KeyError(camera)

    def fingerprint(self) -> str:
        return f"random walks, {len(self.episodes)} episodes"


def _all_rows(source: _Synthetic, actions: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yields the relative values of the first joint, from the columns themselves."""
    for record in source.episodes:
        action, state = (source.column(f"{n}.joint_position", record.index)[:, 0] for n in _ACTION_AND_STATE)
        for offset in range(actions):
            yield action[offset:].astype(np.float64) - state[: len(state) - offset]


def _memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str]) -> int:
    """Prints time, memory and the distance to the reference."""
    values = flags.FLAGS
    layout = LayoutConfig(num_blocks=4, frames_per_block=8, actions_per_block=values.actions)
    config = apply_embodiment(
        RunConfig(layout=layout, data=DataConfig(embodiment="droid", state_dim=30, action_dim=30))
    )
    source = _Synthetic(values.steps)
    before, started, cpu = _memory_mib(), time.perf_counter(), time.process_time()
    vectors = build_layout(config.data, lambda key: 0)
    found = compute_normalisation(
        source, [record.index for record in source.episodes], vectors, config, fingerprint="synthetic"
    )
    streamed_s, streamed_cpu_s = time.perf_counter() - started, time.process_time() - cpu
    streamed_mib, started = _memory_mib() - before, time.process_time()
    rows = np.concatenate(list(_all_rows(source, values.actions))).astype(np.float32).astype(np.float64)
    exact = np.quantile(rows, [LOW_QUANTILE, HIGH_QUANTILE])
    reference_s = time.process_time() - started
    error = max(abs(found.actions.low[_DIM] - exact[0]), abs(found.actions.high[_DIM] - exact[1]))
    print(f"{found.steps:,} steps, {values.actions} actions per chunk: {len(rows):,} rows of 8 dims, 1 thread")
    print(f"streamed, 16 dims: {streamed_s:.1f} s, {streamed_cpu_s:.1f} s of a core, +{streamed_mib:.0f} MiB")
    print(f"np.quantile, 1 dim: {reference_s:.1f} s of a core, +{_memory_mib() - before:.0f} MiB; {error:.1e} apart")
    print(f"all dims take {streamed_cpu_s / reference_s:.1f} times the reference's one")
    return 0


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 1_000_000, "Dataset steps.", lower_bound=1)
    flags.DEFINE_integer("actions", 24, "Actions of a chunk.", lower_bound=1)
    sys.exit(app.run(main))
