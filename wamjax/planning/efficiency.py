"""What share of its listed rates hardware reaches, as data: the assumptions that a step time rests on.

One row per family of chips, each share with a pessimistic, an expected and an optimistic value and where it is from.
``wamjax plan calibrate`` fits the expected ones to measured runs and writes them as JSON, which ``--efficiencies``
reads back.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from wamjax.errors import ConfigError
from wamjax.planning.assumption import Band

SHARES = (
    "matmul",
    "attention_forward",
    "attention_backward",
    "memory",
    "links",
    "network",
    "host",
    "hidden",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiencies:
    """Shares of listed rates, all between 0 and 1; the low end of a band is the pessimistic one.

    Attributes:
      chips: Name prefixes of the chips (``flops.hardware``) they hold for.
      matmul: Matrix products, of the dense peak.
      attention_forward: Attention kernels, of the dense peak.
      attention_backward: Their backward pass.
      memory: Everything elementwise, of the memory bandwidth.
      links: Collectives, of the scale-up links.
      network: Collectives, of the data-centre network.
      host: Host to device, of PCIe.
      hidden: Exchange that runs behind compute.
      sources: Name of a share -> where it is from.
    """

    chips: tuple[str, ...]
    matmul: Band
    attention_forward: Band
    attention_backward: Band
    memory: Band
    links: Band
    network: Band
    host: Band
    hidden: Band
    sources: Mapping[str, str]

    def describe(self) -> list[str]:
        """Returns one line per share."""
        return [
            f"{name}: {band.low:g} to {band.high:g}, expected {band.mid:g} ({self.sources.get(name, 'assumed')})"
            for name in SHARES
            for band in (getattr(self, name),)
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns the shares and their sources, as ``with_overrides`` reads them."""
        return {name: {**getattr(self, name).to_json(), "source": self.sources.get(name, "assumed")} for name in SHARES}


_COMPILER = "compiled wan_14b_480p for v5p:4x4x4 takes 0.92 by XLA's cost model; hardware less"
_PUBLISHED = "the expected ones reproduce MaxDiffusion's published 36.0 s per Wan-14B 720p sample on 4 v5p chips"
_FA3 = "FlashAttention-3 (arXiv 2407.08608): up to 0.75 of an H100's peak forward, GEMM 0.80 to 0.90"
_RING = "ring formulas at the listed rate are the optimum; the rest is assumed"
_OVERLAP = "0.6 of the exchange of compiled wan_14b_480p is hidden; none and all are the bounds"
_NCCL = "NCCL's bus bandwidth on large messages is 0.75 to 0.9 of the listed rate"

