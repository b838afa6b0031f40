import pytest

from wamjax.errors import ConfigError
from wamjax.planning.machine import chip_names, machine_of_chips, machine_of_topology


def test_a_topology_is_one_slice() -> None:
    machine = machine_of_topology("v5p:4x4x4")
    assert (machine.num_chips, machine.num_devices, machine.num_slices, machine.num_hosts) == (64, 64, 1, 16)
    assert machine.sizes == (4, 4, 4)
    assert machine.platform == "tpu"


def test_a_tpu7x_chip_is_two_devices_with_half_the_memory_each() -> None:
    machine = machine_of_chips("tpu7x:64")
    assert (machine.num_chips, machine.num_devices) == (64, 128)
    assert machine.hbm_bytes < machine.chip.hbm_bytes / 2


@pytest.mark.parametrize(
    ("text", "sizes", "num_slices"),
    [("v5p:64", (4, 4, 4), 1), ("v6e:256", (16, 16), 1), ("v6e:512", (16, 16), 2), ("v5e:8", (2, 4), 1)],
)
def test_tpu_chips_become_the_most_cubic_slices(text: str, sizes: tuple[int, ...], num_slices: int) -> None:
    machine = machine_of_chips(text)
    assert (machine.sizes, machine.num_slices) == (sizes, num_slices)


@pytest.mark.parametrize("name", chip_names())
def test_every_chip_has_a_machine(name: str) -> None:
    machine = machine_of_chips(f"{name}:8")
    assert machine.num_chips == 8
    assert 0 < machine.hbm_bytes <= machine.chip.hbm_bytes * 1.1  # compilers grant a little more than a listed GB
    assert machine.host.network_bytes_per_s > 0


def test_gpus_share_links_within_their_domain() -> None:
    machine = machine_of_chips("h100:64")
    assert (machine.domain_chips, machine.num_hosts, machine.platform) == (8, 8, "gpu")
    assert machine_of_chips("gb200:144").domain_chips == 72


def test_a_device_kind_as_jax_writes_it_is_a_name_too() -> None:
    assert machine_of_chips("NVIDIA H200:8").chip == machine_of_chips("h200:8").chip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h1000:8", "no figures for chip 'h1000', and none are guessed; nearest known: h100"),
        ("h100", "is not KIND:N"),
        ("h100:0", "is not KIND:N"),
        ("h100:12", "hosts of 8"),
        ("v5p:6", "take a multiple of 4"),
    ],
)
def test_bad_machines_are_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        machine_of_chips(text)
    assert "\n" not in str(caught.value)
