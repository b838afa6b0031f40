"""Wire times against rings walked by hand."""

import pytest

from wamjax.planning.fabric import Fabric
from wamjax.planning.machine import machine_of_chips, machine_of_topology

CUBE = {"data": 1, "fsdp": 16, "context": 4, "tensor": 1}
GB = 10**9


def test_an_axis_along_one_torus_dim_is_a_ring_with_two_links() -> None:
    # 4 chips in a ring, 90 GB/s per link and direction: 3/4 of 4 GB over two links.
    time = Fabric(machine_of_topology("v5p:4x4x4"), CUBE).time("all-gather", 4 * GB, ("context",))
    assert time.links == pytest.approx(4 * 0.75 / (2 * 90))
    assert time.network == 0


def test_all_axes_use_all_dims_at_once() -> None:
    time = Fabric(machine_of_topology("v5p:4x4x4"), CUBE).time("all-gather", 64 * GB, ("fsdp", "context"))
    assert time.links == pytest.approx(64 * (63 / 64) / (6 * 90))


def test_a_sum_over_slices_crosses_the_network_with_each_devices_part() -> None:
    # Two slices of 256: what 256 devices hold together is summed over two slices, each device its own part of it.
    machine = machine_of_chips("v6e:512")
    mesh = {"data": 2, "fsdp": 64, "context": 4, "tensor": 1}
    time = Fabric(machine, mesh).time("all-reduce", 8 * GB, ("data",))
    assert time.links == 0
    assert time.network == pytest.approx(2 * 8 * 0.5 / (50 / 8))


def test_devices_of_one_chip_share_its_network() -> None:
    # 24 chips of tpu7x, in equal slices whose replicas are all that crosses: two devices a chip, half its rate each.
    machine = machine_of_chips("tpu7x:24")
    inside = 48 // machine.num_slices
    mesh = {"data": machine.num_slices, "fsdp": inside, "context": 1, "tensor": 1}
    time = Fabric(machine, mesh).time("all-reduce", 8 * GB, ("data",))
    crossed = 2 * 8 * (1 - 1 / machine.num_slices)
    assert machine.num_slices > 1
    assert time.network == pytest.approx(crossed / (50 / 8 / 2))


def test_gpus_of_one_node_use_its_links() -> None:
    mesh = {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}
    time = Fabric(machine_of_chips("h100:8"), mesh).time("reduce-scatter", 8 * GB, ("fsdp",))
    assert time == (pytest.approx(7 / 450), 0.0)


@pytest.mark.parametrize(
    ("axes", "network"),
    [
        (("tensor",), 0.0),  # eight neighbours: one node
        (("fsdp",), 8 * (7 / 8) / 50),  # one GPU of each of eight nodes: one card each
        (("fsdp", "tensor"), 8 * (63 / 64) / (8 * 50)),  # whole nodes: eight cards at once
    ],
)
def test_gpus_of_several_nodes_cross_by_their_cards(axes: tuple[str, ...], network: float) -> None:
    mesh = {"data": 1, "fsdp": 8, "context": 1, "tensor": 8}
    time = Fabric(machine_of_chips("h100:64"), mesh).time("all-gather", 8 * GB, axes)
    assert time.network == pytest.approx(network)


def test_an_exchange_between_gpus_sends_what_leaves_the_node_by_card() -> None:
    mesh = {"data": 1, "fsdp": 1, "context": 16, "tensor": 1}
    time = Fabric(machine_of_chips("h100:16"), mesh).time("all-to-all", 16 * GB, ("context",))
    assert time == (pytest.approx(7 / 450), pytest.approx(8 / 50))
