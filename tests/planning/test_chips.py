import pytest

from wamjax.planning.chips import BY_PREFIX, GENERATIONS

# Multiply-accumulate units of a device: cores x units x rows x columns. Source: Google Cloud TPU docs.
MACS = {
    "v4": 2 * 4 * 128 * 128,
    "v5e": 4 * 128 * 128,
    "v5p": 2 * 4 * 128 * 128,
    "v6e": 2 * 256 * 256 * 2,
    "tpu7x": 2 * 256 * 256 * 2,
}
LINKS = {"v4": 45e9, "v5e": 45e9, "v5p": 90e9, "v6e": 90e9, "tpu7x": 50e9}  # one way, per device


@pytest.mark.parametrize("prefix", sorted(BY_PREFIX))
def test_clock_and_units_give_the_listed_peak(prefix: str) -> None:
    generation = BY_PREFIX[prefix]
    assert 2 * MACS[prefix] * generation.clock_hz == pytest.approx(generation.peak_flops_per_s, rel=2e-3)


@pytest.mark.parametrize("prefix", sorted(BY_PREFIX))
def test_rates_per_device_follow_from_the_chip(prefix: str) -> None:
    generation = BY_PREFIX[prefix]
    assert generation.link_bytes_per_s == pytest.approx(LINKS[prefix])
    per_device = generation.chip.hbm_bytes / generation.chip.devices_per_chip
    assert 0.9 * per_device < generation.hbm_bytes < 1.07 * per_device  # some GB are GiB
    listed = generation.chip.hbm_bytes_per_s / generation.chip.devices_per_chip
    assert 0.7 * listed < generation.streaming_bytes_per_s < listed
    assert 0 < generation.backward_fraction <= generation.forward_fraction < 1


def test_every_generation_of_the_issue_is_there_once() -> None:
    assert [generation.prefix for generation in GENERATIONS] == ["v4", "v5e", "v5p", "v6e", "tpu7x"]


@pytest.mark.parametrize(
    ("prefix", "sizes", "wraps"),
    [
        ("v5p", (4, 4, 4), (True, True, True)),
        ("v5p", (2, 2, 4), (False, False, False)),  # less than a cube
        ("v6e", (16, 16), (True, True)),
        ("v6e", (8, 16), (False, True)),
        ("v5e", (4, 4), (False, False)),
    ],
)
def test_dims_close_into_rings_as_the_vendor_says(prefix: str, sizes: tuple[int, ...], wraps: tuple[bool, ...]) -> None:
    assert BY_PREFIX[prefix].wraps(sizes) == wraps
