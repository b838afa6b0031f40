"""Layouts of policies without video: masks against their descriptions in words."""

import itertools

from wamjax.layout import Role, image_layout, policy_layout


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
