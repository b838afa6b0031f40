"""The report: whole, self-contained, and quiet in a real browser."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.closed_loop import Rollouts
from launch.eval_command import describe_evaluation
from launch.figures import FIGURES, summarise, verdict
from launch.film import Comparison, write_film, write_strip
from launch.open_loop import Example, OpenLoop
from launch.report import write_report
from wamjax.config.schema import LayoutConfig, RunConfig
from wamjax.training.intervals import Figure

CONFIG = RunConfig(name="two <tasks> & more", layout=LayoutConfig(num_blocks=2))
VOID = {"meta", "link", "img", "source", "br", "hr", "input"}


def figure(mean: float, half: float = 0.1) -> Figure:
    return Figure(mean=mean, low=mean - half, high=mean + half, n=7)


def example(rows: int = 9) -> Example:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 256, (rows, 32, 64, 3), dtype=np.uint8)
    actions = np.sin(np.linspace(0, 3, 16))[:, None] * np.ones((1, 4))
    return Example(
        frames=Comparison(true=true, predicted=true, given=np.arange(rows) == 0, title="reach (episode 3, step 8)"),
        true_actions=actions,
        predicted_actions=actions + 0.1,
    )


def fabricate(*, with_rollouts: bool) -> tuple[dict[str, Any], list[Example]]:
    means = dict.fromkeys(FIGURES, 0.5) | {"video_psnr": 30.0, "video_psnr_copy": 28.0, "video_sensitivity": -0.3}
    errors = {name: figure(0.5) for name in FIGURES if name.startswith("action_error")}
    gains: dict[str, Figure | None] = {name: figure(0.2) for name in errors if name != "action_error"}
    open_loop = OpenLoop(
        figures={name: figure(mean) for name, mean in means.items()},
        gains=gains | {"video_psnr_copy": figure(2.0), "video_ssim_copy": figure(0.0)},
        by_dim=[errors, errors, dict.fromkeys(errors)],
        by_frame=[{"video_psnr": figure(30.0 - i), "video_psnr_copy": figure(28.0 - i)} for i in range(4)],
        by_task={"reach": {**errors, "video_psnr": figure(30.0)}, "press": {**errors, "video_psnr": None}},
        num_windows=24,
        examples=[example(), example(5)],
    )
    rollouts = [
        Rollouts(task="reach-v3", seeds=range(3), solved_at=np.array([12, -1, 40]), film=open_loop.examples[0].frames)
    ]
    reason = None if with_rollouts else "Meta-World is not installed: pip install 'wamjax[sim]'"
    evaluation = describe_evaluation(open_loop, rollouts if with_rollouts else None, reason, step=400, episodes=7)
    return json.loads(json.dumps(evaluation, allow_nan=False)), open_loop.examples


def fabricate_workdir(path: Path) -> None:
    """Writes what training leaves behind."""
    path.mkdir(exist_ok=True)
    (path / "run.json").write_text(
        json.dumps({"config": dataclasses.asdict(CONFIG), "versions": {"jax": "0.10.2"}, "devices": {"count": 8}})
    )
    steps = [{"step": s, "loss/total": 2 / s, "loss/video": 1 / s, "loss/action": 1 / s} for s in range(1, 41)]
    steps[19:19] = [{"step": 20, "validation/video": 0.1, "validation/action": 0.2}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in steps))
    flops = {"ffn": 3 * 10**15, "self_scores": 10**15, "image_embed": 0}
    ledger = {
        "step": 40,
        "samples": 320,
        "tokens": {"clean_video": 1000, "padding": 7},
        "model_flops": flops,
        "hardware_flops": flops,
        "zflops": 4e-6,
        "wall": {
            "seconds": 12.5,
            "num_devices": 8,
            "device_kind": "cpu",
            "mfu": None,
            "mfu_denominator": None,
            "mfu_reason": "no listed peak for device kind 'cpu'",
        },
    }
    (path / "ledger.jsonl").write_text(json.dumps(ledger) + "\n")


@pytest.fixture(scope="module", params=[True, False], ids=["with_rollouts", "without_rollouts"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("workdir")
    fabricate_workdir(tmp_path)
    evaluation, examples = fabricate(with_rollouts=request.param)
    films = [e.frames for e in examples]
    write_strip(tmp_path / "strip.png", films)
    write_film(tmp_path / "predicted.mp4", films, fps=4)
    if request.param:
        write_film(tmp_path / "rollout.mp4", films[:1], fps=4)
    return write_report(
        tmp_path,
        output=tmp_path,
        config=CONFIG,
        evaluation=evaluation,
        examples=examples,
        sharding="mesh: data=1 fsdp=4\nblocks.ffn.kernel (2, 64, 128) <1 & 2>",
    )


class Page(html.parser.HTMLParser):
    """Collects every address a page refers to, and checks that its tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "srcset", "href") and value is not None]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_asks_for_nothing_outside_itself(report):
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    assert not re.search(r"url\(|@import", text)
    assert not page.open


