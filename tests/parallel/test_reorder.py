import random

import jax
import numpy as np
import pytest

from wamjax.config.schema import ParallelConfig
from wamjax.parallel.explicit import make_placement
from wamjax.parallel.mesh import build_mesh
from wamjax.parallel.reorder import plan_rounds, reorder


@pytest.mark.parametrize(("ways", "share", "seed"), [(2, 1, 0), (4, 2, 1), (8, 4, 2), (8, 16, 3)])
def test_rounds_bring_every_piece_to_its_place(ways, share, seed):
    pieces = list(range(ways * share))
    random.Random(seed).shuffle(pieces)
    held = np.full(ways * share, -1)
    rounds = plan_rounds(tuple(pieces), ways)
    assert len(rounds) == share
    for targets, sends, receives in rounds:
        assert sorted(targets) == list(range(ways))  # everyone sends one piece and receives one
        for source, target in enumerate(targets):
            held[target * share + receives[target]] = source * share + sends[source]
    assert held.tolist() == pieces


def test_reorder_permutes_pieces_and_its_gradient_permutes_them_back():
    config = ParallelConfig(fsdp=2, context=4)
    placement = make_placement(config, build_mesh(config))
    x = jax.random.normal(jax.random.key(0), (2, 24, 3))
    pieces = (3, 0, 7, 5, 1, 6, 2, 4)
    index = np.concatenate([np.arange(3 * piece, 3 * piece + 3) for piece in pieces])
    moved, pull = jax.vjp(jax.jit(lambda x: reorder(x, pieces, placement)), x)
    np.testing.assert_array_equal(moved, x[:, index])
    np.testing.assert_array_equal(pull(moved)[0], x)
    text = jax.jit(lambda x: reorder(x, pieces, placement)).lower(x).compile().as_text()
    assert text is not None
    assert "all-gather" not in text
