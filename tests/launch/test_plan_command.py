import importlib.util
import json
from pathlib import Path

import pytest

from launch import cli

QUICKSTART = f"--config={Path(__file__).resolve().parents[2] / 'experiments/quickstart.py'}"


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("wamjax plan: ")
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5p:4x4x5"], "--topology=v5p:4x4x5 is no TPU slice; nearest are v5p:4x4x4"),
        ([], "missing --topology"),
        (["--topology=v5p:4x4x4", "extra"], "unexpected argument 'extra'"),
        (["--topology=v5p:4x4x4", "--hlo=step.txt"], "--hlo=step.txt needs --compile"),
        (
            ["--topology=v5p:4x4x4", "--compile", "--json=nowhere/plan.json"],
            "--json=nowhere/plan.json: no folder nowhere",
        ),
        (["--topology=v5p:4x4x4", "--config.optimizer.nope=1"], "nope"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", QUICKSTART, *arguments]) == 2
    assert message in only_line(capsys)


def test_missing_libtpu_names_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else real(name, *rest)
    )
    assert cli.main(["plan", QUICKSTART, "--topology=v5p:4x4x4", "--compile"]) == 2
    assert "libtpu is not installed; pip install 'wamjax[tpu-compile]'" in only_line(capsys)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install 'wamjax[tpu-compile]')"
)


@pytest.mark.slow
@pytest.mark.tpu
@needs_libtpu
def test_mesh_that_does_not_match_the_slice_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["--config.parallel.fsdp=3", "--config.parallel.context=1"]
    assert cli.main(["plan", QUICKSTART, "--topology=v5e:2x4", *overrides]) == 2
    assert "needs a multiple of 3 devices and there are 8" in only_line(capsys)


@pytest.mark.slow
@pytest.mark.tpu
@needs_libtpu
def test_plan_without_compiling_says_mesh_shardings_and_flops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "plan.json"
    assert cli.main(["plan", QUICKSTART, "--topology=v5p:2x2x1", f"--json={target}"]) == 0
    plan = json.loads(target.read_text())
    assert "compile" not in plan
    printed = capsys.readouterr().out
    assert f"{plan['flops_per_step']['model']:,} model FLOPs" in printed
    assert "parameters" in printed


@pytest.mark.slow
@pytest.mark.tpu
@needs_libtpu
def test_plan_of_the_quickstart_compiles_and_has_every_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, text = tmp_path / "plan.json", tmp_path / "step.hlo"
    arguments = [QUICKSTART, "--topology=v5e:2x4", "--compile", f"--json={target}", f"--hlo={text}"]
    assert cli.main(["plan", *arguments, "--config.model.compute_dtype=bfloat16"]) == 0
    plan = json.loads(target.read_text())["compile"]
    assert plan["topology"] == "v5e:2x4"
    assert (plan["num_chips"], plan["num_devices"]) == (8, 8)
    assert plan["mesh"] == {"data": 1, "fsdp": 4, "context": 2, "tensor": 1}
    assert plan["fits"]
    assert plan["argument_bytes"] + plan["temp_bytes"] <= plan["hbm_bytes"]
    assert plan["alias_bytes"] > 0.9 * plan["output_bytes"] > 0  # the state is donated
    assert plan["peak_bytes"] > 0
    assert plan["seconds"] > 0
    assert sum(cell["count"] for kind in plan["collectives"].values() for cell in kind.values()) > 0
    assert plan["attention_kernel"] == "xla"
    assert set(plan["step_s"]) == {"overlapped", "scheduled", "exposed"}
    assert set(plan["step_s_parts"]) == {"matmul", "other", "attention", "ici", "ici_synchronous", "host"}
    assert 0 < plan["mfu_scheduled"] < 1
    assert plan["assumptions"]["clock_hz"] == 1.5e9
    assert plan["unknown_loops"] == []
    assert "ENTRY" in text.read_text()
    assert "an estimate, nothing ran on a TPU" in capsys.readouterr().out
