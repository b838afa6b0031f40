import dataclasses
from pathlib import Path

import pytest

from data_pipelines.embodiments.apply import apply_embodiment, check_dataset
from data_pipelines.embodiments.spec import FOLDER, UnusedDims, list_embodiments, load_embodiment
from data_pipelines.pipeline import open_dataset
from experiments import quickstart
from wamjax.config import bridge
from wamjax.config.schema import DataConfig, RunConfig
from wamjax.errors import ConfigError, DataError

QUICKSTART = bridge.from_config_dict(quickstart.get_config())
DATASET = Path(__file__).resolve().parents[2] / QUICKSTART.data.path
SAWYER = (FOLDER / "metaworld_sawyer.toml").read_text()


def write(path: Path, old: str = "", new: str = "") -> str:
    """Writes the Sawyer's specification with ``old`` replaced, once."""
    assert old in SAWYER
    file = path / "robot.toml"
    file.write_text(SAWYER.replace(old, new, 1))
    return str(file)


def test_every_robot_of_the_issue_has_a_specification() -> None:
    robots = {"agibot", "aloha", "bridge", "droid", "human_video", "libero", "metaworld_sawyer"}
    assert set(list_embodiments()) == robots | {"bridge_rlds", "droid_rlds", "libero_hdf5"}


@pytest.mark.parametrize(
    ("name", "rate", "stride", "states", "actions"),
    [
        # Dims as the datasets' own tables list them.
        ("droid", 15, 3, 8, 8),
        ("agibot", 30, 6, 16, 16),
        ("libero", 10, 1, 8, 7),
        ("aloha", 50, 4, 14, 14),
        ("metaworld_sawyer", 80, 4, 4, 4),
        ("bridge", 5, 1, 7, 7),
        ("human_video", 0, 1, 0, 0),
        ("droid_rlds", 15, 3, 8, 8),
        ("libero_hdf5", 20, 1, 8, 7),
        ("bridge_rlds", 5, 1, 7, 7),
    ],
)
def test_specification_has_the_dims_and_rate_of_its_dataset(
    name: str, rate: float, stride: int, states: int, actions: int
) -> None:
    spec = load_embodiment(name)
    assert (spec.name, spec.rate_hz, spec.frame_stride) == (name, rate, stride)
    assert spec.source
    assert [sum(len(f.slots) for f in fields) for fields in (spec.states, spec.actions)] == [states, actions]
    assert spec.has_actions == bool(actions)
    area = sum(view.rectangle[2] * view.rectangle[3] for view in spec.views)
    assert area <= spec.canvas[0] * spec.canvas[1]


def test_quickstart_described_by_its_robot_is_the_same_run() -> None:
    defaults = DataConfig()
    decided = ("canvas", "views", "state_key", "action_key", "frame_stride", "normalisation")
    data = dataclasses.replace(
        QUICKSTART.data, embodiment="metaworld_sawyer", **{name: getattr(defaults, name) for name in decided}
    )
    assert data.views == ()
    applied = apply_embodiment(dataclasses.replace(QUICKSTART, data=data))
    assert applied == dataclasses.replace(
        QUICKSTART, data=dataclasses.replace(QUICKSTART.data, embodiment="metaworld_sawyer")
    )
    assert apply_embodiment(applied) == applied
    assert apply_embodiment(QUICKSTART) is QUICKSTART
    source = open_dataset(dataclasses.replace(applied.data, path=str(DATASET)))
    check_dataset(load_embodiment("metaworld_sawyer"), source)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rate_hz = 80\n", "", "lacks rate_hz$"),
        ("frame_stride = 4\n", "", "lacks frame_stride"),
        ('unit = "m"\n', "", r"states\[0\] lacks unit"),
        ("rate_hz = 80", "rate_hertz = 80", "no key 'rate_hertz'; did you mean rate_hz"),
        ('reference = "step"', 'reference = "delta"', r"actions\[0\]: reference is 'delta'; expected one of absolute"),
        ("slots = [3]", "slots = [2]", r"states name slots \[2\]"),
        ("[0, 48, 48, 48]", "[0, 60, 48, 48]", "view 'observation.images.side' at .* leaves the canvas"),
        ("canvas = [48, 96]", "canvas = [48]", r"canvas is \[48\]; expected a list of 2 entries"),
        ('"{task}"', '"do it"', "prompt_template 'do it' has no place for {task}"),
        ("rate_hz = 80", "rate_hz = [", "cannot be read"),
        ('unit = "m"', 'unit = "m"\nshown_as = "rotation_6d"', "'hand' is shown_as 'rotation_6d' and has no rotation"),
        (
            'unit = "m"',
            'unit = "m"\nrotation = "quaternion"',
            "'hand' is shown as quaternion, which is 4 numbers, in 3",
        ),
        ("first = 0", "first = -1", "'hand' begins at dim -1 of 'observation.state'"),
        ('unit = "m"', 'unit = "m"\nreference = "step"', "state 'hand' has reference 'step'; a state is absolute"),
        ('name = "gripper"', 'name = "hand"', "two states have one name"),
    ],
)
def test_wrong_specification_names_what_is_wrong(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        load_embodiment(write(tmp_path, old, new))
    assert "\n" not in str(error.value).strip()


def test_unknown_robot_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="there is no embodiment 'droit'; did you mean droid"):
        load_embodiment("droit")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DataConfig(frame_stride=2), r"config\.data\.frame_stride=2 and embodiment metaworld_sawyer has 4"),
        (
            DataConfig(action_key="effort"),
            r"config\.data\.action_key='effort', and embodiment metaworld_sawyer says which",
        ),
        (DataConfig(action_dim=3), r"config\.data\.action_dim=3 has no room for the 4 slots"),
    ],
)
def test_run_that_contradicts_its_robot_is_refused(data: DataConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        apply_embodiment(RunConfig(data=dataclasses.replace(data, embodiment="metaworld_sawyer")))


def test_dataset_of_another_robot_is_refused() -> None:
    spec = load_embodiment("metaworld_sawyer")
    source = open_dataset(dataclasses.replace(QUICKSTART.data, path=str(DATASET)))
    with pytest.raises(DataError, match="has 80 steps per second, embodiment metaworld_sawyer says rate_hz=20"):
        check_dataset(dataclasses.replace(spec, rate_hz=20.0), source)
    with pytest.raises(DataError, match=r"'action' of .* has 4 dims; embodiment .* leaves dims \[3\] undescribed"):
        check_dataset(dataclasses.replace(spec, actions=spec.actions[:1]), source)
    unused = (UnusedDims(key="action", first=3, count=1),)
    check_dataset(dataclasses.replace(spec, actions=spec.actions[:1], unused=unused), source)
    check_dataset(dataclasses.replace(spec, rate_hz=0.0), source)


def test_relative_action_needs_the_state_it_is_relative_to(tmp_path: Path) -> None:
    file = Path(write(tmp_path, 'reference = "step"', 'reference = "chunk_start"'))
    assert load_embodiment(str(file)).actions[0].reference == "chunk_start"
    file.write_text(file.read_text().replace('name = "hand"', 'name = "elbow"', 1))
    with pytest.raises(ConfigError, match="action 'hand' is relative to a state of that name and size"):
        load_embodiment(str(file))
