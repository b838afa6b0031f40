import subprocess
import sys
import types
from pathlib import Path

import pytest
from absl import flags

from launch import cli
from launch.experiment import config_from_flags, define_config_flag
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError, DataError, DivergedError

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = "--config=experiments/quickstart.py"


class Probe(types.ModuleType):
    """A verb that records what it was given and then does what the test asks."""

    def __init__(self) -> None:
        super().__init__("launch.probe_command", "What the probe does.")
        self.seen: list[tuple[list[str], RunConfig]] = []
        self.error: BaseException | None = None

    def define_flags(self) -> None:
        define_config_flag()
        flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
        flags.DEFINE_integer("cpu_devices", 0, "Simulated devices.")

    def run(self, argv: list[str]) -> int:
        self.seen.append((argv, config_from_flags()))
        if self.error is not None:
            raise self.error
        return 7


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    module = Probe()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.VERBS, "probe", cli.Verb(module.__name__, "look at what arrives"))
    monkeypatch.chdir(ROOT)
    return module


def test_verb_receives_positional_arguments_flags_and_overrides(probe: Probe) -> None:
    status = cli.main(
        ["probe", "first", QUICKSTART, "--workdir=w", "--config.train.num_steps=5", "--config.name", "mine", "second"]
    )
    assert status == 7
    argv, config = probe.seen[0]
    assert argv == ["first", "second"]
    assert (config.train.num_steps, config.name) == (5, "mine")


def test_two_commands_in_one_process_do_not_share_flags(probe: Probe) -> None:
    cli.main(["probe", QUICKSTART, "--workdir=w", "--config.train.num_steps=5"])
    cli.main(["probe", QUICKSTART, "--workdir=w"])
    assert probe.seen[0][1].train.num_steps == 5
    assert probe.seen[1][1].train.num_steps != 5
    assert "workdir" not in flags.FLAGS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prob"], ["'prob' is not a command", "did you mean probe?"]),
        (["probe"], ["missing --config and --workdir"]),
        (["probe", QUICKSTART], ["missing --workdir"]),
        (["probe", QUICKSTART, "--workdr=w"], ["unknown flag --workdr", "did you mean --workdir?"]),
        (["probe", QUICKSTART, "--workdir=w", "--cpu_devices=two"], ["--cpu_devices=two"]),
        (["probe", "--config=nowhere.py", "--workdir=w"], ["--config=nowhere.py", "experiments/quickstart.py"]),
        (
            ["probe", QUICKSTART, "--workdir=w", "--config.train.num_step=5"],
            ["config.train.num_step is not a configuration key", "did you mean config.train.num_steps?"],
        ),
        (
            ["probe", QUICKSTART, "--workdir=w", "--config.train.num_steps=many"],
            ["config.train.num_steps = 'many' is not a whole number"],
        ),
        (["probe", QUICKSTART, "--workdir=w", "--config.train.num_steps"], ["config.train.num_steps has no value"]),
        (["data", "insect"], ["'insect' is not a subcommand", "did you mean inspect?"]),
    ],
)
def test_user_mistake_is_one_line_on_stderr_and_status_2(
    probe: Probe, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("wamjax")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("a\nb"), 2),
        (DataError("no data"), 3),
        (DivergedError("step 4"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_error_of_a_verb_becomes_its_exit_status(
    probe: Probe, capsys: pytest.CaptureFixture[str], error: BaseException, status: int
) -> None:
    probe.error = error
    assert cli.main(["probe", QUICKSTART, "--workdir=w"]) == status
    assert capsys.readouterr().err == f"wamjax probe: {' '.join(str(error).split()) or 'interrupted'}\n"


def test_programming_error_keeps_its_traceback(probe: Probe) -> None:
    probe.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe", QUICKSTART, "--workdir=w"])


def test_help_lists_every_verb_and_every_flag_of_a_verb(probe: Probe, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name}" in listed and verb.summary in listed for name, verb in cli.VERBS.items())
    assert cli.main(["probe", "--help"]) == 0
    described = capsys.readouterr().out
    assert "What the probe does." in described
    assert all(f"\n  --{name}" in described for name in ("config", "workdir", "cpu_devices", "config.SECTION.KEY"))
    assert "config_override" not in described  # an implementation detail of --config.a.b=v


def test_no_arguments_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(cli.VERBS))
def test_every_verb_of_the_table_describes_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith((f"wamjax {name}: ", f"usage: wamjax {name} "))


def test_command_line_does_not_import_jax_before_a_verb_is_chosen() -> None:
    # jax reads its device settings when its backend starts; --cpu_devices must come first.
    code = "import sys, launch.cli; launch.cli.main(['--version']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


CHATTERING_VERB = """
import sys, types
from launch import cli
verb = types.ModuleType("launch.chatter_command", "Prints more than any buffer holds.")
verb.define_flags, verb.run = lambda: None, lambda argv: [print(number) for number in range(100_000)] and 0
sys.modules[verb.__name__] = verb
cli.VERBS["chatter"] = cli.Verb(verb.__name__, "chatter")
sys.exit(cli.main(["chatter"]))
"""


@pytest.mark.parametrize("reader", ["true", "head -n 1"])
def test_output_into_a_closed_pipe_ends_quietly(tmp_path: Path, reader: str) -> None:
    (tmp_path / "chatter.py").write_text(CHATTERING_VERB)
    command = f"set -o pipefail; {sys.executable} {tmp_path / 'chatter.py'} | {reader}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
