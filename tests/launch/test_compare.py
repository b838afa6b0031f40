"""Comparing systems: what is finished stays, what fails is named, and the table says what was found."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from launch import compare_command
from launch.cli import main
from launch.comparison_page import write_comparison
from launch.experiment import load_experiment, load_members
from launch.patch_latents import PatchEncoders
from tests.flops.steps import vary
from wamjax.errors import ConfigError, DataError
from wamjax.flops.model import count_flops
from wamjax.layout import build_layout

EXPERIMENT = "experiments/sweeps/formulations.py"


def result(member: str, **changes: Any) -> dict[str, Any]:
    figure = {"mean": 0.25, "low": 0.125, "high": 0.5, "n": 3}
    found = {
        "member": member,
        "action_error": figure,
        "action_sensitivity": None,
        "video_psnr": {**figure, "mean": 20.0, "low": None, "high": None},
        "closed_loop": {"reach-v3": {"successes": 1, "trials": 4, "rate": 0.25, "low": 0.1, "high": 0.7}},
        "closed_loop_reason": None,
        "training_flops": 2 * 10**12,
        "training_steps": 7,
        "chunk_actions": 8,
        "chunk_flops": 5 * 10**7,
        "chunk_ms": 12.34,
        "device": "cpu",
    }
    return {**found, **changes}


def test_table_and_plot_hold_what_was_found(tmp_path: Path) -> None:
    quiet = result("b", closed_loop=None, closed_loop_reason="no simulator")
    text = write_comparison(tmp_path, [result("a"), quiet], {"c": "diverged"})
    assert (
        "| a | 0.250 [0.125, 0.500] | - | 20.0 | reach-v3 25% [10%, 70%] | 2.00e+12 | 7 | 8 | 5.00e+07 | 12.3 |" in text
    )
    assert "b: no closed loop: no simulator" in text
    assert "c failed: diverged" in text
    assert (tmp_path / "comparison.md").read_text() == text + "\n"
    assert json.loads((tmp_path / "comparison.json").read_text())["failures"] == {"c": "diverged"}
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_finished_member_is_not_run_again_and_a_failed_one_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run_member(member: str, output: Path, plan: compare_command.MemberPlan) -> None:
        ran.append(member)
        if member == "dreamzero" and len(ran) == 2:
            raise DataError("the disk is full")
        folder = output / member
        folder.mkdir()
        (folder / compare_command.RESULT_FILE).write_text(json.dumps(result(member, config_hash=plan.identity)))

    monkeypatch.setattr(compare_command, "_run_member", run_member)
    words = ["compare", f"--config={EXPERIMENT}", "--flops=1e11", f"--output={tmp_path}"]
    words.append("--members=fast_wam,dreamzero,hybrid")
    assert main(words) == 1
    assert "dreamzero failed: the disk is full" in capsys.readouterr().out
    assert main(words) == 0
    assert ran == ["fast_wam", "dreamzero", "hybrid", "dreamzero"]
    assert "| dreamzero |" in (tmp_path / "comparison.md").read_text()
    assert main([*words[:-1], "--members=fast_wam"]) == 0
    assert "| dreamzero |" in (tmp_path / "comparison.md").read_text()
    capsys.readouterr()
    assert main([words[0], words[1], "--flops=2e11", *words[3:]]) == 2
    assert "holds fast_wam trained with another --flops or other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "members", "words"),
    [
        (EXPERIMENT, "fast_wam,nobody", "--members has 'nobody'"),
        ("experiments/quickstart.py", "", "has no MEMBERS"),
        ("experiments/sweeps/none.py", "", "no file"),
    ],
)
def test_comparison_that_cannot_be_is_refused(
    config: str, members: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["compare", f"--config={config}", "--flops=1e11", f"--output={tmp_path}"]
    assert main([*flags, *([f"--members={members}"] if members else [])]) == 2
    assert words in capsys.readouterr().err


def test_two_runs_of_a_member_share_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans: list[compare_command.MemberPlan] = []
    evaluated = result("unipi")
    chunk = {key: evaluated[key] for key in ("chunk_actions", "chunk_flops", "chunk_ms", "device")}
    evaluation: Any = mock.Mock(describe_chunk=lambda: chunk)
    of_windows = ("action_error", "action_sensitivity", "video_psnr", "closed_loop", "closed_loop_reason")
    monkeypatch.setattr(
        compare_command, "describe_evaluation", lambda *_, **__: {key: evaluated[key] for key in of_windows}
    )

    def run_member(member: str, output: Path, plan: compare_command.MemberPlan) -> None:
        plans.append(plan)
        found = compare_command.describe_result(member, plan, evaluation)
        folder = output / member
        folder.mkdir()
        (folder / compare_command.RESULT_FILE).write_text(json.dumps(found | {"config_hash": plan.identity}))

    monkeypatch.setattr(compare_command, "_run_member", run_member)
    words = ["compare", f"--config={EXPERIMENT}", "--flops=2e12", f"--output={tmp_path}", "--members=unipi"]
    assert main(words) == 0
    video, inverse = plans[0].runs
    assert (video.config.layout.formulation, inverse.config.layout.formulation) == ("video", "frame_pairs")
    for run, share in ((video, 0.7), (inverse, 0.3)):
        assert abs(run.flops - share * 2e12) <= run.flops_per_step / 2
        flops = count_flops(run.config, build_layout(run.config)).model_total
        assert run.flops == run.config.train.num_steps * run.config.train.global_batch_size * flops
    found = json.loads((tmp_path / "unipi" / compare_command.RESULT_FILE).read_text())
    assert found["training_flops"] == video.flops + inverse.flops
    assert found["formulation"] == "video+frame_pairs"
    row = f"| 2.00e+12 | {video.config.train.num_steps} + {inverse.config.train.num_steps} | 8 |"
    assert row in capsys.readouterr().out
    assert main([*words, "--config.layout.noisy_first_frame=True"]) == 2
    assert "it generates clips from a prompt alone" in capsys.readouterr().err


def test_share_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.py"
    path.write_text('MEMBERS = ("a",)\nSECOND_STAGES = {"a": ("b", 0.25)}\n')
    assert load_members(str(path)) == {"a": {"a": 0.75, "b": 0.25}}
    for seconds in ('{"a": ("b", 1.0)}', '{"c": ("b", 0.5)}', '{"a": "b"}', '{"a": ("b", "x")}', '{"a": ("a", 0.3)}'):
        path.write_text(f'MEMBERS = ("a",)\nSECOND_STAGES = {seconds}\n')
        with pytest.raises(
            ConfigError, match=r"expected a name of MEMBERS, and a pair: .* a share of the budget between 0 and 1"
        ):
            load_members(str(path))


@pytest.mark.slow
def test_two_runs_are_trained_and_compared_as_one_member(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", f"--config={EXPERIMENT}", "--flops=3e10", f"--output={tmp_path}", "--members=unipi"]
    overrides = ("evaluate.num_windows=4", "evaluate.rollout_tasks=()", "optimizer.warmup_steps=2")
    assert main([*words, *(f"--config.{override}" for override in overrides)]) == 0
    found = json.loads((tmp_path / "unipi" / compare_command.RESULT_FILE).read_text())
    assert found["action_sensitivity"] is found["video_sensitivity"] is None
    assert found["action_error"]["mean"] > 0
    assert set(found["chunk_flops_by_stage"]) == {"observe", "video", "inverse_dynamics"}
    ledgers = [tmp_path / "unipi" / name / "ledger.jsonl" for name in ("unipi", "unipi_inverse_dynamics")]
    spent = [json.loads(path.read_text().splitlines()[-1])["model_flops"] for path in ledgers]
    assert sum(sum(parts.values()) for parts in spent) == found["training_flops"]
    capsys.readouterr()


def test_patches_of_another_backbone_are_refused() -> None:
    config = load_experiment(EXPERIMENT)
    first, second, third = PatchEncoders(config).encode_prompts(["a", "b", "a"])
    assert (first == third).all()
    assert (first != second).any()
    with pytest.raises(ConfigError, match="have 108"):
        PatchEncoders(vary(config, backbone={"in_channels": 48, "out_channels": 48}))
    with pytest.raises(ConfigError, match=r"config\.clip\.stride=\(4, 6, 6\)"):
        PatchEncoders(vary(config, clip={"stride": (4, 6, 6)}))


def test_guidance_leads_away_from_what_dropped_prompts_were_replaced_by() -> None:
    config = load_experiment(EXPERIMENT)
    assert PatchEncoders(config).prompt_table(["a"]).negative is None
    encoders = PatchEncoders(vary(config, objective={"prompt_dropout": 0.1}))
    np.testing.assert_array_equal(encoders.prompt_table(["a"]).negative, encoders.encode_prompts([""])[0])


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_damaged_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / compare_command.RESULT_FILE).write_text(text)
    with pytest.raises(DataError, match=rf"{compare_command.RESULT_FILE} .*; remove .* to run the member again"):
        compare_command.read_result(tmp_path)
