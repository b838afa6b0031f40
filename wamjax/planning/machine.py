"""The machine a plan is for: how many chips of which kind, and how they are joined.

Two ways to name one: ``--topology=v5p:4x4x4`` is a TPU slice, ``--chips=h100:64`` is a number of chips of a kind (of
a TPU, the most cubic slice of so many, or equal slices where one is not enough). What is not in the tables is refused
with what is: no chip ever stands in for another.

Knows no JAX devices; what the chips can do is ``flops.hardware``'s.
"""

from __future__ import annotations

import dataclasses
import difflib
import math

from wamjax.errors import ConfigError
from wamjax.flops.hardware import Chip, find_chip
from wamjax.layout.kernels import Platform
from wamjax.planning.chips import BY_PREFIX, GENERATIONS, TpuGeneration
from wamjax.planning.slices import parse_topology, topology_names

_GBIT = 10**9 // 8

MAX_CHIPS = 1_000_000  # of one plan; far beyond any machine, and soon enough searched for slices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """What a machine has outside its chips.

    Attributes:
      chips: Chips of one host.
      network_bytes_per_s: Data-centre network of one chip (its share of the host's), one way.
      input_bytes_per_s: Host memory to one device.
      usable_fraction: Share of the chip's listed memory that a program may use.
      source: Where the figures come from.
    """

    chips: int
    network_bytes_per_s: int
    input_bytes_per_s: int
    usable_fraction: float
    source: str


# A TPU's usable memory is the compiler's own limit (``planning.chips``), its share of PCIe that table's too.
_TPU_HOST = Host(
    chips=4,
    network_bytes_per_s=50 * _GBIT,
    input_bytes_per_s=16 * 10**9,
    usable_fraction=1.0,
    source="hosts of 4 chips: Google Cloud TPU docs, multi-host slices; 50 Gb/s per chip: v5p, for the others assumed",
)
_NVIDIA_SOURCE = "DGX datasheet of the chip; memory: what XLA may take with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92"


def _gpu_host(gigabits: int, pcie_gigabytes: int, *, chips: int = 8, source: str = _NVIDIA_SOURCE) -> Host:
    return Host(
        chips=chips,
        network_bytes_per_s=gigabits * _GBIT,
        input_bytes_per_s=pcie_gigabytes * 10**9,
        usable_fraction=0.92,
        source=source,
    )


# Short name of a GPU -> (its first device kind in the hardware table, host). TPUs have the names of slices.
_GPUS: dict[str, tuple[str, Host]] = {
    "a100": ("NVIDIA A100-SXM4-80GB", _gpu_host(200, 25)),
    "h100": ("NVIDIA H100 80GB HBM3", _gpu_host(400, 50)),
    "h200": ("NVIDIA H200", _gpu_host(400, 50)),
    "b200": ("NVIDIA B200", _gpu_host(400, 50)),
    "gb200": ("NVIDIA GB200", _gpu_host(400, 200, chips=4)),
    "mi300x": ("AMD Instinct MI300X", _gpu_host(400, 50, source="8-GPU OAM platform brief; network as the H100's")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Chips to plan for.

    Attributes:
      name: As it was asked for.
      chip: What each chip is.
      host: What is around it.
      num_chips: Chips in all.
      num_slices: Equal groups of chips that only the data-centre network joins (TPU slices; 1 for GPUs, whose nodes
        are told apart by ``domain_chips``).
      domain_chips: Chips that the scale-up links join.
      sizes: Chips along each torus dim of one slice; empty for GPUs.
      generation: TPU generation; None for GPUs.
    """

    name: str
    chip: Chip
    host: Host
    num_chips: int
    num_slices: int
    domain_chips: int
    sizes: tuple[int, ...] = ()
    generation: TpuGeneration | None = None

    @property
    def num_devices(self) -> int:
        """JAX devices of all chips."""
        return self.num_chips * self.chip.devices_per_chip

    @property
    def num_hosts(self) -> int:
        """Hosts of all chips."""
        return math.ceil(self.num_chips / self.host.chips)

    @property
    def hbm_bytes(self) -> int:
        """Memory of one device that a program may use."""
        if self.generation is not None:
            return self.generation.hbm_bytes
        return int(self.chip.hbm_bytes * self.host.usable_fraction) // self.chip.devices_per_chip

    @property
    def platform(self) -> Platform:
        """``tpu`` or ``gpu``."""
        return "gpu" if self.generation is None else "tpu"


def chip_names() -> list[str]:
    """Returns the short names that ``--chips`` takes."""
    return [*BY_PREFIX, *_GPUS]


def machine_of_topology(name: str, *, flag: str = "--topology") -> Machine:
    """Returns the TPU slice ``name`` (``v5p:4x4x4``), which ``flag`` gave.

    Raises:
      ConfigError: No such slice is offered; names the nearest.
    """
    generation, sizes = parse_topology(name, flag=flag)
    return _tpu(name, generation, sizes, num_slices=1)


def machine_of_chips(text: str, *, flag: str = "--chips") -> Machine:
    """Returns the machine that ``KIND:N`` (``h100:64``) asks for.

    Args:
      text: A short name or a device kind as JAX writes it, and a number of chips.
      flag: What gave it.

    Raises:
      ConfigError: The chip is not in the table (names the nearest), the number is none, or no slices have so many.
    """
    kind, colon, count = text.rpartition(":")
    if not colon or not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"{flag}={text} is not KIND:N with a number of chips N, such as h100:64 or v5p:64")
    name, num_chips = _find_name(kind, text, flag), int(count)
    if num_chips > MAX_CHIPS:
        raise ConfigError(f"{flag}={text}: more than {MAX_CHIPS:,} chips are not planned for")
    if name in BY_PREFIX:
        return _tpu_of_chips(text, BY_PREFIX[name], num_chips, flag)
    device_kind, host = _GPUS[name]
    chip = find_chip(device_kind)
    assert chip is not None, f"{device_kind} is missing in wamjax.flops.hardware"
    if num_chips > host.chips and num_chips % host.chips:
        raise ConfigError(f"{flag}={text}: {name} comes in hosts of {host.chips}; take a multiple of {host.chips}")
    return Machine(
        name=text,
        chip=chip,
        host=host,
        num_chips=num_chips,
        num_slices=1,
        domain_chips=min(chip.domain_chips, num_chips),
    )


