from pathlib import Path

import pytest

from launch.experiment import load_experiment, rewrite_overrides
from wamjax.config import bridge
from wamjax.config.schema import RunConfig, TrainConfig
from wamjax.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
HEAD = "from wamjax.config.bridge import to_config_dict\nfrom wamjax.config.schema import RunConfig\n"


def write(folder: Path, text: str) -> str:
    path = folder / "run.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_experiment_of_the_project_loads(path: Path) -> None:
    config = load_experiment(str(path))
    assert isinstance(config, RunConfig)
    assert config.name.startswith(path.stem)  # a file of several runs adds which


def test_load_experiment_returns_what_get_config_says(tmp_path: Path) -> None:
    text = HEAD + "def get_config():\n    c = to_config_dict(RunConfig())\n    c.train.num_steps = 9\n    return c\n"
    expected = RunConfig(train=TrainConfig(num_steps=9))
    assert load_experiment(write(tmp_path, text)) == expected


def test_load_experiment_passes_the_text_after_the_colon(tmp_path: Path) -> None:
    text = HEAD + "def get_config(name):\n    return to_config_dict(RunConfig(name=name))\n"
    assert load_experiment(write(tmp_path, text) + ":small").name == "small"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\nraise RuntimeError('two\\nlines')\n", ["line 2", "RuntimeError: two lines"]),
        ("def get_config():\n    return missing\n", ["line 2", "NameError", "missing"]),
        ("def get_config(:\n", ["line 1", "SyntaxError"]),
        ("import no_such_module\n", ["line 1", "ModuleNotFoundError", "no_such_module"]),
        ("x = 1\n", ["defines no get_config()"]),
        ("def get_config():\n    return 3\n", ["returned int", "expected a ConfigDict"]),
        ("def get_config(name):\n    return name\n", ["get_config()", "name"]),
        (
            HEAD + "def get_config():\n    c = to_config_dict(RunConfig())\n    c.train.num_step = 1\n    return c\n",
            ["line 5", "num_step"],
        ),
        (
            HEAD
            + "def get_config():\n    c = to_config_dict(RunConfig())\n    c.train.num_steps = True\n    return c\n",
            ["config.train.num_steps = True"],
        ),
    ],
)
def test_load_experiment_refuses_in_one_line_naming_file_and_line(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_load_experiment_refuses_a_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"--config=nowhere\.py"):
        load_experiment("nowhere.py")


def test_rewrite_overrides_leaves_everything_else_alone() -> None:
    argv = ["pos", "--config=f.py", "--config.a.b=1=2", "--workdir=w", "--config.c", "-1", "--", "--config.d=1"]
    assert rewrite_overrides(argv) == [
        "pos",
        "--config=f.py",
        "--config_override=a.b=1=2",
        "--workdir=w",
        "--config_override=c=-1",
        "--",
        "--config.d=1",
    ]


def test_experiment_config_dict_is_the_resolved_configuration() -> None:
    config = load_experiment(str(ROOT / "experiments/quickstart.py"))
    assert bridge.from_config_dict(bridge.to_config_dict(config)) == config
