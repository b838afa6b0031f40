"""Batches read through a specification, against values worked out from the raw columns in numpy, step by step."""

import dataclasses
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_pipelines import pipeline as pipeline_module
from data_pipelines.embodiments.apply import apply_embodiment
from data_pipelines.embodiments.spec import FOLDER, list_embodiments
from data_pipelines.pipeline import Pipeline, build_pipeline
from data_pipelines.sources.source import EpisodeRecord, Feature, OpenedSource
from data_pipelines.stream import stack_samples
from wamjax.batch import WamBatch
from wamjax.config.schema import DataConfig, LayoutConfig, ModelConfig, RunConfig
from wamjax.errors import DataError

GOLDEN = Path(__file__).parent / "golden"
LAYOUT = LayoutConfig(num_blocks=2, frames_per_block=1, actions_per_block=1)
Columns = Callable[[str, int], np.ndarray]


def make_run(path: Path, embodiment: Path | str, layout: LayoutConfig = LAYOUT, **data: Any) -> RunConfig:
    config = RunConfig(
        model=ModelConfig(patch=(1, 1, 1)),
        layout=layout,
        data=DataConfig(path=str(path), embodiment=str(embodiment), state_dim=30, action_dim=30, **data),
    )
    return apply_embodiment(config)


def raw_vector(fields: list[dict], at: Mapping[str, np.ndarray], states: list[dict], before: Any) -> np.ndarray:
    """The vector of one step before scaling; none of these fields changes the form of an orientation."""
    vector = np.zeros(30)
    for field in fields:
        dims = len(field["slots"])
        part = at[field["key"]][field["first"] : field["first"] + dims].astype(float)
        if field.get("reference") == "chunk_start":
            (state,) = [s for s in states if s["name"] == field["name"]]
            part = part - before[state["key"]][state["first"] : state["first"] + dims]
        if field.get("gripper") == "closed_is_high":
            part = -part
        vector[field["slots"]] = part
    return vector


def scale(vectors: np.ndarray, values: np.ndarray) -> np.ndarray:
    """q01 to -1 and q99 to 1 of all ``vectors``, clamped; a dim without spread maps its value to 0."""
    low, high = np.quantile(vectors, [0.01, 0.99], axis=0)
    half = np.where(high > low, (high - low) / 2, 1.0)
    return np.clip((values - (low + high) / 2) / half, -1, 1)


def check_against_columns(pipeline: Pipeline, batch: WamBatch, spec: dict, config: RunConfig, column: Columns) -> None:
    """Compares actions and states of a batch with a walk over the raw columns."""
    states, actions, layout = spec["states"], spec["actions"], config.layout
    keys = {field["key"] for field in (*states, *actions)}
    steps_per_block = layout.frames_per_block * spec["frame_stride"]
    stride = steps_per_block // layout.actions_per_block
    is_relative = any(field.get("reference") == "chunk_start" for field in actions)
    seen_actions, seen_states = [], []
    for episode in pipeline.index.train_episodes:
        at = [
            {key: column(key, episode)[step] for key in keys} for step in range(pipeline.index.records[episode].length)
        ]
        seen_states += [raw_vector(states, step, states, None) for step in at]
        for begin in range(len(at)):
            for k in range(layout.actions_per_block if is_relative else 1):
                if begin + k * stride < len(at):
                    seen_actions.append(raw_vector(actions, at[begin + k * stride], states, at[begin]))
    for row in range(batch.size):
        _, episode, start = batch.provenance[row].tolist()
        at = [
            {key: column(key, episode)[step] for key in keys} for step in range(pipeline.index.records[episode].length)
        ]
        for block in range(layout.num_blocks):
            begin = start + block * steps_per_block
            for k in range(layout.actions_per_block):
                step, place = begin + k * stride, block * layout.actions_per_block + k
                assert batch.action_mask[row, place] == (step < len(at))
                if step < len(at):
                    raw = raw_vector(actions, at[step], states, at[begin])
                    expected = scale(np.array(seen_actions), raw)
                    np.testing.assert_allclose(batch.actions[row, place], expected, atol=1e-5)
            if begin < len(at):
                expected = scale(np.array(seen_states), raw_vector(states, at[begin], states, None))
                np.testing.assert_allclose(batch.state[row, block], expected, atol=1e-5)
    slots = sorted(slot for field in actions for slot in field["slots"])
    assert [np.flatnonzero(mask).tolist() for mask in batch.action_dim_mask] == [slots] * batch.size
    assert batch.has_action.all()


