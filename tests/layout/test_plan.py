"""Layouts of latent plans: masks against their description in words, and what there is when acting."""

import itertools

import numpy as np
import pytest

from tests.layout.test_systems import tokens
from wamjax.layout import Role, decoder_layout, plan_layout, present_segments


@pytest.mark.parametrize("states", [0, 1])
def test_prior_sees_the_present_and_the_posterior_all_video(states: int) -> None:
    layout = plan_layout(frames=3, grid=(2, 2), num_states=states)
    info, mask = tokens(layout), layout.dense_mask()
    assert len(info) == 3 * 4 + states + 2
    for i, j in itertools.product(range(len(info)), repeat=2):
        (query, at, _), (key, frame, _) = info[i], info[j]
        if key is Role.CLEAN_VIDEO:
            sees_all = query is Role.POSTERIOR or (query is Role.CLEAN_VIDEO and at > 0)
            expected = sees_all or frame == 0
        elif key is Role.STATE:
            expected = query is not Role.CLEAN_VIDEO
        else:
            expected = key is query
        assert mask[i, j] == expected, (info[i], info[j])
    assert layout.num_pairs == mask.sum()
    assert layout.num_slots == 1  # nothing is noised


def test_acting_computes_nothing_that_follows_the_present() -> None:
    layout = plan_layout(frames=3, grid=(2, 2), num_states=1)
    present = layout.make_pass(present_segments(layout), ())
    assert {s.role for s in present.segments} == {Role.CLEAN_VIDEO, Role.STATE, Role.PRIOR}
    assert present.num_tokens == 4 + 1 + 1
    info, whole = tokens(layout), layout.dense_mask()
    held = [row for row, (role, frame, _) in enumerate(info) if role is not Role.POSTERIOR and frame == 0]
    # The same attention as in training, and the present sees nothing else there.
    np.testing.assert_array_equal(present.schedule.dense_mask(), whole[np.ix_(held, held)])
    assert not np.delete(whole[held], held, axis=1).any()


def test_decoder_sees_present_plan_and_every_action() -> None:
    layout = decoder_layout(grid=(2, 2), num_states=1, num_actions=3)
    assert layout.tokens_by_stream() == {"clean_video": 4, "state": 1, "plan": 1, "action": 3}
    assert layout.dense_mask().all()
    actions = layout.full_pass().positions()[-3:]
    np.testing.assert_array_equal(actions, [[0, 0, 0], [1, 0, 0], [2, 0, 0]])


def test_posterior_without_a_future_is_refused() -> None:
    with pytest.raises(ValueError, match="frames=1"):
        plan_layout(frames=1, grid=(1, 1), num_states=0)