TPU = Efficiencies(
    chips=("TPU",),
    matmul=Band(low=0.75, mid=0.90, high=0.95),
    attention_forward=Band(low=0.50, mid=0.58, high=0.78),
    attention_backward=Band(low=0.40, mid=0.50, high=0.70),
    memory=Band(low=0.25, mid=0.40, high=0.80),
    links=Band(low=0.70, mid=0.90, high=1.00),
    network=Band(low=0.60, mid=0.80, high=1.00),
    host=Band(low=0.50, mid=0.70, high=1.00),
    hidden=Band(low=0.00, mid=0.60, high=1.00),
    sources={
        "matmul": _COMPILER,
        "attention_forward": _PUBLISHED,
        "attention_backward": _PUBLISHED,
        "memory": "compiled wan_14b_480p: between its cycles (0.63 s) and its bytes at full streaming speed (0.22 s)",
        "links": _RING,
        "hidden": _OVERLAP,
    },
)
# An 8192-cubed bfloat16 product takes 0.81 (v6e) and 0.92 (tpu7x) of the peak by XLA's cost model, 0.97 on v5e and 0.98
# on v5p; dense language models reach 0.38 to 0.50 MFU on v6e where they reach 0.55 to 0.71 on v5p (MaxText's tables).
_BY_GENERATION = "XLA's cost model for an 8192-cubed product, and MaxText's published MFU of dense models"
TPU_V6E = dataclasses.replace(
    TPU,
    chips=("TPU v6e",),
    matmul=Band(low=0.50, mid=0.65, high=0.81),
    hidden=Band(low=0.00, mid=0.30, high=1.00),
    sources={
        **TPU.sources,
        "matmul": _BY_GENERATION,
        "hidden": "gathers over 16 x 16 chips are synchronous in compiled steps; the rest hides in part",
    },
)
TPU7X = dataclasses.replace(
    TPU,
    chips=("TPU7x",),
    matmul=Band(low=0.60, mid=0.80, high=0.92),
    sources={**TPU.sources, "matmul": _BY_GENERATION},
)
GPU = Efficiencies(
    chips=("NVIDIA H", "NVIDIA B", "NVIDIA GB", "AMD"),
    matmul=Band(low=0.60, mid=0.70, high=0.85),
    attention_forward=Band(low=0.45, mid=0.60, high=0.75),
    attention_backward=Band(low=0.35, mid=0.48, high=0.60),
    memory=Band(low=0.35, mid=0.55, high=0.85),
    links=Band(low=0.60, mid=0.75, high=0.90),
    network=Band(low=0.60, mid=0.80, high=0.95),
    host=Band(low=0.50, mid=0.70, high=1.00),
    hidden=Band(low=0.00, mid=0.60, high=1.00),
    sources={
        "matmul": _FA3,
        "attention_forward": _FA3,
        "attention_backward": _FA3,
        "links": _NCCL,
        "network": _NCCL,
    },
)
A100 = dataclasses.replace(
    GPU,
    chips=("NVIDIA A100",),
    matmul=Band(low=0.65, mid=0.78, high=0.90),
    attention_forward=Band(low=0.50, mid=0.65, high=0.73),
    attention_backward=Band(low=0.40, mid=0.52, high=0.63),
    sources={
        **GPU.sources,
        "matmul": "assumed from cuBLAS on Ampere",
        "attention_forward": "FlashAttention-2 (arXiv 2307.08691): up to 0.73 of an A100's peak forward",
        "attention_backward": "FlashAttention-2 (arXiv 2307.08691): up to 0.63 of an A100's peak backward",
    },
)
FAMILIES: tuple[Efficiencies, ...] = (TPU_V6E, TPU7X, TPU, GPU, A100)  # the first that fits holds


def efficiencies_of(chip: str) -> Efficiencies:
    """Returns the row of the chip named ``chip`` in the hardware table.

    Raises:
      ConfigError: No row is for such chips.
    """
    for family in FAMILIES:
        if chip.startswith(family.chips):
            return family
    raise ConfigError(
        f"no efficiencies are known for {chip}; wamjax/planning/efficiency.py has {len(FAMILIES)} families, add one"
    )


def with_overrides(efficiencies: Efficiencies, text: str, where: str) -> Efficiencies:
    """Returns ``efficiencies`` with the shares that the JSON object ``text`` gives.

    Args:
      efficiencies: What is replaced.
      text: ``{"matmul": {"low": 0.7, "mid": 0.8, "high": 0.9, "source": "..."}, ...}``; other top-level keys that begin
        with an underscore are remarks.
      where: What the text is, for messages.

    Raises:
      ConfigError: The text is no such object.
    """
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is no JSON object of shares ({', '.join(SHARES)})")
    bands: dict[str, Band] = {}
    sources = dict(efficiencies.sources)
    for name, row in given.items():
        if name.startswith("_"):
            continue
        if name not in SHARES:
            raise ConfigError(f"{where}: {name!r} is no share; expected {', '.join(SHARES)}")
        bands[name] = _read_band(row, f"{where}: {name}", may_be_zero=name == "hidden")
        sources[name] = str(row.get("source", where))
    return dataclasses.replace(efficiencies, **bands, sources=sources)


def _read_band(row: Any, where: str, *, may_be_zero: bool) -> Band:
    """Returns a band of three ascending numbers up to 1, above 0 unless ``may_be_zero``."""
    try:
        low, mid, high = (float(row[key]) for key in ("low", "mid", "high"))
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"{where} = {row!r}; expected numbers low, mid and high") from error
    if not 0 <= low <= mid <= high <= 1 or mid == 0 or (low == 0 and not may_be_zero):
        expected = "0 <= low" if may_be_zero else "0 < low"
        raise ConfigError(f"{where} = {row!r}; expected {expected} <= mid <= high <= 1 and mid above 0")
    return Band(low=low, mid=mid, high=high)