def test_report_shows_every_figure_and_every_part(report):
    page = Page(report.read_text(encoding="utf-8"))
    shown = " ".join(" ".join(page.text).split())
    for meaning in FIGURES.values():
        assert meaning.label in shown
        assert meaning.definition in shown
    has_rollouts = "rollout.mp4" in {path.name for path in report.parent.iterdir()}
    assert page.tags.count("video") == (2 if has_rollouts else 1)
    assert ("pip install" in shown) != has_rollouts
    assert "no listed peak for device kind 'cpu'" in shown
    assert "two <tasks> & more" in shown  # escaped on the way in
    assert "<1 & 2>" in shown
    assert "4,000,000,000,000,000" in shown  # the ledger's total


def test_report_of_a_workdir_without_logs_is_still_whole(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"config": {}}))
    evaluation, _ = fabricate(with_rollouts=False)
    for name in ("action_sensitivity", "video_sensitivity"):
        evaluation[name] = None
    path = write_report(tmp_path, output=tmp_path, config=CONFIG, evaluation=evaluation, examples=[], sharding="")
    shown = " ".join(Page(path.read_text(encoding="utf-8")).text)
    assert "holds no ledger" in shown
    assert "holds no training losses" in shown
    assert "not measured" in shown


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH to open the report in")
def test_report_opens_in_a_browser_without_a_console_message(report, tmp_path):
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900"),
            "--dump-dom",
            report.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Definitions" in done.stdout
    messages = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert messages == []


def test_summary_states_figures_with_their_verdicts():
    evaluation, _ = fabricate(with_rollouts=True)
    text = summarise(evaluation)
    assert "24 windows of 7 held-out episodes" in text
    assert "closed loop reach-v3: solved 2 of 3 unseen seeds" in text
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 120
    (against_mean,) = [line for line in lines if "always the training-mean action" in line]
    assert against_mean.endswith("model better")
    (ssim,) = [line for line in lines if "copy the last frame" in line and "dB" not in line]
    assert ssim.endswith("undecided: the interval holds zero")
    (video,) = [line for line in lines if "video sensitivity" in line]
    assert video.endswith("clearly below zero")


@pytest.mark.parametrize(
    ("low", "high", "baseline", "sensitivity"),
    [
        (0.1, 0.3, "model better", "clearly above zero"),
        (-0.3, -0.1, "model worse", "clearly below zero"),
        (-0.1, 0.1, "undecided: the interval holds zero", "not clearly above zero"),
        (None, None, "undecided: no interval", "undecided: no interval"),
    ],
)
def test_verdict_is_given_only_when_the_interval_leaves_out_zero(low, high, baseline, sensitivity):
    gain = {"mean": 0.0, "low": low, "high": high, "n": 5}
    assert verdict("video_psnr_copy", gain) == baseline
    assert verdict("action_sensitivity", gain) == sensitivity
