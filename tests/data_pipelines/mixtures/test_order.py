import collections

import numpy as np
import pytest

from data_pipelines.mixtures.order import BLOCK, MixtureOrder, shares_of
from wamjax.errors import ConfigError

NAMES = ("a", "b", "c")
PINNED = [0, 0, 1, 2, 0, 1, 1, 0, 0, 2, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0]
STAGES = [(0, (5.0, 3.0, 2.0)), (100_000, (0.0, 1.0, 1.0)), (170_001, (1.0, 0.0, 0.0))]


def test_samples_of_each_source_are_numbered_without_gap_across_blocks_and_stages() -> None:
    order = MixtureOrder(STAGES, names=NAMES, seed=3)
    seen = dict.fromkeys(range(3), 0)
    for sample in range(175_000):
        source, number = order.locate(sample)
        assert number == seen[source], sample
        seen[source] += 1
        if sample % 9973 == 0 or sample in (BLOCK - 1, 99_999, 100_000, 170_000):
            assert order.count_before(sample + 1) == tuple(seen.values())


def test_sample_does_not_depend_on_what_was_asked_before() -> None:
    asked = np.random.default_rng(0).integers(0, 400_000, 8).tolist()
    one = MixtureOrder(STAGES, names=NAMES, seed=3)
    for sample in asked:
        assert one.locate(sample) == MixtureOrder(STAGES, names=NAMES, seed=3).locate(sample)


def test_shares_hold_over_a_block_exactly_and_over_a_batch_nearly() -> None:
    order = MixtureOrder([(0, (5.0, 3.0, 2.0))], names=NAMES, seed=0)
    block = collections.Counter(order.locate(sample)[0] for sample in range(BLOCK))
    assert [block[source] for source in range(3)] == order.shares[0].tolist() == [32768, 19661, 13107]
    # Random within a block: 1,000 samples stray from 500 by 16 (one standard deviation), not in long runs.
    for start in range(0, 10_000, 1000):
        found = sum(order.locate(sample)[0] == 0 for sample in range(start, start + 1000))
        assert abs(found - 500) < 80


def test_seeds_and_blocks_have_orders_of_their_own() -> None:
    one, other = (MixtureOrder([(0, (1.0, 1.0, 1.0))], names=NAMES, seed=seed) for seed in (0, 1))
    first = [one.locate(sample)[0] for sample in range(1000)]
    assert first != [other.locate(sample)[0] for sample in range(1000)]
    assert first != [one.locate(BLOCK + sample)[0] for sample in range(1000)]


def test_order_is_pinned() -> None:
    # A change of these numbers changes the data of every resumed run: it needs a new format of the position.
    order = MixtureOrder([(0, (5.0, 3.0, 2.0))], names=NAMES, seed=0)
    assert [order.locate(sample)[0] for sample in range(24)] == PINNED


def test_source_of_weight_zero_is_never_read() -> None:
    order = MixtureOrder([(0, (1.0, 0.0, 3.0))], names=NAMES, seed=0)
    assert order.count_before(10 * BLOCK)[1] == 0


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.1, 0.2, 0.7), (1e-4, 1.0, 0.0)])
def test_shares_add_up_and_are_off_by_less_than_one(weights: tuple[float, ...]) -> None:
    shares = shares_of(weights, NAMES)
    assert shares.sum() == BLOCK
    assert np.abs(shares - np.array(weights) / sum(weights) * BLOCK).max() < 1


def test_weight_too_small_for_a_place_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^b has a share of 1e-06, less than one in"):
        shares_of((1.0, 1e-6, 0.0), NAMES)
