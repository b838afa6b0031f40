"""``wamjax plan compare`` and ``calibrate`` on work directories as runs leave them."""

import dataclasses
import json
from pathlib import Path

import pytest

from launch import cli
from tests.launch.recorded_run import RecordedRun
from tests.tiny import TINY
from wamjax.config.schema import RunConfig
from wamjax.flops.model import count_flops
from wamjax.flops.utilisation import Denominator
from wamjax.layout import build_layout
from wamjax.planning.machine import machine_of_chips
from wamjax.planning.plan import make_plan

H200 = Denominator(device_kind="NVIDIA H200", num_devices=8, dtype="bfloat16")
CPU = Denominator(device_kind="cpu", num_devices=2, dtype="float32")


def config_of(dtype: str = "bfloat16") -> RunConfig:
    model = dataclasses.replace(TINY.model, compute_dtype=dtype)
    return dataclasses.replace(TINY, model=model, parallel=dataclasses.replace(TINY.parallel, fsdp=-1))


def planned_step_s(chips: str = "h200:8") -> float:
    on = make_plan(config_of(), machine=machine_of_chips(chips)).on
    assert on is not None
    assert on.time is not None
    return on.time.step_s.mid


def record(path: Path, step_s: float, denominator: Denominator = H200) -> Path:
    config = config_of(denominator.dtype)
    run = RecordedRun(path, count_flops(config, build_layout(config)), config=config, denominator=denominator)
    run.event("startup", 0, seconds=20.0)
    run.steps(1, 1, 30.0)
    run.event("steps", 1, num_steps=1, is_first=True, seconds=30.0, data_wait_s=0.0)
    run.steps(2, 6, step_s)
    run.event("steps", 6, num_steps=5, is_first=False, seconds=5 * step_s, data_wait_s=step_s)
    run.event("end", 6, is_complete=True)
    return path


def plan(*arguments: object) -> int:
    return cli.main(["plan", *map(str, arguments)])


def test_run_stands_beside_the_plan_of_its_own_configuration_and_chips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step_s = 2 * planned_step_s()
    run, output = record(tmp_path / "run", step_s), tmp_path / "comparison.json"
    assert plan("compare", run, f"--json={output}") == 0
    found = json.loads(output.read_text())
    rows = {row["key"]: row for row in found["rows"]}
    assert (found["planned_for"], found["steps"]) == ("NVIDIA H200:8", 6)
    assert rows["model_flops_per_step"]["ratio"] == 1.0
    assert rows["step_s"]["ratio"] == pytest.approx(2.0)
    assert rows["mfu"]["ratio"] == pytest.approx(0.5)
    assert rows["data_wait_s"]["actual"] == pytest.approx(step_s / 5)
    assert rows["goodput.startup"]["actual"] == 20.0
    stepping, waiting = (rows[f"goodput.{bucket}"]["planned"] for bucket in ("step", "data_wait"))
    assert stepping + waiting == pytest.approx(6 * step_s / 2)
    assert waiting > 0, "so small a model waits for its batch"
    printed = capsys.readouterr()
    assert "planned for NVIDIA H200:8, run on 8 x NVIDIA H200" in printed.out
    assert "examples read" in printed.err


def test_run_on_devices_that_are_no_chip_is_compared_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = record(tmp_path / "run", 0.1, CPU)
    assert plan("compare", run) == 0
    printed = capsys.readouterr()
    assert "no planned time" in printed.out
    assert "'cpu', which is no listed chip" in printed.out
    assert printed.err == ""


def test_fit_explains_the_runs_and_is_read_back_by_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = record(tmp_path / "run", 1.1 * planned_step_s())
    fitted, output = tmp_path / "fitted.json", tmp_path / "comparison.json"
    assert plan("calibrate", run, f"--json={fitted}") == 0
    assert "-9.1% -> " in capsys.readouterr().out
    assert plan("compare", run, f"--efficiencies={fitted}", f"--json={output}") == 0
    rows = {row["key"]: row for row in json.loads(output.read_text())["rows"]}
    assert rows["step_s"]["ratio"] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("verb", ["compare", "calibrate"])
def test_folders_that_cannot_be_read_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert plan(verb) == 2
    assert plan(verb, tmp_path) == 2
    run = record(tmp_path / "run", 0.1)
    (run / "ledger.jsonl").unlink()
    assert plan(verb, run) == 2
    assert "holds no ledger" in capsys.readouterr().err.splitlines()[-1]
    (run / "ledger.jsonl").write_text("")
    assert plan(verb, run) == 3
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "no step was timed" in errors[0]


def test_runs_on_two_families_of_chips_are_not_fitted_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Denominator(device_kind="NVIDIA A100-SXM4-80GB", num_devices=8, dtype="bfloat16")
    runs = [record(tmp_path / "a", 1.0), record(tmp_path / "b", 1.0, other)]
    assert plan("calibrate", *runs) == 2
    assert "chips of two families" in capsys.readouterr().err


def test_run_on_a_cpu_cannot_be_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("calibrate", record(tmp_path / "run", 0.1, CPU)) == 2
    assert "'cpu', which is no listed chip" in capsys.readouterr().err
