import numpy as np
import pytest

from tests.layout.random_layouts import random_layout
from wamjax.layout import joint_layout
from wamjax.layout.balance import balance_order, imbalance, natural_order, pairs_of_parts

DREAMZERO = {"num_blocks": 4, "frames_per_block": 2, "grid": (22, 40), "actions_per_block": 24, "states_per_block": 1}


@pytest.mark.parametrize("seed", range(4))
def test_pairs_of_parts_are_those_of_the_dense_mask(seed):
    schedule = random_layout(seed, multiple=4).full_pass().schedule
    mask = schedule.dense_mask()
    size = len(mask) // 4
    expected = mask.reshape(4, size, 4, size).sum(axis=(1, 3))
    np.testing.assert_array_equal(pairs_of_parts(schedule, 4), expected)
    assert imbalance(schedule, 4, "all_gather") == pytest.approx(expected.sum(1).max() / expected.sum() * 4)
    steps = [max(expected[part, (part - step) % 4] for part in range(4)) for step in range(4)]
    assert imbalance(schedule, 4, "ring") == pytest.approx(sum(steps) / expected.sum() * 4)


@pytest.mark.parametrize("exchange", ["ring", "all_gather"])
@pytest.mark.parametrize(
    ("ways", "natural"), [(4, {"ring": 2.50, "all_gather": 1.38}), (8, {"ring": 2.98, "all_gather": 1.49})]
)
def test_balanced_dreamzero_loads_parts_almost_equally(exchange, ways, natural):
    schedule = joint_layout(**DREAMZERO, pad_multiple=4096).full_pass().schedule
    assert imbalance(schedule, ways, exchange) == pytest.approx(natural[exchange], abs=0.005)
    order = balance_order(schedule, ways, exchange)
    assert sorted(order.pieces) == list(range(len(order.pieces)))
    assert imbalance(order.apply(schedule), ways, exchange) < 1.15
    assert (schedule.num_queries // len(order.pieces)) % 128 == 0  # pieces are whole blocks of a TPU


def test_order_applied_and_undone_is_the_schedule_itself():
    schedule = joint_layout(**DREAMZERO, pad_multiple=64).full_pass().schedule
    order = balance_order(schedule, 4, "all_gather")
    assert not order.is_natural
    moved = order.apply(schedule)
    assert moved.num_pairs == schedule.num_pairs
    assert order.inverse().apply(moved) == schedule


def test_what_is_even_already_stays_as_it_is():
    schedule = joint_layout(num_blocks=1, frames_per_block=1, grid=(2, 2), actions_per_block=4, states_per_block=1)
    assert natural_order(4).apply(schedule.full_pass().schedule) == schedule.full_pass().schedule
