"""Windows over time, and what a recurrence may read, against descriptions token by token."""

import itertools

import numpy as np
import pytest

from tests.flops.steps import vary
from tests.flops.test_systems import FIRST_FRAME
from tests.layout.test_systems import first_frame, tokens
from wamjax.config.backbone import LayerAttention
from wamjax.config.schema import LayoutConfig
from wamjax.errors import ConfigError
from wamjax.layout import Layout, Role, build_layout, joint_layout
from wamjax.layout.windows import joint_schedule, layer_schedule, token_spans

NEAR = LayerAttention(kind="window", reach=2)
APART = LayerAttention(kind="window", reach=2, dilation=4)
MEMORY = LayerAttention(kind="gated_delta")


def joint(**changes) -> Layout:
    sizes = {"num_blocks": 3, "frames_per_block": 4, "grid": (1, 2), "actions_per_block": 3, "states_per_block": 1}
    return joint_layout(**{**sizes, **changes})


@pytest.mark.parametrize("attention", [NEAR, APART], ids=["near", "apart"])
@pytest.mark.parametrize("layout", [first_frame(frames=13), joint(), joint(order="grouped", pad_unit=8)])
def test_window_is_what_the_layout_shows_of_frames_nearby(layout: Layout, attention: LayerAttention) -> None:
    whole, info = layout.full_pass(), tokens(layout)
    mask = layer_schedule(whole, attention).dense_mask()
    shown = whole.schedule.dense_mask()
    is_video = [role.value.endswith("video") for role, *_ in info]
    for i, j in itertools.product(range(len(info)), repeat=2):
        # Kairos's KairosDiTV2: |difference| < 3 frames, or a multiple of 4 with |difference / 4| < 3.
        difference = info[j][1] - info[i][1]
        near = difference % attention.dilation == 0 and abs(difference) // attention.dilation < 3
        expected = shown[i, j] and (near or not (is_video[i] and is_video[j]))
        assert mask[i, j] == expected, (info[i], info[j])


def test_pairs_of_kairos_on_robotwin_are_those_of_its_windows() -> None:
    layout = first_frame(frames=21, grid=(16, 28), num_actions=32)
    frames = 448**2
    seen = [sum(abs(k - q) <= 2 for k in range(21)) for q in range(1, 21)]
    with_actions = 32 * (448 + 32)
    assert layer_schedule(layout.full_pass(), NEAR).num_pairs == frames * (1 + sum(seen)) + with_actions == 19_483_648
    spaced = [sum((k - q) % 4 == 0 and abs(k - q) <= 8 for k in range(21)) for q in range(1, 21)]
    assert layer_schedule(layout.full_pass(), APART).num_pairs == frames * (1 + sum(spaced)) + with_actions


def test_beside_a_recurrence_other_experts_attend_alone() -> None:
    layout = first_frame("joint").with_experts({Role.ACTION: "action", Role.CLEAN_VIDEO: "video"})
    layout = layout.with_experts({Role.ACTION: "action", Role.CLEAN_VIDEO: "video", Role.NOISY_VIDEO: "video"})
    schedule = joint_schedule(layout.full_pass(), MEMORY)
    np.testing.assert_array_equal(schedule.dense_mask(), np.ones((5, 5), bool))
    assert joint_schedule(first_frame().full_pass(), MEMORY).num_pairs == 0


def test_padding_is_left_out_of_a_recurrence() -> None:
    layout = joint(order="grouped", pad_unit=8, actions_per_block=0, states_per_block=0)
    spans, counts = token_spans(layout.segments), layout.tokens_by_stream()
    assert sum(stop - start for start, stop in spans) == sum(counts.values()) - counts["padding"]
    assert len(spans) > 1


def test_what_a_recurrence_would_show_too_much_of_is_refused() -> None:
    recurrent = vary(FIRST_FRAME, backbone={"block": {"attention": (MEMORY,)}})
    assert build_layout(recurrent).num_tokens
    with pytest.raises(ConfigError, match="gated_delta layers, which would show action tokens the noisy_video tokens"):
        build_layout(vary(recurrent, actions={"modules": "linear"}, layout={"states_per_block": 0}))
    with pytest.raises(ConfigError, match=r"would show condition_video tokens the clean_video tokens.*first_frame"):
        build_layout(vary(recurrent, layout={"family": "inverse_dynamics"}))
    alternating = LayoutConfig(
        formulation="alternating", num_blocks=2, frames_per_block=2, actions_per_block=6, states_per_block=0
    )
    with pytest.raises(ConfigError, match=r"config\.layout\.formulation=alternating"):
        build_layout(vary(recurrent, layout=alternating))


def test_windows_over_video_that_is_seen_token_by_token_are_refused() -> None:
    layout = joint(token_causal_context=True)
    with pytest.raises(ConfigError, match="clean_context=block_causal"):
        layer_schedule(layout.full_pass(), NEAR)


def test_impossible_patterns_are_refused() -> None:
    with pytest.raises(ConfigError, match="dilation=0"):
        LayerAttention(kind="window", dilation=0)
    with pytest.raises(ConfigError, match="num_layers 3 is no multiple of the 2 layers"):
        vary(FIRST_FRAME, backbone={"num_layers": 3, "block": {"attention": (NEAR, MEMORY)}})
