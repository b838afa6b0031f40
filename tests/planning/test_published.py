"""Published compute figures to three digits, the exact counts beside them, and the page made of both."""

import pytest

from launch.compute_ledger import PAGE
from wamjax.config.presets import (
    WAN_2_1_I2V_14B,
    WAN_2_1_T2V_1_3B,
    WAN_2_1_T2V_14B,
    WAN_2_2_TI2V_5B,
)
from wamjax.flops.model import count_flops
from wamjax.flops.parameters import video_parameters
from wamjax.flops.video_transformer import video_transformer_flops
from wamjax.layout import build_layout
from wamjax.planning.published import (
    DREAMZERO,
    DREAMZERO_LOW,
    H100,
    SUMMER_22B,
    UNIPI,
    WAN_14B,
    ZETTA,
    dreamzero_config,
    dreamzero_forward,
    exact_runs,
    wan_14b_forward,
)
from wamjax.planning.published_page import render


@pytest.mark.parametrize(
    ("flops", "zflops"),
    [
        (DREAMZERO.flops, 8.990),
        (DREAMZERO_LOW.flops, 8.602),
        (WAN_14B.flops, 42.000),
        (WAN_14B.flops + DREAMZERO.flops, 50.990),
        (SUMMER_22B.flops, 66.000),
        (UNIPI.flops, 167.117),
    ],
)
def test_published_figure_follows_from_its_assumptions(flops: int, zflops: float) -> None:
    assert round(flops / ZETTA, 3) == zflops


def test_zflop_is_936_hours_of_an_h100_at_thirty_percent() -> None:
    assert round(H100.hours(ZETTA), 1) == 935.8


def test_exact_counts_are_up_to_three_times_the_published_ones() -> None:
    tuning, at_480p, at_720p = exact_runs()
    assert round(float(tuning.train) / ZETTA, 2) == 17.78
    assert round(float(tuning.recomputed) / ZETTA, 2) == 23.71
    assert round(float(at_480p.train) / ZETTA, 1) == 76.8
    assert round(float(at_720p.train) / ZETTA, 1) == 129.4
    assert [round(float(run.train / run.estimate), 2) for run in exact_runs()] == [1.98, 1.83, 3.08]


def test_differences_lead_from_the_published_figure_to_the_exact_one() -> None:
    for run in exact_runs():
        assert run.estimate + sum(run.differences.values()) == run.train
    tuning, at_480p, _ = exact_runs()
    assert tuning.differences["tokens"] == 6 * 14 * 10**9 * (15_940 - 8_361) * 12_800_000
    assert at_480p.differences["tokens"] == 0
    scores = 4 * 5120 * 40 * (32_760**2 + 32_760 * 512)
    assert at_480p.differences["attention"] == 3 * scores * at_480p.samples


@pytest.mark.parametrize(
    ("config", "parameters", "per_block"),
    [
        (WAN_2_1_T2V_1_3B, 1_418_996_800, 46_440_704),
        (WAN_2_1_T2V_14B, 14_288_491_584, 351_394_304),
        (WAN_2_1_I2V_14B, 16_394_878_784, 403_838_464),
        (WAN_2_2_TI2V_5B, 4_999_787_712, 163_656_704),
    ],
)
def test_parameters_of_published_models(config, parameters: int, per_block: int) -> None:
    listed = video_parameters(config)
    assert sum(parameter.size for parameter in listed.values()) == parameters
    blocks = sum(parameter.size for path, parameter in listed.items() if path.startswith("blocks."))
    assert blocks == config.num_layers * per_block


@pytest.mark.parametrize(
    ("grid", "forward"), [((21, 30, 52), 1_678_370_283_192_320), ((21, 45, 80), 6_523_436_592_005_120)]
)
def test_forward_of_wan_14b(grid: tuple[int, int, int], forward: int) -> None:
    assert sum(wan_14b_forward(grid).values()) == forward


def test_forward_of_dreamzero_by_component() -> None:
    forward = dreamzero_forward()
    assert sum(forward.values()) == 463_073_641_365_504
    printed = {
        "self_projections": "1.3371e+14", "self_scores": "6.2731e+13", "cross_qo": "6.6857e+13",
        "cross_kv": "3.2254e+12", "cross_scores": "1.0042e+13", "ffn": "1.8051e+14", "patch": "2.3357e+10",
        "head": "5.1905e+09", "text_embed": "4.8318e+10", "image_embed": "4.2107e+09", "time_embed": "5.8918e+12",
        "action_state": "1.6186e+10",
    }  # fmt: skip
    assert {name: f"{flops:.4e}" for name, flops in forward.items()} == printed


def test_dreamzero_attends_a_third_of_the_dense_pairs_and_embeds_six_timesteps() -> None:
    config = dreamzero_config()
    count = count_flops(config, build_layout(config))
    assert (count.num_tokens, count.num_pairs, count.num_dense_pairs) == (15_940, 76_576_484, 15_940**2)
    saved = sum(dreamzero_forward().values()) - count.forward_total
    assert saved == (15_940 - 6) * 2 * (256 * 5120 + 7 * 5120**2)
    assert count.six_n_t == 6 * count.num_parameters * 15_940


def test_forward_of_fast_wams_video_expert() -> None:
    counts = video_transformer_flops(WAN_2_2_TI2V_5B, tokens=360, text_tokens=129, slots=360, pairs=100_800)
    assert sum(counts.values()) == 3_380_621_672_448


def test_checks_from_outside_are_within_their_stated_gaps() -> None:
    # MaxDiffusion: 4,893.27 TFLOP per device of 4 at 75,600 tokens; NVIDIA DFM: 165.91 GFLOP per token at 37,440.
    assert 3 * sum(wan_14b_forward((21, 45, 80)).values()) / 4 == pytest.approx(4_893.27e12, rel=2e-4)
    assert 3 * sum(wan_14b_forward((24, 30, 52)).values()) / 37_440 == pytest.approx(165.91e9, rel=5e-3)


def test_six_nt_of_pretraining_is_what_the_published_convention_says() -> None:
    assert WAN_14B.flops == 6 * 14 * 10**9 * 500 * 10**9


def test_page_is_what_the_generator_writes() -> None:
    assert PAGE.read_text() == render(), "docs/compute_ledger.md is out of date: run python -m launch.compute_ledger"