def _find_name(kind: str, text: str, flag: str) -> str:
    """Returns the short name of ``kind``."""
    by_kind = {generation.device_kind: generation.prefix for generation in GENERATIONS}
    by_kind |= {alias: g.prefix for g in GENERATIONS for alias in g.chip.device_kinds}
    by_kind |= {device_kind: name for name, (device_kind, _) in _GPUS.items()}
    lowered = kind.lower()
    if lowered in chip_names():
        return lowered
    if kind in by_kind:
        return by_kind[kind]
    near = difflib.get_close_matches(lowered, chip_names(), n=3, cutoff=0.3) or chip_names()
    raise ConfigError(
        f"{flag}={text}: no figures for chip {kind!r}, and none are guessed; nearest known: {', '.join(near)} "
        f"(all: {', '.join(chip_names())}; wamjax/flops/hardware.py has the table)"
    )


def _tpu_of_chips(text: str, generation: TpuGeneration, num_chips: int, flag: str) -> Machine:
    """Returns the most cubic slice of ``num_chips``, or the fewest equal slices that have so many."""
    slices = {name: parse_topology(name)[1] for name in topology_names(generation)}
    counts = {math.prod(sizes) for sizes in slices.values()}
    for num_slices in range(1, num_chips + 1):
        if num_chips % num_slices == 0 and num_chips // num_slices in counts:
            fitting = [sizes for sizes in slices.values() if math.prod(sizes) == num_chips // num_slices]
            return _tpu(text, generation, min(fitting, key=lambda sizes: max(sizes) / min(sizes)), num_slices)
    raise ConfigError(
        f"{flag}={text}: no slices of {generation.prefix} have {num_chips} chips; take a multiple of {min(counts)}"
    )


def _tpu(name: str, generation: TpuGeneration, sizes: tuple[int, ...], num_slices: int) -> Machine:
    per_slice = math.prod(sizes)
    host = dataclasses.replace(_TPU_HOST, input_bytes_per_s=int(generation.host_bytes_per_s))
    return Machine(
        name=name,
        chip=generation.chip,
        host=host,
        num_chips=num_slices * per_slice,
        num_slices=num_slices,
        domain_chips=per_slice,
        sizes=sizes,
        generation=generation,
    )
