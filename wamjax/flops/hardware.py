"""What accelerators can do: dense peaks, memory, links and example prices, looked up by JAX device kind.

All figures are per *chip*, as vendors list them, and dense (a peak "with sparsity" is twice as high and not used).
A JAX device is not always a chip: a TPU7x chip shows as two devices, so rates per device follow from
``devices_per_chip``. A device kind that is not in the table is unknown: lookups return ``None`` and
``explain_unknown`` says so; no other chip's figures ever stand in for it.

GB is 1e9 bytes and GiB 2**30 bytes, as the vendor states it. Prices are examples in US dollars per chip and hour with
the period they were read in; whoever plans with them should pass their own.
"""

from __future__ import annotations

import dataclasses

_TERA = 10**12
_GIGA = 10**9
_GIB = 2**30

_TPU_SOURCE = "Google Cloud TPU system architecture page of the chip"
_NVIDIA_SOURCE = "NVIDIA datasheet of the chip (tensor core peaks halved where given with sparsity)"
_PRICES_READ = "2022-2025"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Price:
    """An example price.

    Attributes:
      on_demand: US dollars per chip and hour.
      three_year: The same under a three-year commitment, where listed.
      read: When the price was read.
      source: Where it was read.
    """

    on_demand: float
    three_year: float | None = None
    read: str = _PRICES_READ
    source: str = "vendor price page, Epoch AI price tables"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One row of the hardware table.

    Attributes:
      name: Name used in tables and messages.
      device_kinds: Values of ``jax.Device.device_kind`` that are this chip, exactly as JAX writes them.
      devices_per_chip: JAX devices one chip shows as.
      peaks: Dense peak FLOP/s (operations/s for int8) of one chip, by dtype; a dtype that is not listed is absent.
      hbm_bytes: Memory of one chip.
      hbm_bytes_per_s: Memory bandwidth of one chip.
      link_bytes_per_s: Scale-up bandwidth of one chip over all its links, one way.
      topology: Shape of the scale-up domain.
      domain_chips: Chips of the largest scale-up domain.
      price: Example price, where one is listed.
      source: Where the figures come from.
      unverified: Fields that only one source gives.
    """

    name: str
    device_kinds: tuple[str, ...]
    devices_per_chip: int = 1
    peaks: dict[str, int]
    hbm_bytes: int
    hbm_bytes_per_s: int
    link_bytes_per_s: int
    topology: str
    domain_chips: int
    price: Price | None
    source: str
    unverified: tuple[str, ...] = ()


CHIPS: tuple[Chip, ...] = (
    Chip(
        name="TPU v4",
        device_kinds=("TPU v4",),
        peaks={"bfloat16": 275 * _TERA, "int8": 275 * _TERA},
        hbm_bytes=32 * _GIB,
        hbm_bytes_per_s=1_200 * _GIGA,
        link_bytes_per_s=6 * 45 * _GIGA,
        topology="3-D torus",
        domain_chips=4_096,
        price=Price(on_demand=3.22, three_year=1.45),
        source=_TPU_SOURCE,
    ),
    Chip(
        name="TPU v5e",
        device_kinds=("TPU v5 lite", "TPU v5e"),
        peaks={"bfloat16": 197 * _TERA, "int8": 393 * _TERA},
        hbm_bytes=16 * _GIGA,
        hbm_bytes_per_s=819 * _GIGA,
        link_bytes_per_s=4 * 45 * _GIGA,
        topology="2-D torus 16x16",
        domain_chips=256,
        price=Price(on_demand=1.20, three_year=0.54),
        source=_TPU_SOURCE,
    ),
    Chip(
        name="TPU v5p",
        device_kinds=("TPU v5", "TPU v5p"),
        peaks={"bfloat16": 459 * _TERA, "int8": 918 * _TERA},
        hbm_bytes=95 * _GIB,
        hbm_bytes_per_s=2_765 * _GIGA,
        link_bytes_per_s=6 * 90 * _GIGA,
        topology="3-D torus",
        domain_chips=8_960,
        price=Price(on_demand=4.20, three_year=1.89),
        source=_TPU_SOURCE,
        unverified=("price",),
    ),
    Chip(
        name="TPU v6e",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        peaks={"bfloat16": 918 * _TERA, "int8": 1_836 * _TERA, "float8": 918 * _TERA},
        hbm_bytes=32 * _GIGA,
        hbm_bytes_per_s=1_638 * _GIGA,
        link_bytes_per_s=4 * 90 * _GIGA,
        topology="2-D torus 16x16",
        domain_chips=256,
        price=Price(on_demand=2.70, three_year=1.22),
        source=_TPU_SOURCE,
    ),
    Chip(
        name="TPU7x",
        device_kinds=("TPU7x",),
        devices_per_chip=2,
        peaks={"bfloat16": 2_307 * _TERA, "float8": 4_614 * _TERA},
        hbm_bytes=192 * _GIB,
        hbm_bytes_per_s=7_370 * _GIGA,
        link_bytes_per_s=600 * _GIGA,
        topology="3-D torus",
        domain_chips=9_216,
        price=Price(on_demand=12.00, three_year=5.40),
        source=_TPU_SOURCE,
        unverified=("link_bytes_per_s", "price"),
    ),
    Chip(
        name="NVIDIA A100-80GB SXM",
        device_kinds=("NVIDIA A100-SXM4-80GB",),
        peaks={"bfloat16": 312 * _TERA, "int8": 624 * _TERA},
        hbm_bytes=80 * _GIGA,
        hbm_bytes_per_s=2_039 * _GIGA,
        link_bytes_per_s=300 * _GIGA,
        topology="NVLink",
        domain_chips=8,
        price=Price(on_demand=4.10),
        source=_NVIDIA_SOURCE,
    ),
    Chip(
        name="NVIDIA H100 SXM",
        device_kinds=("NVIDIA H100 80GB HBM3",),
        peaks={"bfloat16": 989_500_000_000_000, "int8": 1_979 * _TERA, "float8": 1_979 * _TERA},
        hbm_bytes=80 * _GIGA,
        hbm_bytes_per_s=3_350 * _GIGA,
        link_bytes_per_s=450 * _GIGA,
        topology="NVLink",
        domain_chips=8,
        price=Price(on_demand=11.06, three_year=4.86),
        source=_NVIDIA_SOURCE,
    ),
    Chip(
        name="NVIDIA H200",
        device_kinds=("NVIDIA H200",),
        peaks={"bfloat16": 989_500_000_000_000, "int8": 1_979 * _TERA, "float8": 1_979 * _TERA},
        hbm_bytes=141 * _GIGA,
        hbm_bytes_per_s=4_800 * _GIGA,
        link_bytes_per_s=450 * _GIGA,
        topology="NVLink",
        domain_chips=8,
        price=Price(on_demand=10.60),
        source=_NVIDIA_SOURCE,
    ),
    Chip(
        name="NVIDIA B200",
        device_kinds=("NVIDIA B200",),
        peaks={"bfloat16": 2_250 * _TERA, "int8": 4_500 * _TERA, "float8": 4_500 * _TERA},
        hbm_bytes=192 * _GIGA,
        hbm_bytes_per_s=8_000 * _GIGA,
        link_bytes_per_s=900 * _GIGA,
        topology="NVLink",
        domain_chips=8,
        price=None,
        source=_NVIDIA_SOURCE,
    ),
    Chip(
        name="NVIDIA GB200",
        device_kinds=("NVIDIA GB200",),
        peaks={"bfloat16": 2_500 * _TERA, "int8": 5_000 * _TERA, "float8": 5_000 * _TERA},
        hbm_bytes=186 * _GIGA,
        hbm_bytes_per_s=8_000 * _GIGA,
        link_bytes_per_s=900 * _GIGA,
        topology="NVLink",
        domain_chips=72,
        price=None,
        source=_NVIDIA_SOURCE,
    ),
    Chip(
        name="AMD MI300X",
        device_kinds=("AMD Instinct MI300X",),
        peaks={"bfloat16": 1_307 * _TERA, "int8": 2_615 * _TERA, "float8": 2_615 * _TERA},
        hbm_bytes=192 * _GIGA,
        hbm_bytes_per_s=5_300 * _GIGA,
        link_bytes_per_s=448 * _GIGA,
        topology="Infinity Fabric",
        domain_chips=8,
        price=Price(on_demand=2.69),
        source="AMD Instinct MI300X datasheet",
        unverified=("device_kinds",),
    ),
)

_BY_KIND = {kind: chip for chip in CHIPS for kind in chip.device_kinds}


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip a JAX ``device_kind`` belongs to, or None for an unknown one. Matches exactly, never by part."""
    return _BY_KIND.get(device_kind)


def peak_flops(device_kind: str, dtype: str) -> int | None:
    """Returns the listed dense peak in FLOP/s of one *chip*, or None where chip or dtype is not listed.

    Args:
      device_kind: ``jax.Device.device_kind``.
      dtype: ``bfloat16``, ``int8`` or ``float8``. ``float32`` is listed for no chip: what a float32 product costs
        depends on the precision mode it really runs in.
    """
    chip = find_chip(device_kind)
    return None if chip is None else chip.peaks.get(dtype)


def explain_unknown(device_kind: str, dtype: str) -> str:
    """Returns one line saying why ``peak_flops`` knows no peak; empty where it does."""
    chip = find_chip(device_kind)
    if chip is None:
        return f"no listed peak for device kind {device_kind!r} (wamjax/flops/hardware.py lists the known kinds)"
    if dtype not in chip.peaks:
        return f"no listed {dtype} peak for {chip.name} (listed: {', '.join(sorted(chip.peaks))})"
    return ""
