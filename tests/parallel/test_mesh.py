"""The mesh over slices, as fake devices describe them."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils

from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.parallel.axes import MESH_AXES
from wamjax.parallel.mesh import arrange_devices


@dataclasses.dataclass(frozen=True)
class FakeChip:
    """A chip of a v5e slice of 2 x 4, as JAX shows it to its mesh builder."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0
    core_on_chip: int = 0

    @property
    def coords(self) -> tuple[int, int, int]:
        return self.id % 2, self.id // 2 % 4, 0


def chips(num_slices: int) -> list[FakeChip]:
    # Interleaved, as they need not come in order of slices.
    return [FakeChip(id=s * 8 + i, slice_index=s) for i in range(8) for s in range(num_slices)]


@pytest.mark.parametrize("sizes", [(2, 4, 2, 1), (4, 2, 2, 1), (2, 2, 2, 2)])
def test_only_the_data_axis_leaves_a_slice(sizes: tuple[int, ...]) -> None:
    grid = arrange_devices(ParallelConfig(**dict(zip(MESH_AXES, sizes, strict=True))), chips(2))
    assert grid.shape == sizes
    slices = np.vectorize(lambda chip: chip.slice_index)(grid)
    for row in slices:
        assert len(np.unique(row)) == 1
    np.testing.assert_array_equal(slices[:, 0, 0, 0], np.repeat([0, 1], sizes[0] // 2))
    assert len({chip.id for chip in grid.flat}) == 16


def test_one_slice_is_as_without_slices() -> None:
    expected = mesh_utils.create_device_mesh((1, 4, 2, 1), chips(1), allow_split_physical_axes=True)
    np.testing.assert_array_equal(arrange_devices(ParallelConfig(fsdp=4, context=2), chips(1)), expected)


def test_data_axis_that_slices_do_not_divide_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"config\.parallel\.data=1 is no multiple of the 2 slices") as error:
        arrange_devices(ParallelConfig(data=1, fsdp=-1), chips(2))
    assert "\n" not in str(error.value)


def test_unequal_slices_are_one_line() -> None:
    devices = [*chips(1), *(FakeChip(id=8 + i, slice_index=1) for i in range(4))]
    with pytest.raises(ConfigError, match="8 in slice 0, 4 in slice 1"):
        arrange_devices(ParallelConfig(data=2, fsdp=-1), devices)


def test_devices_that_are_no_tpus_are_one_slice() -> None:
    assert arrange_devices(ParallelConfig(fsdp=8), jax.devices()).shape == (1, 8, 1, 1)
