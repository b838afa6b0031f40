import numpy as np
import pytest

from wamjax.layout import choose_block, executed_pairs, joint_layout

SIZES = {"num_blocks": 4, "frames_per_block": 2, "grid": (22, 40), "actions_per_block": 24, "states_per_block": 1}


@pytest.mark.parametrize("block", [3, 5, 8])
@pytest.mark.parametrize("token_causal_context", [False, True])
def test_executed_pairs_are_those_of_touched_blocks(block, token_causal_context):
    layout = joint_layout(
        num_blocks=2,
        frames_per_block=2,
        grid=(2, 3),
        actions_per_block=4,
        states_per_block=1,
        order="grouped",
        pad_unit=4,
        token_causal_context=token_causal_context,
    )
    mask, total = layout.dense_mask(), 0
    for row in range(0, mask.shape[0], block):
        for column in range(0, mask.shape[1], block):
            part = mask[row : row + block, column : column + block]
            total += part.size * bool(np.any(part))
    assert executed_pairs(layout.full_pass().schedule, block) == total


def test_padded_units_of_dreamzero_execute_little_more_than_is_needed():
    layout = joint_layout(**SIZES, order="grouped", pad_unit=128)
    schedule = layout.full_pass().schedule
    assert (layout.num_tokens, layout.num_pairs, choose_block(schedule)) == (16_128, 76_576_484, 896)
    assert executed_pairs(schedule, 896) / layout.num_pairs < 1.03


def test_natural_order_executes_forty_percent_more_in_blocks_of_512():
    layout = joint_layout(**SIZES, pad_multiple=512)
    assert round(executed_pairs(layout.full_pass().schedule, 512) / layout.num_pairs, 2) == 1.40
