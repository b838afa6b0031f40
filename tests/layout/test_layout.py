"""Masks, pair counts and schedules against constructions that do not use the layout's own derivations."""

import numpy as np
import pytest

from wamjax.layout import (
    ALL,
    BEFORE,
    CAUSAL,
    SAME,
    UP_TO,
    Layout,
    Relation,
    RelationKind,
    Role,
    Segment,
    joint_layout,
    window,
)

SEEDS = range(40)
ROLES = (Role.CLEAN_VIDEO, Role.NOISY_VIDEO, Role.ACTION, Role.STATE)


def _relation_holds(relation: Relation, query_order: int, key_order: int) -> bool:
    """The relation's definition, written out from the architecture's table, independent of ``Relation.admits``."""
    table = {
        RelationKind.ALL: True,
        RelationKind.SAME: key_order == query_order,
        RelationKind.BEFORE: key_order < query_order,
        RelationKind.UP_TO: key_order <= query_order,
        RelationKind.WINDOW: query_order - relation.size <= key_order <= query_order,
    }
    return table[relation.kind]


def _brute_force_mask(layout: Layout) -> np.ndarray:
    """Token by token: who may look at whom. Causal compares a token's rank within its own stream."""
    tokens = [(s.role, s.order, s.start + j) for s in layout.segments for j in range(s.num_tokens)]
    mask = np.zeros((len(tokens), len(tokens)), dtype=bool)
    for i, (query_role, query_order, query_rank) in enumerate(tokens):
        for j, (key_role, key_order, key_rank) in enumerate(tokens):
            relation = layout.visibility.get((query_role, key_role))
            if relation is None:
                continue
            if relation.kind is RelationKind.CAUSAL:
                mask[i, j] = key_rank <= query_rank
            else:
                mask[i, j] = _relation_holds(relation, query_order, key_order)
    return mask


def _random_layout(seed: int) -> Layout:
    """Random streams in random interleaving, each role seeing itself and, at random, others."""
    rng = np.random.default_rng(seed)
    roles = list(rng.permutation(np.array(ROLES, dtype=object))[: rng.integers(1, 5)])
    relations = (ALL, SAME, BEFORE, UP_TO, window(int(rng.integers(0, 3))))
    visibility = {(role, role): (SAME, UP_TO, CAUSAL, ALL, window(1))[rng.integers(5)] for role in roles}
    for query in roles:
        for key in roles:
            if query is not key and rng.random() < 0.6:
                visibility[query, key] = relations[rng.integers(len(relations))]
    num_orders, starts = int(rng.integers(1, 5)), dict.fromkeys(roles, 0)
    by_order = []
    for order in range(num_orders):
        for role in rng.permutation(np.array(roles, dtype=object)):
            count = int(rng.integers(1, 7))
            by_order.append(Segment(role=role, order=order, num_tokens=count, start=starts[role]))
            starts[role] += count
    if rng.random() < 0.5:  # streams one after the other instead of grouped by order
        by_order.sort(key=lambda s: roles.index(s.role))
    if rng.random() < 0.5:
        by_order.append(Segment(role=Role.PADDING, order=0, num_tokens=int(rng.integers(1, 5))))
    return Layout(tuple(by_order), visibility)


@pytest.mark.parametrize("seed", SEEDS)
def test_mask_random_layout_equals_brute_force(seed):
    layout = _random_layout(seed)
    np.testing.assert_array_equal(layout.dense_mask(), _brute_force_mask(layout))


@pytest.mark.parametrize("seed", SEEDS)
def test_num_pairs_random_layout_equals_brute_force_sum(seed):
    layout = _random_layout(seed)
    assert layout.num_pairs == int(_brute_force_mask(layout).sum())


@pytest.mark.parametrize("seed", SEEDS)
def test_schedule_random_layout_covers_each_query_once(seed):
    schedule = _random_layout(seed).full_pass().schedule
    rows = [row for r in schedule.rectangles for span in r.queries for row in range(*span)]
    assert len(rows) == len(set(rows))
    assert schedule.num_executed_pairs >= schedule.num_pairs


@pytest.mark.parametrize("order", ["natural", "grouped"])
def test_joint_layout_at_dreamzero_droid_size_has_published_counts(order):
    layout = joint_layout(
        num_blocks=4, frames_per_block=2, grid=(22, 40), actions_per_block=24, states_per_block=1, order=order
    )
    assert layout.num_tokens == 15_940
    assert layout.num_pairs == 76_576_484
    assert layout.full_pass().schedule.num_executed_pairs == layout.num_pairs
    assert round(layout.num_pairs / layout.num_dense_pairs, 3) == 0.301


def _small(**overrides) -> Layout:
    sizes = {"num_blocks": 3, "frames_per_block": 2, "grid": (2, 3), "actions_per_block": 4, "states_per_block": 1}
    return joint_layout(**{**sizes, **overrides})


def test_joint_layout_mask_follows_the_formulation_in_words():
    layout = _small()
    info = [(s.role, s.order) for s in layout.segments for _ in range(s.num_tokens)]
    mask = layout.dense_mask()
    for i, (query, q) in enumerate(info):
        for j, (key, k) in enumerate(info):
            if query is Role.CLEAN_VIDEO:
                expected = key is Role.CLEAN_VIDEO and k <= q
            elif query is Role.STATE:
                expected = key is Role.STATE and k == q
            else:  # noisy video and actions: the clean past, and everything of their own block that is not clean
                expected = k < q if key is Role.CLEAN_VIDEO else k == q
            assert mask[i, j] == expected, (query, q, key, k)


