"""Model and hardware FLOP utilisation (MFU, HFU), always together with the peak they are a share of.

MFU = model FLOPs / (time x chips x listed dense peak of the compute dtype); HFU is the same with hardware FLOPs, which
include recomputation. The peak is never guessed: on an unlisted device the utilisation is None and a reason is given.

Source of the definitions: PaLM (arXiv 2204.02311), appendix B. What differs: only attended query-key pairs count.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction

from wamjax.flops.hardware import explain_unknown, find_chip, peak_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denominator:
    """What a run is measured against: chips and their listed peak.

    Attributes:
      device_kind: ``jax.Device.device_kind`` of every device of the run.
      num_devices: JAX devices of the run.
      dtype: Compute dtype of the matrix products.
    """

    device_kind: str
    num_devices: int
    dtype: str

    @property
    def num_chips(self) -> Fraction | None:
        """Chips the devices make up (a TPU7x device is half a chip); None for an unlisted device."""
        chip = find_chip(self.device_kind)
        return None if chip is None else Fraction(self.num_devices, chip.devices_per_chip)

    @property
    def flops_per_s(self) -> Fraction | None:
        """Listed dense peak of all chips together, in FLOP/s; None where it is not listed."""
        peak, chips = peak_flops(self.device_kind, self.dtype), self.num_chips
        return None if peak is None or chips is None else peak * chips

    @property
    def reason_unknown(self) -> str | None:
        """Why there is no peak, or None where there is one."""
        return explain_unknown(self.device_kind, self.dtype) or None

    def describe(self) -> str:
        """One line: ``989.5e12 FLOP/s x 8 chips, NVIDIA H200, bfloat16 dense``, or the reason there is none."""
        chip, peak = find_chip(self.device_kind), peak_flops(self.device_kind, self.dtype)
        if chip is None or peak is None or self.num_chips is None:
            return explain_unknown(self.device_kind, self.dtype)
        chips = _plain(self.num_chips)
        unit = "chip" if chips == "1" else "chips"
        return f"{peak / 1e12:g}e12 FLOP/s x {chips} {unit}, {chip.name}, {self.dtype} dense"

    def utilisation(self, flops: int, seconds: float) -> float | None:
        """Share of the peak that ``flops`` in ``seconds`` are; None where the peak is unknown or no time has passed."""
        rate = self.flops_per_s
        return None if rate is None or seconds <= 0 else flops / (seconds * float(rate))


def _plain(count: Fraction) -> str:
    return str(count.numerator) if count.denominator == 1 else f"{float(count):g}"
