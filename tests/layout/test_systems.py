"""Layouts of published systems: masks against their descriptions in words, token by token."""

import itertools

import numpy as np
import pytest

from wamjax.layout import Layout, Role, alternating_layout, first_frame_layout
from wamjax.layout.segments import window_before


def tokens(layout: Layout) -> list[tuple[Role, int, int]]:
    """Returns (role, latent frame, index within the role's stream) of every token."""
    found = []
    for segment in layout.segments:
        per_frame = segment.num_tokens // (segment.grid[0] if segment.grid else 1)
        found += [
            (segment.role, segment.first_frame + i // per_frame, segment.start + i) for i in range(segment.num_tokens)
        ]
    return found


def alternating(**changes) -> Layout:
    sizes = {"num_chunks": 3, "frames_per_chunk": 2, "grid": (1, 2), "actions_per_frame": 3}
    return alternating_layout(**{**sizes, **changes})


@pytest.mark.parametrize("reach", [0, 2])
def test_alternating_mask_is_that_of_half_chunk_ids(reach: int) -> None:
    layout = alternating(window_orders=reach)
    info = tokens(layout)
    mask = layout.dense_mask()
    videos, clean = (Role.CLEAN_VIDEO, Role.NOISY_VIDEO), (Role.CLEAN_VIDEO, Role.CLEAN_ACTION)
    # LingBot-VA: id 2c of a frame in chunk c, 2c + 1 of the actions that follow it.
    ids = [2 * (frame // 2) + (role not in videos) for role, frame, _ in info]
    for i, j in itertools.product(range(len(info)), repeat=2):
        is_near = not reach or ids[i] - ids[j] <= reach
        if info[j][0] in clean:
            expected = is_near and (ids[j] <= ids[i] if info[i][0] in clean else ids[j] < ids[i])
        else:
            expected = info[i][0] is info[j][0] and ids[i] == ids[j]
        assert mask[i, j] == expected, (info[i], info[j])
    assert layout.num_pairs == mask.sum()


def test_alternating_actions_lie_between_their_frame_and_the_next() -> None:
    layout = alternating()
    info, positions = tokens(layout), layout.full_pass().positions()
    for (role, frame, index), position in zip(info, positions, strict=True):
        if role in (Role.ACTION, Role.CLEAN_ACTION):
            np.testing.assert_allclose(position, (frame + (index % 3 + 1) / 4, -1, -1))
        else:
            np.testing.assert_allclose(position, (frame, 0, index % 2))
    assert layout.full_pass().is_video().all()


@pytest.mark.parametrize("noisy_history", [False, True])
def test_alternating_every_frame_and_its_actions_have_times_of_their_own(noisy_history: bool) -> None:
    layout = alternating(noisy_history=noisy_history)
    noisy, actions = layout.slots_of((Role.NOISY_VIDEO,)), layout.slots_of((Role.ACTION,))
    assert len(noisy) == len(actions) == 6
    assert not set(noisy) & set(actions)
    clean = layout.slots_of((Role.CLEAN_VIDEO,))
    assert clean == ((13, 14, 15, 16, 17, 18) if noisy_history else (0,))
    assert layout.slots_of((Role.CLEAN_ACTION,)) == (0,)


def test_lingbot_va_on_robotwin_has_the_pairs_of_its_chunks() -> None:
    layout = alternating(num_chunks=8, frames_per_chunk=4, grid=(12, 10), actions_per_frame=16)
    video, action = 480, 64  # tokens of a chunk
    pairs = 0
    for c in range(8):
        before = c * (video + action)
        pairs += video * (before + video) * 2  # clean up to itself; noisy: the past, and itself in the clean's place
        pairs += action * (before + video + action) * 2
    assert layout.num_pairs == pairs == 20_815_872


def first_frame(family: str = "representation", **changes) -> Layout:
    return first_frame_layout(**{"frames": 3, "grid": (2, 2), "num_actions": 5, "family": family, **changes})


@pytest.mark.parametrize("family", ["representation", "joint", "inverse_dynamics"])
def test_first_frame_mask_follows_fast_wam_in_words(family: str) -> None:
    layout = first_frame(family)
    info, mask = tokens(layout), layout.dense_mask()
    for i, j in itertools.product(range(len(info)), repeat=2):
        (query, q, _), (key, k, _) = info[i], info[j]
        if query is Role.ACTION:
            seen = {
                "representation": key is Role.CLEAN_VIDEO,
                "joint": key is not Role.ACTION,
                "inverse_dynamics": key is Role.CONDITION_VIDEO,
            }[family]
            expected = key is Role.ACTION or seen
        elif query is Role.CONDITION_VIDEO:
            expected = key is Role.CONDITION_VIDEO and (q > 0 or k == 0)
        else:  # the clip that is denoised: its first frame sees itself, the others all of it
            expected = key in (Role.CLEAN_VIDEO, Role.NOISY_VIDEO) and (q > 0 or k == 0)
        assert mask[i, j] == expected, (info[i], info[j])


def test_fast_wam_on_robotwin_has_the_published_pairs_of_video() -> None:
    layout = first_frame(grid=(12, 10), num_actions=32)
    mask = layout.dense_mask()
    assert mask[:360, :360].sum() == 100_800
    assert layout.num_pairs == 100_800 + 32 * (120 + 32)


def test_experts_of_padding_are_those_of_the_tokens_before_it() -> None:
    layout = first_frame().with_experts({Role.ACTION: "action"})
    assert layout.full_pass().experts == ("shared", "action")
    assert layout.full_pass().of_expert("action").num_tokens == 5


def test_embedded_slots_count_through_the_groups() -> None:
    layout = first_frame("inverse_dynamics", noisy_condition=True)
    video = (Role.CLEAN_VIDEO, Role.NOISY_VIDEO, Role.CONDITION_VIDEO)
    slots, runs = layout.full_pass().embedded_slots(video, (Role.ACTION,))
    assert slots == ((0, 1, 3), (2,))
    assert runs == ((0, 4), (1, 8), (0, 4), (2, 8), (3, 5))


@pytest.mark.parametrize("is_causal", [False, True])
def test_prefix_sees_itself_alone_and_is_seen_by_all(is_causal: bool) -> None:
    bare = first_frame()
    layout = bare.with_prefix(6, is_causal=is_causal)
    mask = layout.dense_mask()
    np.testing.assert_array_equal(mask[:6, :6], np.tri(6, dtype=bool) if is_causal else True)
    assert not mask[:6, 6:].any()
    assert mask[6:, :6].all()
    np.testing.assert_array_equal(mask[6:, 6:], bare.dense_mask())
    assert layout.cacheable_roles() >= {Role.TEXT, Role.CLEAN_VIDEO}


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_chunks=0"):
        alternating(num_chunks=0)
    with pytest.raises(ValueError, match="frames=1"):
        first_frame(frames=1)
    with pytest.raises(ValueError, match="window size 0"):
        window_before(0)