@pytest.mark.parametrize("order", ["natural", "grouped"])
def test_joint_layout_order_of_tokens_changes_no_pair(order):
    assert _small(order=order).num_pairs == _small().num_pairs


def test_joint_layout_without_last_clean_block_drops_only_its_own_rows():
    whole, short = _small(), _small(clean_last_block=False)
    last = [s for s in whole.stream(Role.CLEAN_VIDEO) if s.order == 3]
    rows = sum(s.num_tokens for s in last)
    clean = sum(s.num_tokens for s in whole.stream(Role.CLEAN_VIDEO))
    assert whole.num_pairs - short.num_pairs == rows * clean


def test_joint_layout_padding_sees_and_is_seen_by_nothing():
    layout = _small(pad_multiple=16)
    assert layout.num_tokens % 16 == 0
    padding = sum(s.num_tokens for s in layout.stream(Role.PADDING))
    assert padding > 0
    mask = layout.dense_mask()
    assert not mask[-padding:].any()
    assert not mask[:, -padding:].any()
    assert layout.num_pairs == _small().num_pairs


def test_token_causal_context_is_a_triangle_after_a_whole_first_frame():
    layout = _small(token_causal_context=True)
    clean = sum(s.num_tokens for s in layout.stream(Role.CLEAN_VIDEO))
    first = layout.segments[0].num_tokens
    expected = np.tri(clean, dtype=bool)
    expected[:first, :first] = True
    np.testing.assert_array_equal(layout.dense_mask()[:clean, :clean], expected)
    assert layout.num_pairs == int(layout.dense_mask().sum())


def test_context_roles_joint_layout_are_the_clean_video():
    assert _small().context_roles() == {Role.CLEAN_VIDEO}
    assert _small().cacheable_roles() == {Role.CLEAN_VIDEO, Role.STATE}


def test_cacheable_roles_when_clean_video_looks_ahead_are_not_clean_video():
    layout = _small()
    visibility = {**layout.visibility, (Role.CLEAN_VIDEO, Role.CLEAN_VIDEO): ALL}
    assert Role.CLEAN_VIDEO not in Layout(layout.segments, visibility).cacheable_roles()


def test_cacheable_roles_when_clean_video_sees_actions_are_not_clean_video():
    layout = _small()
    visibility = {**layout.visibility, (Role.CLEAN_VIDEO, Role.ACTION): BEFORE}
    assert Role.CLEAN_VIDEO not in Layout(layout.segments, visibility).cacheable_roles()


@pytest.mark.parametrize("order", ["natural", "grouped"])
def test_denoise_pass_sees_exactly_what_training_sees(order):
    layout = _small(order=order)
    offsets, start = {}, 0
    for segment in layout.segments:
        offsets[segment] = np.arange(start, start + segment.num_tokens)
        start += segment.num_tokens
    mask = layout.dense_mask()
    for block in layout.denoised_orders()[1:]:
        part = layout.denoise_pass(block)
        rows = np.concatenate([offsets[s] for s in part.segments])
        columns = np.concatenate([offsets[s] for s in part.past + part.segments])
        seen = np.zeros((len(rows), len(columns)), dtype=bool)
        for rectangle in part.schedule.rectangles:
            chosen = [np.concatenate([np.arange(*s) for s in spans]) for spans in (rectangle.queries, rectangle.keys)]
            seen[np.ix_(*chosen)] = True
        np.testing.assert_array_equal(seen, mask[np.ix_(rows, columns)])
        assert mask[rows].sum() == seen.sum(), "training shows the block something the cache does not hold"


def test_positions_clean_and_noisy_copies_of_a_frame_are_equal():
    layout = _small()
    part = layout.full_pass()
    info = [s.role for s in layout.segments for _ in range(s.num_tokens)]
    positions = part.positions()
    by_role = {role: positions[[r is role for r in info]] for role in layout.roles}
    np.testing.assert_array_equal(by_role[Role.CLEAN_VIDEO], by_role[Role.NOISY_VIDEO])
    expected = [(t, h, w) for t in range(7) for h in range(2) for w in range(3)]
    np.testing.assert_array_equal(by_role[Role.CLEAN_VIDEO], expected)
    np.testing.assert_array_equal(by_role[Role.ACTION][:, 0], np.arange(12))


def test_slot_runs_clean_tokens_carry_slot_zero_and_blocks_their_own():
    layout = _small(order="grouped")
    slots = [slot for slot, count in layout.full_pass().slot_runs() for _ in range(count)]
    info = [s for s in layout.segments for _ in range(s.num_tokens)]
    for slot, segment in zip(slots, info, strict=True):
        noisy = segment.role in (Role.NOISY_VIDEO, Role.ACTION)
        assert slot == (1 + segment.order if noisy else 0)


def test_layout_query_that_sees_nothing_is_refused():
    segment = Segment(role=Role.ACTION, order=0, num_tokens=2)
    with pytest.raises(ValueError, match="sees no key"):
        Layout((segment,), {(Role.ACTION, Role.ACTION): BEFORE}).full_pass()


def test_layout_causal_between_two_streams_is_refused():
    with pytest.raises(ValueError, match="CAUSAL"):
        Layout((Segment(role=Role.ACTION, order=0, num_tokens=2),), {(Role.ACTION, Role.STATE): CAUSAL})
