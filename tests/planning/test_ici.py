import itertools
from collections import defaultdict

import numpy as np
import pytest

from wamjax.planning.ici import Torus

LINK = 90e9


def torus(*sizes: int, wraps: bool = True) -> Torus:
    coords = np.array(list(itertools.product(*map(range, sizes))))
    return Torus(coords=coords, sizes=sizes, wraps=(wraps,) * len(sizes), link_bytes_per_s=LINK)


def busiest_link_bytes(place: Torus, group: list[int], num_bytes: int) -> float:
    """Bytes over the busiest link when every device of ``group`` sends an equal part to every other, dim after dim by
    the shortest way, half each way where both are equally short: an all-to-all, simulated."""
    load: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for source, target in itertools.permutations(group, 2):
        here, there = place.coords[source].copy(), place.coords[target]
        for dim, size in enumerate(place.sizes):
            forward = (there[dim] - here[dim]) % size
            ways = [(1, forward, 1.0)] if not place.wraps[dim] else [(1, forward, 1.0), (-1, size - forward, 1.0)]
            if not place.wraps[dim]:
                ways = [(int(np.sign(there[dim] - here[dim])), abs(int(there[dim] - here[dim])), 1.0)]
            elif forward * 2 == size:
                ways = [(1, forward, 0.5), (-1, forward, 0.5)]
            else:
                ways = [min(ways, key=lambda way: way[1])]
            for direction, hops, share in ways:
                at = here.copy()
                for _ in range(hops if forward else 0):
                    load[(*at, dim, direction)] += share * num_bytes / len(group)
                    at[dim] = (at[dim] + direction) % size
            here[dim] = there[dim]
    return max(load.values())


@pytest.mark.parametrize(
    ("sizes", "wraps"), [((4,), True), ((8,), True), ((4,), False), ((8,), False), ((4, 4, 4), True), ((2, 4), False)]
)
def test_all_to_all_equals_a_simulation_of_its_busiest_link(sizes: tuple[int, ...], wraps: bool) -> None:
    place = torus(*sizes, wraps=wraps)
    group, num_bytes = list(range(int(np.prod(sizes)))), 1 << 20
    simulated = busiest_link_bytes(place, group, num_bytes) / LINK
    assert place.wire_seconds("all-to-all", num_bytes, group) == pytest.approx(simulated)


def test_all_gather_over_one_ring_uses_both_directions() -> None:
    place = torus(4, 4, 4)
    group = [0, 1, 2, 3]  # along the last dim
    assert place.wire_seconds("all-gather", 4_000_000, group) == pytest.approx(3_000_000 / (2 * LINK))
    assert place.wire_seconds("reduce-scatter", 4_000_000, group) == pytest.approx(3_000_000 / (2 * LINK))
    assert place.wire_seconds("all-reduce", 4_000_000, group) == pytest.approx(2 * 3_000_000 / (2 * LINK))


def test_group_over_several_dims_uses_the_links_of_all() -> None:
    place, num_bytes = torus(4, 4, 4), 64_000_000
    assert place.wire_seconds("all-gather", num_bytes, range(64)) == pytest.approx(63_000_000 / (6 * LINK))


def test_dim_that_does_not_close_or_is_spanned_in_part_is_a_line() -> None:
    whole_line, part_of_ring = torus(4, wraps=False), torus(8)
    assert whole_line.wire_seconds("all-gather", 4_000, [0, 1, 2, 3]) == pytest.approx(3_000 / LINK)
    assert part_of_ring.wire_seconds("all-gather", 4_000, [0, 1, 2, 3]) == pytest.approx(3_000 / LINK)


def test_permute_takes_one_link_one_way() -> None:
    assert torus(4).wire_seconds("collective-permute", 9_000, (0, 1)) == pytest.approx(9_000 / LINK)


def test_nothing_to_exchange_takes_no_time() -> None:
    assert torus(4).wire_seconds("all-gather", 4_000, [2]) == 0.0
    assert torus(4).wire_seconds("all-reduce", 0, [0, 1]) == 0.0


def test_devices_of_one_chip_exchange_without_a_link() -> None:
    place = Torus(coords=np.zeros((2, 3), int), sizes=(1, 1, 1), wraps=(False,) * 3, link_bytes_per_s=LINK)
    assert place.wire_seconds("all-gather", 9_000, [0, 1]) == pytest.approx(9_000 / (6 * LINK))
