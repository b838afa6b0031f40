"""Every row of the hardware table, read through the public lookup and compared with the vendors' sheets."""

from fractions import Fraction

import pytest

from wamjax.flops.hardware import CHIPS, explain_unknown, find_chip, peak_flops
from wamjax.flops.utilisation import Denominator

GIB = 2**30
# device kind: bf16 T, int8 T, fp8 T, HBM bytes, HBM GB/s, one-way scale-up GB/s, chips of a domain, devices per chip,
# $/h, $/h under three years. Typed from the vendors' pages, independently of the table under test.
SHEET = {
    "TPU v4": (275, 275, None, 32 * GIB, 1200, 270, 4096, 1, 3.22, 1.45),
    "TPU v5 lite": (197, 393, None, 16e9, 819, 180, 256, 1, 1.20, 0.54),
    "TPU v5": (459, 918, None, 95 * GIB, 2765, 540, 8960, 1, 4.20, 1.89),
    "TPU v6 lite": (918, 1836, 918, 32e9, 1638, 360, 256, 1, 2.70, 1.22),
    "TPU7x": (2307, None, 4614, 192 * GIB, 7370, 600, 9216, 2, 12.00, 5.40),
    "NVIDIA A100-SXM4-80GB": (312, 624, None, 80e9, 2039, 300, 8, 1, 4.10, None),
    "NVIDIA H100 80GB HBM3": (989.5, 1979, 1979, 80e9, 3350, 450, 8, 1, 11.06, 4.86),
    "NVIDIA H200": (989.5, 1979, 1979, 141e9, 4800, 450, 8, 1, 10.60, None),
    "NVIDIA B200": (2250, 4500, 4500, 192e9, 8000, 900, 8, 1, None, None),
    "NVIDIA GB200": (2500, 5000, 5000, 186e9, 8000, 900, 72, 1, None, None),
    "AMD Instinct MI300X": (1307, 2615, 2615, 192e9, 5300, 448, 8, 1, 2.69, None),
}


@pytest.mark.parametrize("kind", SHEET)
def test_lookup_of_a_listed_kind_returns_the_vendor_figures(kind):
    bf16, int8, fp8, hbm, bandwidth, link, domain, devices, price, three_year = SHEET[kind]
    chip = find_chip(kind)
    assert chip is not None
    assert peak_flops(kind, "bfloat16") == bf16 * 1e12
    assert peak_flops(kind, "int8") == (int8 and int8 * 1e12)
    assert peak_flops(kind, "float8") == (fp8 and fp8 * 1e12)
    assert (chip.hbm_bytes, chip.hbm_bytes_per_s, chip.link_bytes_per_s) == (hbm, bandwidth * 1e9, link * 1e9)
    assert (chip.domain_chips, chip.devices_per_chip) == (domain, devices)
    assert (chip.price and chip.price.on_demand) == price
    assert (chip.price and chip.price.three_year) == three_year
    assert chip.source
    assert chip.price is None or (chip.price.read and chip.price.source)


def test_every_row_of_the_table_is_on_the_sheet():
    found = [find_chip(kind) for kind in SHEET]
    assert set(map(id, found)) == set(map(id, CHIPS))


def test_every_alias_leads_to_its_own_row_and_no_kind_has_two_rows():
    kinds = [(kind, chip) for chip in CHIPS for kind in chip.device_kinds]
    assert len({kind for kind, _ in kinds}) == len(kinds)
    for kind, chip in kinds:
        assert find_chip(kind) is chip


@pytest.mark.parametrize(
    "kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA H100", "NVIDIA H20", "TPU v5 lite pod", "TPU7", "nvidia h200", ""]
)
def test_unknown_kind_is_none_and_says_so(kind):
    assert find_chip(kind) is None
    assert peak_flops(kind, "bfloat16") is None
    assert repr(kind) in explain_unknown(kind, "bfloat16")
    assert "\n" not in explain_unknown(kind, "bfloat16")


def test_dtype_without_a_listed_peak_is_none_and_names_the_chip():
    assert peak_flops("NVIDIA H200", "float32") is None
    assert explain_unknown("NVIDIA H200", "float32").startswith("no listed float32 peak for NVIDIA H200")
    assert explain_unknown("NVIDIA H200", "bfloat16") == ""


def test_denominator_names_peak_chips_and_dtype():
    eight = Denominator(device_kind="NVIDIA H200", num_devices=8, dtype="bfloat16")
    assert eight.describe() == "989.5e12 FLOP/s x 8 chips, NVIDIA H200, bfloat16 dense"
    assert eight.reason_unknown is None
    assert eight.utilisation(8 * 989_500_000_000_000, 2.0) == 0.5


def test_denominator_takes_two_tpu7x_devices_for_one_chip():
    pod = Denominator(device_kind="TPU7x", num_devices=64, dtype="bfloat16")
    assert pod.num_chips == 32
    assert pod.flops_per_s == 32 * 2_307 * 10**12
    half = Denominator(device_kind="TPU7x", num_devices=1, dtype="bfloat16")
    assert half.num_chips == Fraction(1, 2)
    assert half.describe() == "2307e12 FLOP/s x 0.5 chips, TPU7x, bfloat16 dense"


def test_denominator_reproduces_a_published_utilisation():
    # MaxDiffusion: Wan2.1-14B 720p, 4 v5p chips, 36.0 s per step, 4,893.27 TFLOP per device -> 29.6 %.
    four = Denominator(device_kind="TPU v5", num_devices=4, dtype="bfloat16")
    share = four.utilisation(4 * 4_893_270_000_000_000, 36.0)
    assert share == pytest.approx(0.296, abs=5e-4)


def test_denominator_of_unknown_device_has_no_utilisation_but_a_reason():
    cpu = Denominator(device_kind="cpu", num_devices=8, dtype="float32")
    assert cpu.utilisation(10**12, 1.0) is None
    assert cpu.num_chips is None
    assert cpu.reason_unknown
    assert cpu.describe() == cpu.reason_unknown