class FakeDataset(OpenedSource):
    """Random columns and flat frames of the features a specification names."""

    def __init__(self, spec: dict, path: Path) -> None:
        super().__init__(path)
        rng = np.random.default_rng(0)
        fields = [*spec.get("states", ()), *spec.get("actions", ())]
        self.features = {view["camera"]: Feature(dtype="video", shape=(8, 8, 3)) for view in spec["views"]}
        dims = {f["key"]: max(g["first"] + len(g["slots"]) for g in fields if g["key"] == f["key"]) for f in fields}
        self.features |= {key: Feature(dtype="float32", shape=(size,)) for key, size in dims.items()}
        self.columns = tuple(dims)
        steps = 2 * spec["frame_stride"]
        lengths = (steps + 5, steps + 3, 3 * steps)
        self.episodes = tuple(EpisodeRecord(index=i, length=n, task="open the box") for i, n in enumerate(lengths))
        self._values = {
            i: {key: rng.normal(size=(n, size)).astype(np.float32) for key, size in dims.items()}
            for i, n in enumerate(lengths)
        }
        self.fps, self.format = float(spec["rate_hz"]) or 24.0, "fake"

    def frames(self, camera: str, episode: int, steps: np.ndarray) -> np.ndarray:
        return np.broadcast_to((40 * episode + steps)[:, None, None, None], (len(steps), 8, 8, 3)).astype(np.uint8)

    def fingerprint(self) -> str:
        return "fake"


def read_spec(name: str) -> dict:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text())


