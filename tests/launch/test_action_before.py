"""The baseline that repeats the last action, where actions are relative to the start of their chunk."""

from pathlib import Path

import numpy as np

from data_pipelines.embodiments.apply import apply_embodiment
from data_pipelines.pipeline import build_pipeline
from launch.trained_state import ActionBefore
from wamjax.config.schema import DataConfig, LayoutConfig, ModelConfig, RunConfig

DATASET = Path(__file__).parents[2] / "datasets/metaworld"
ROBOT = """
name = "relative"
source = "this test"
prompt_template = "{task}"
rate_hz = 80
frame_stride = 4
normalisation = "min_max"
canvas = [48, 48]
views = [{ camera = "observation.images.front", rectangle = [0, 0, 48, 48] }]
states = [{ name = "hand", key = "observation.state", first = 0, slots = [0, 1, 2, 3], unit = "m" }]
actions = [{ name = "hand", key = "action", first = 0, slots = [2, 3, 4, 5], unit = "m", reference = "chunk_start" }]
"""


def test_action_before_a_block_is_written_as_the_block_would(tmp_path: Path) -> None:
    file = tmp_path / "robot.toml"
    file.write_text(ROBOT)
    config = apply_embodiment(
        RunConfig(
            model=ModelConfig(patch=(1, 24, 24)),
            layout=LayoutConfig(num_blocks=2, frames_per_block=2, actions_per_block=4),
            data=DataConfig(path=str(DATASET), embodiment=str(file), action_dim=6),
        )
    )
    pipeline = build_pipeline(config, workdir=None)
    episode = pipeline.index.validation_episodes[0]
    before = ActionBefore(pipeline, config)
    source, scale = pipeline._source, pipeline.normalisation.actions
    action, state = source.column("action", episode), source.column("observation.state", episode)
    low, high = np.array(scale.low)[2:], np.array(scale.high)[2:]
    for start in (0, 5):
        found = before(episode, start)
        assert found.shape == (2, 6)
        for block in range(2):
            begin = start + 8 * block
            # Two steps lie between actions of a window; before the window it is the step before.
            raw = action[begin - (2 if block else 1)] - state[begin] if begin else np.zeros(4)
            np.testing.assert_allclose(found[block, 2:], np.clip(2 * (raw - low) / (high - low) - 1, -1, 1), atol=1e-5)
    assert (found[:, :2] == 0).all()
    window = pipeline.validation_windows()
    (row,) = np.flatnonzero((window.episodes == episode) & (window.starts == 5))
    last = window.batch([row]).actions[0, 3, 2:]  # of block 0, as block 0 writes it
    np.testing.assert_allclose((last + 1) / 2 * (high - low) + low + state[5], action[5 + 6], atol=1e-4)
