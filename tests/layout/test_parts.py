import itertools
import random

import numpy as np
import pytest

from tests.layout.random_layouts import random_layout
from wamjax.layout.parts import cut, even_parts


def _tokens(spans):
    return np.concatenate([np.arange(*span) for span in spans])


def _random_spans(draw, length):
    """Disjoint spans in random order, some of the sequence left out."""
    edges = [0, *sorted(draw.sample(range(1, length), draw.randint(1, 6))), length]
    spans = list(itertools.pairwise(edges))
    draw.shuffle(spans)
    return tuple(spans[: max(1, len(spans) - draw.randint(0, 2))])


@pytest.mark.parametrize("seed", range(60))
def test_cut_sees_what_the_dense_mask_shows(seed):
    draw, schedule = random.Random(seed), random_layout(seed).full_pass().schedule
    queries, keys = (_random_spans(draw, length) for length in (schedule.num_queries, schedule.num_keys))
    part = cut(schedule, queries, keys)
    expected = schedule.dense_mask()[np.ix_(_tokens(queries), _tokens(keys))]
    np.testing.assert_array_equal(part.dense_mask(), expected)
    assert part.num_pairs == expected.sum()
    rows = _tokens([span for rectangle in part.rectangles for span in rectangle.queries] or [(0, 0)])
    assert len(set(rows)) == len(rows)  # no query is in two rectangles


@pytest.mark.parametrize("seed", range(5))
def test_pairs_of_all_parts_are_those_of_the_whole(seed):
    schedule = random_layout(seed, multiple=4).full_pass().schedule
    parts = even_parts(schedule.num_queries, 4)
    assert sum(cut(schedule, (q,), (k,)).num_pairs for q in parts for k in parts) == schedule.num_pairs
