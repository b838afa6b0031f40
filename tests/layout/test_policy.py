"""Layouts of policies without video: masks against their descriptions in words."""

import itertools

import pytest

from wamjax.layout import Role, image_layout, policy_layout, query_layout


def test_policy_mask_follows_pi05_in_words() -> None:
    layout = policy_layout(image_tokens=4, text_tokens=3, num_actions=2)
    roles = [s.role for s in layout.segments for _ in range(s.num_tokens)]
    mask = layout.dense_mask()
    for i, j in itertools.product(range(9), repeat=2):
        # The prefix sees itself whole; actions see everything; the prefix never sees actions.
        assert mask[i, j] == (roles[j] is not Role.ACTION or roles[i] is Role.ACTION)
    assert layout.full_pass().experts == ("prefix", "action")


def test_prefix_of_a_policy_can_be_computed_once() -> None:
    layout = policy_layout(image_tokens=4, text_tokens=3, num_actions=2)
    assert layout.context_roles() == {Role.IMAGE, Role.TEXT}
    denoising = layout.denoise_pass(1)
    assert (denoising.num_tokens, denoising.schedule.num_pairs) == (2, 2 * 9)


def test_pi05_on_droid_has_the_pairs_of_prefix_and_suffix() -> None:
    layout = policy_layout(image_tokens=768, text_tokens=200, num_actions=16)
    assert layout.num_pairs == 968**2 + 16 * (968 + 16) == 952_768


def test_image_sees_all_of_itself() -> None:
    assert image_layout(256).num_pairs == 256**2


def test_query_mask_follows_gr1_in_words() -> None:
    steps, shown, ahead = 4, 3, 1
    layout = query_layout(steps=steps, observed=shown, asked=2, ahead=ahead)
    tokens = [(s.role, s.order, i) for s in layout.segments for i in range(s.num_tokens)]
    mask = layout.dense_mask()
    # GR-1: a causal mask over the steps in a row, without the columns of queries.
    order = {Role.OBSERVATION: 0, Role.ACTION: 1, Role.QUERY: 2}
    in_a_row = sorted(range(len(tokens)), key=lambda i: (tokens[i][1], order[tokens[i][0]], tokens[i][2]))
    for i, j in itertools.product(range(len(tokens)), repeat=2):
        is_before = in_a_row.index(j) <= in_a_row.index(i)
        assert mask[i, j] == (is_before and tokens[j][0] is Role.OBSERVATION), (tokens[i], tokens[j])
    assert {s.order for s in layout.stream(Role.QUERY)} == {0, 1, 2}


def test_gr1_on_calvin_has_the_pairs_of_its_steps() -> None:
    layout = query_layout(steps=10, observed=22, asked=20, ahead=3)
    actions = sum(22 * (step + 1) for step in range(10))
    frames = sum(20 * 22 * (step + 1) for step in range(7))
    assert layout.num_pairs == 220 * 221 // 2 + actions + frames == 37_840


def test_frames_beyond_the_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="ahead=3 of steps=3"):
        query_layout(steps=3, observed=1, asked=1, ahead=3)
