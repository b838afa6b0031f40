"""Power of one chip, where a vendor or a paper states it; nothing stands in for what nobody states."""

from __future__ import annotations

import dataclasses

from wamjax.flops.hardware import Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChipPower:
    """Stated power of one chip.

    Attributes:
      chip: Name in ``flops.hardware``.
      watts: Power.
      of: What it is the power of: ``limit`` (thermal design power of the accelerator alone), ``measured`` (the most
        that was measured running production work) or ``system`` (a share of a whole system, hosts and cooling in it).
      source: Who states it.
    """

    chip: str
    watts: float
    of: str
    source: str


POWER: tuple[ChipPower, ...] = (
    ChipPower(
        chip="TPU v4",
        watts=192.0,
        of="measured",
        source="Jouppi et al., TPU v4 (arXiv 2304.01433), table 4: minimum, mean, maximum 121, 170, 192 W",
    ),
    ChipPower(
        chip="TPU7x",
        watts=10e6 / 9_216,
        of="system",
        source="Google's announcement of Ironwood (April 2025): 9,216 chips at nearly 10 MW",
    ),
    ChipPower(chip="NVIDIA A100-80GB SXM", watts=400.0, of="limit", source="NVIDIA A100 datasheet"),
    ChipPower(chip="NVIDIA H100 SXM", watts=700.0, of="limit", source="NVIDIA H100 datasheet: up to 700 W"),
    ChipPower(chip="NVIDIA H200", watts=700.0, of="limit", source="NVIDIA H200 datasheet: up to 700 W"),
    ChipPower(chip="NVIDIA B200", watts=1_000.0, of="limit", source="NVIDIA Blackwell datasheet, HGX B200"),
    ChipPower(
        chip="NVIDIA GB200", watts=1_200.0, of="limit", source="NVIDIA Blackwell datasheet, GB200: up to 1,200 W"
    ),
    ChipPower(chip="AMD MI300X", watts=750.0, of="limit", source="AMD Instinct MI300X datasheet"),
)

_BY_CHIP = {power.chip: power for power in POWER}


def find_power(chip: Chip) -> ChipPower | None:
    """Returns the stated power of ``chip``, or None where nobody states one (TPU v5e, v5p, v6e)."""
    return _BY_CHIP.get(chip.name)
