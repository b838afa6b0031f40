import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import cli

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = f"--config={ROOT / 'experiments/quickstart.py'}"
WAN_480P = f"--config={ROOT / 'experiments/pretrain/wan_14b_480p.py'}"
DREAMZERO = f"--config={ROOT / 'experiments/systems/dreamzero_14b_droid.py'}"
PADDED = "--config.layout.pad_multiple=256"  # each of two devices attends from 128 tokens, as TPU kernels need


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("wamjax plan")
    assert error.count("\n") == 1, error
    return error


def plan(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    target = tmp_path / "plan.json"
    assert cli.main(["plan", *arguments, f"--json={target}"]) == 0
    return json.loads(target.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5p:4x4x5"], "--topology=v5p:4x4x5 is no TPU slice; nearest are v5p:4x4x4"),
        (["--chips=h1000:8"], "no figures for chip 'h1000', and none are guessed; nearest known: h100"),
        (["--chips=h100:8", "--topology=v5p:4x4x4"], "both name a machine; give one"),
        (["extra"], "'extra' is not a subcommand of wamjax plan; expected one of"),
        (["serch"], "did you mean search?"),
        (["--fps=5", "extra"], "unexpected argument 'extra'"),
        (["--hlo=step.txt"], "--hlo=step.txt needs --compile"),
        (["--compile"], "--compile needs --topology"),
        (["--json=nowhere/plan.json"], "--json=nowhere/plan.json: no folder nowhere"),
        (["--config.optimizer.nope=1"], "nope"),
        (["--steps=10", "--tokens=1e9"], "--steps=10 is 10 steps of 16 samples and --tokens=1e+09 is"),
        (["--deadline=3d"], "--deadline needs a machine"),
        (["--deadline=soon"], "is no duration"),
        (["--chips=h100:8", "--deadline=3d"], "--deadline and --budget_usd need a step time: no listed float32 peak"),
        (["--fps=0"], "--fps=0; expected frames per second from 0.001"),
        (
            ["--chips=h100:8", "--config.train.global_batch_size=3"],
            "is not a multiple of the 4 ways",
        ),
        (["--chips=h100:8", "--prices=nowhere.json"], "--prices=nowhere.json cannot be read"),
        (["--chips=h100:8", "--efficiencies=nowhere.json"], "--efficiencies=nowhere.json cannot be read"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = [] if arguments[0].isalpha() else [QUICKSTART]
    assert cli.main(["plan", *config, *arguments]) == 2
    assert message in only_line(capsys)


def test_efficiencies_of_a_file_replace_the_assumed_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fitted.json"
    file.write_text(json.dumps({"matmul": {"low": 0.5, "mid": 0.5, "high": 0.5, "source": "a test"}}))
    arguments = [WAN_480P, "--topology=v5p:4x4x4"]
    assumed = plan(tmp_path, *arguments)["time"]
    fitted = plan(tmp_path, *arguments, f"--efficiencies={file}")["time"]
    assert fitted["efficiencies"]["matmul"]["source"] == "a test"
    products = [next(p for p in time["phases"] if p["name"] == "matrix products") for time in (assumed, fitted)]
    assert products[1]["seconds"]["mid"] == pytest.approx(products[0]["seconds"]["mid"] * 0.9 / 0.5)
    file.write_text(json.dumps({"matmull": {}}))
    capsys.readouterr()
    assert cli.main(["plan", *arguments, f"--efficiencies={file}"]) == 2
    assert "'matmull' is no share; expected matmul" in only_line(capsys)


def test_plan_without_a_machine_has_geometry_flops_and_run(tmp_path: Path) -> None:
    found = plan(tmp_path, WAN_480P, "--tokens=500e9")
    assert found["model"] == {"parameters": 14_288_491_584, "trainable_parameters": 14_288_491_584}
    assert found["tokens"]["per_sample"] == 32_760
    assert found["tokens"]["by_stream"] == {"noisy_video": 32_760}
    assert found["attention"]["pairs_per_sample"] == found["attention"]["dense_pairs_per_sample"] == 32_760**2
    assert found["flops"]["forward_per_sample"] == 1_678_370_283_192_320
    assert found["flops"]["train_model_per_sample"] == 3 * 1_678_370_283_192_320
    assert found["flops"]["six_nt_per_sample"] == 6 * 14_288_491_584 * 32_760
    assert found["run"]["steps"] == -(-500 * 10**9 // (16 * 32_760))
    assert found["run"]["samples"] == 16 * found["run"]["steps"]
    assert found["run"]["zettaflops_model"] == pytest.approx(
        76.9, abs=0.06
    )  # as published pages have it for 500e9 tokens
    assert not {"memory", "time", "cost", "mesh"} & set(found)


def test_components_sum_to_the_forward_count_under_their_stable_names(tmp_path: Path) -> None:
    flops = plan(tmp_path, DREAMZERO)["flops"]
    assert list(flops["by_component"]) == [
        "self_projections", "self_scores", "cross_qo", "cross_kv", "cross_scores", "ffn", "patch", "head",
        "text_embed", "image_embed", "time_embed", "action_state",
    ]  # fmt: skip
    assert sum(flops["by_component"].values()) == flops["forward_per_sample"]


def test_tokens_leave_padding_out(tmp_path: Path) -> None:
    tokens = plan(tmp_path, DREAMZERO)["tokens"]
    assert tokens["per_sample"] == sum(tokens["by_stream"].values()) == 15_940
    assert tokens["padding_per_sample"] == 16_128 - 15_940


def test_plan_on_a_machine_has_every_stable_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(tmp_path, WAN_480P, "--topology=v5p:4x4x4", "--steps=1000")
    assert found["mesh"] == {"data": 1, "fsdp": 16, "context": 4, "tensor": 1}
    memory = found["memory"]
    kinds = ("parameters", "optimizer", "gradients", "activations", "attention_workspace", "collectives", "input")
    assert all(memory[f"{kind}_bytes"] > 0 for kind in kinds)
    assert memory["total_bytes"] < memory["hbm_bytes"]
    assert memory["fits"]
    step = found["time"]["step_s"]
    assert 0 < step["low"] < step["mid"] < step["high"]
    assert found["time"]["binding"] == "matrix units"
    assert 0 < found["time"]["mfu"] <= found["time"]["hfu"] < 1
    assert found["cost"]["chip_hours"] == pytest.approx(64 * found["goodput"]["elapsed_s"] / 3600)
    assert found["cost"]["usd"] == pytest.approx(4.2 * found["cost"]["chip_hours"])
    assert sum(found["goodput"]["buckets"].values()) == pytest.approx(found["goodput"]["elapsed_s"])
    assert {entry["source"] for entry in found["sources"].values()} <= {"computed exactly", "assumed"}
    printed = capsys.readouterr().out
    for part in ("one sample", "memory of one device", "step time", "goodput", "input", "cost", "assumptions"):
        assert f"\n{part}" in printed
    assert "prices are examples" in printed


@pytest.mark.parametrize("limit", ["--budget_usd=50000", "--deadline=7d"])
def test_money_and_time_decide_as_many_steps_as_they_allow(limit: str, tmp_path: Path) -> None:
    found = plan(tmp_path, WAN_480P, "--topology=v5p:4x4x4", limit)
    spent = found["cost"]["usd"] / 50_000 if "budget" in limit else found["goodput"]["elapsed_s"] / (7 * 86_400)
    assert 0.999 < spent <= 1


def test_a_dtype_without_a_listed_peak_has_no_time_and_says_so(tmp_path: Path) -> None:
    found = plan(tmp_path, QUICKSTART, "--chips=h100:8")
    assert "no listed float32 peak for NVIDIA H100 SXM" in found["time"]["reason_unknown"]
    assert (found["time"]["step_s"], found["time"]["binding"]) == (None, None)
    assert (found["cost"]["chip_hours"], found["cost"]["usd"]) == (None, None)
    assert found["cost"]["reason_unknown"] == found["time"]["reason_unknown"]
    assert not {"cost", "goodput", "time"} & found["sources"].keys()
    assert found["memory"]["fits"]


def test_quickstart_knows_its_datasets_frame_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sample = plan(tmp_path, QUICKSTART)["sample"]
    assert sample["views"] == ["observation.images.front", "observation.images.side"]
    assert sample["seconds"] == pytest.approx(4 * 4 / 80)  # five frames, every fourth of 80 Hz
    assert sample["robot_hours_per_step"] == pytest.approx(16 * 0.2 / 3600)


def test_planning_imports_no_jax() -> None:
    # It must answer in a moment: nothing that takes seconds to import.
    code = (
        "import sys; from launch import cli; "
        f"assert cli.main(['plan', {WAN_480P!r}, '--topology=v5p:4x4x4']) == 0; "
        "print(sorted({'jax', 'flax', 'optax', 'orbax', 'matplotlib', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_search_writes_the_best_plan_with_all_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "search.json"
    config = [QUICKSTART, PADDED, "--config.model.compute_dtype=bfloat16"]
    arguments = [*config, "--machines=v5e:1x1,v5e:2x2", "--steps=100", f"--json={target}"]
    assert cli.main(["plan", "search", *arguments]) == 0
    found = json.loads(target.read_text())
    assert {row["machine"] for row in found["search"]["results"]} == {"v5e:1x1", "v5e:2x2"}
    assert found["time"]["step_s"]["mid"] == pytest.approx(found["search"]["results"][0]["step_s"]["mid"])
    assert found["search"]["pareto"]
    assert "not beaten in both wall time and money" in capsys.readouterr().out


@pytest.mark.slow
def test_search_plots_wall_time_against_money(tmp_path: Path) -> None:
    plot = tmp_path / "pareto.png"
    assert cli.main(["plan", "search", WAN_480P, "--machines=v5p:2x4x4,v5p:4x4x4", f"--plot={plot}"]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_missing_libtpu_names_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else real(name, *rest)
    )
    assert cli.main(["plan", QUICKSTART, PADDED, "--topology=v5e:2x4", "--compile"]) == 2
    assert "libtpu is not installed; pip install 'wamjax[tpu-compile]'" in only_line(capsys)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install 'wamjax[tpu-compile]')"
)


@pytest.mark.slow
@pytest.mark.tpu
@needs_libtpu
def test_shardings_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", QUICKSTART, PADDED, "--topology=v5p:2x2x1", "--shardings"]) == 0
    assert "bytes/device" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.tpu
@needs_libtpu
def test_plan_of_the_quickstart_compiles_and_has_every_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "step.hlo"
    arguments = [QUICKSTART, PADDED, "--topology=v5e:2x4", "--compile", f"--hlo={text}"]
    compiled = plan(tmp_path, *arguments, "--config.model.compute_dtype=bfloat16")["compile"]
    assert compiled["topology"] == "v5e:2x4"
    assert (compiled["num_chips"], compiled["num_devices"]) == (8, 8)
    assert compiled["mesh"] == {"data": 1, "fsdp": 4, "context": 2, "tensor": 1}
    assert compiled["fits"]
    assert compiled["argument_bytes"] + compiled["temp_bytes"] <= compiled["hbm_bytes"]
    assert compiled["alias_bytes"] > 0.9 * compiled["output_bytes"] > 0  # the state is donated
    assert compiled["peak_bytes"] > 0
    assert compiled["peak_planned_bytes"] > 0
    assert compiled["seconds"] > 0
    assert sum(cell["count"] for kind in compiled["collectives"].values() for cell in kind.values()) > 0
    assert compiled["attention_kernel"]
    assert set(compiled["step_s"]) == {"overlapped", "scheduled", "exposed"}
    assert set(compiled["step_s_parts"]) == {"matmul", "other", "attention", "ici", "ici_synchronous", "host"}
    assert 0 < compiled["mfu_scheduled"] < 1
    assert compiled["assumptions"]["clock_hz"] == 1.5e9
    assert compiled["unknown_loops"] == []
    assert "ENTRY" in text.read_text()
    printed = capsys.readouterr().out
    assert "an estimate, nothing ran on a TPU" in printed
    assert "memory of one device: planned" in printed


@pytest.mark.slow
def test_machine_that_needs_the_batch_in_parts_is_not_called_impossible(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "search", WAN_480P, "--machines=v4:16"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 feasible" in printed
    assert "parts=4" in printed


@pytest.mark.slow
def test_each_bucket_is_planned_as_a_run_of_its_size_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"long": 81, "short": 41}
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "import dataclasses\nfrom experiments.pretrain import wan_14b_480p\nfrom wamjax.config import bridge\n"
        "from wamjax.config.buckets import BucketConfig, BucketsConfig\n\n\n"
        "def get_config():\n"
        "  config = bridge.from_config_dict(wan_14b_480p.get_config())\n"
        f"  sets = [BucketConfig(name=n, canvas=(480, 832), num_frames=f) for n, f in {sizes}.items()]\n"
        "  buckets = BucketsConfig(sets=tuple(sets), batch_multiple=16)\n"
        "  data = dataclasses.replace(config.data, buckets=buckets)\n"
        "  return bridge.to_config_dict(dataclasses.replace(config, data=data))\n"
    )
    machine = "--topology=v5p:4x4x4"
    found = plan(tmp_path, f"--config={experiment}", machine)
    assert "GiB a device: fits" in capsys.readouterr().out
    for bucket in found["buckets"]:
        alone = plan(tmp_path, WAN_480P, machine, f"--config.clip.num_frames={sizes[bucket['name']]}")
        assert bucket.pop("name") in sizes
        assert bucket["time"]["step_s"]["mid"] > 0
        assert {key: alone[key] for key in bucket} == bucket
    tokens = [bucket["tokens"]["per_sample"] for bucket in found["buckets"]]
    assert tokens == [21 * 30 * 52, 11 * 30 * 52]