@pytest.mark.parametrize("name", list_embodiments())
def test_every_specification_trains_on_a_dataset_like_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = read_spec(name)
    source = FakeDataset(spec, tmp_path)
    monkeypatch.setattr(pipeline_module, "open_source", lambda path, **choice: source)
    actions = spec["frame_stride"] if name != "droid" else 1  # at the robot's rate, or one for each frame
    layout = dataclasses.replace(LAYOUT, actions_per_block=actions)
    config = make_run(tmp_path, name, layout, validation_fraction=0.0)
    pipeline = build_pipeline(config, workdir=tmp_path)
    reader = pipeline.reader(pipeline.index.train)
    chosen = sorted({0, len(reader) // 2, len(reader) - 1})
    batch = stack_samples(reader.read(chosen))
    if "actions" in spec:
        check_against_columns(pipeline, batch, spec, config, source.column)
    else:
        assert not batch.has_action.any()
        assert not batch.state_mask.any()
        assert not batch.action_dim_mask.any()
        assert (batch.actions == 0).all()
    assert batch.view_mask.all()
    # The steps of one frame are told by its colour.
    episodes, starts = batch.provenance[:, 1], batch.provenance[:, 2]
    lengths = np.array([record.length for record in source.episodes])[episodes]
    steps = np.minimum(starts[:, None] + np.arange(3) * spec["frame_stride"], lengths[:, None] - 1)
    np.testing.assert_array_equal(batch.video.max(axis=(2, 3, 4)), 40 * episodes[:, None] + steps)
    assert build_pipeline(config, workdir=tmp_path).normalisation == pipeline.normalisation


ROBOT = """
name = "golden"
source = "this test"
prompt_template = "Robot, {task}!"
rate_hz = RATE
frame_stride = 2
normalisation = "quantile"
canvas = [32, 64]
views = [{ camera = "CAMERA", rectangle = [0, 0, 32, 32] },
         { camera = "observation.images.gone", rectangle = [0, 32, 32, 32], optional = true }]

[[states]]
name = "hand"
key = "STATE"
first = 0
slots = [4, 3]
unit = "m"

[[states]]
name = "grip"
key = "STATE"
first = 2
slots = [28]
unit = "1"

[[actions]]
name = "hand"
key = "ACTION"
first = 0
slots = [4, 3]
unit = "m"
reference = "chunk_start"
"""
LEROBOT = {"CAMERA": "observation.images.front", "STATE": "observation.state", "ACTION": "action", "RATE": "10"}
RLDS = {"CAMERA": "observation/wrist_image", "STATE": "observation/state", "ACTION": "action", "RATE": "10"}


@pytest.mark.parametrize(
    ("folder", "names"),
    [("lerobot_v2.1", LEROBOT), ("lerobot_v3.0", LEROBOT), ("rlds_tfrecord", RLDS), ("rlds_array_record", RLDS)],
)
def test_golden_dataset_is_read_through_its_specification(folder: str, names: dict[str, str], tmp_path: Path) -> None:
    text = ROBOT
    for name, value in names.items():
        text = text.replace(name, value)
    file = tmp_path / "robot.toml"
    file.write_text(text)
    layout = dataclasses.replace(LAYOUT, actions_per_block=2)
    config = make_run(GOLDEN / folder, file, layout, validation_fraction=0.0)
    pipeline = build_pipeline(config, workdir=None)
    assert all(prompt.startswith("Robot, ") for prompt in pipeline.prompts)
    batch = stack_samples(pipeline.reader(pipeline.index.train).read(range(len(pipeline.index.train))))

    def column(key: str, episode: int) -> np.ndarray:
        """As the scripts beside the datasets wrote them."""
        steps, ones = np.arange(20.0), np.ones(20)
        state = [steps, 10 * episode * ones, ones / 2] if names is LEROBOT else [steps, episode * ones, ones]
        return np.stack(state if key == names["STATE"] else [episode + steps / 8, -steps], axis=1).astype(np.float32)

    check_against_columns(pipeline, batch, tomllib.loads(text), config, column)
    np.testing.assert_array_equal(batch.view_mask, [[True, False]] * batch.size)
    assert (batch.video[:, :, :, 32:] == 0).all()
    assert batch.video[:, :, :, :32].max() > 0
    assert pipeline.summary["missing_views"] == ["observation.images.gone"]


def write_libero(path: Path) -> dict[int, dict[str, np.ndarray]]:
    """One file of three demonstrations in the layout of LIBERO's scripts/create_dataset.py; returns their columns."""
    rng, columns = np.random.default_rng(0), {}
    with h5py.File(path / "open_demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
        for number, length in enumerate((9, 7, 12)):
            demo = data.create_group(f"demo_{number}")
            arrays = {"actions": 7, "obs/ee_states": 6, "obs/gripper_states": 2}
            columns[number] = {key: rng.normal(size=(length, dims)) for key, dims in arrays.items()}
            for key, values in columns[number].items():
                demo[key] = values
            for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                demo[f"obs/{camera}"] = np.full((length, 16, 16, 3), 50, np.uint8)
    return columns


def test_libero_file_is_read_through_its_specification(tmp_path: Path) -> None:
    columns = write_libero(tmp_path)
    config = make_run(tmp_path, "libero_hdf5", validation_fraction=0.0)
    pipeline = build_pipeline(config, workdir=None)
    batch = stack_samples(pipeline.reader(pipeline.index.train).read([0, 5, 13]))
    check_against_columns(pipeline, batch, read_spec("libero_hdf5"), config, lambda key, i: columns[i][key])
    assert pipeline.prompts == ("open the drawer",)


@pytest.mark.parametrize(
    ("name", "folder", "words"),
    [
        (
            "droid",
            "lerobot_v3.0",
            "has no camera 'observation.images.exterior_1_left'.*; it has observation.images.front",
        ),
        ("libero", "lerobot_v3.0", "has no camera 'image'"),
        ("droid_rlds", "rlds_tfrecord", "has no camera 'observation/exterior_image_1_left'"),
        ("human_video", "lerobot_v2.1", "has no camera 'video'"),
    ],
)
def test_what_a_dataset_lacks_is_said_in_one_line(name: str, folder: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        build_pipeline(make_run(GOLDEN / folder, name), workdir=None)
    assert "\n" not in str(error.value)


def test_run_is_refused_when_its_robot_changed(tmp_path: Path) -> None:
    write_libero(tmp_path)
    file = tmp_path / "robot.toml"
    file.write_text((FOLDER / "libero_hdf5.toml").read_text())
    config = make_run(tmp_path, file, validation_fraction=0.0)
    build_pipeline(config, workdir=tmp_path)
    file.write_text(file.read_text().replace("slots = [28]", "slots = [7]"))
    with pytest.raises(DataError, match=r"config\.data\.embodiment changed since the run began"):
        build_pipeline(config, workdir=tmp_path)
